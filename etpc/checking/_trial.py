"""One sequence, and the gradients of learning rules on it."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..algorithms import Algorithm
from ..errors import InputError, InputTypeError, checked_count, raise_together
from ..gradient.agreement import (
    Gradient,
    Known,
    Row,
    compare_all,
    cosine,
    default_tolerance,
    doubts,
    flat,
    flat_gradients,
    precision,
    replaced_derivatives,
    whole,
)
from ..gradient.bptt import Objective, batch_axis_blamed, gradient_of
from ..gradient.data import check_lead, check_tolerance, lead_of, one_step
from ..gradient.loss import check_reduction
from ..run import Carry, Program, compile, without_past
from ..trace import Leaves
from ._foreign import given_gradient

WINDOWS = 8
"""In how many windows a sequence is cut, to tell how far back a gradient reaches."""

Lag = tuple[int, int]
"""From how many to how many steps back."""
Parts = list[np.ndarray]
"""The part of a gradient for each lag, with all parameters as one vector."""
Late = Callable[[int, Sequence[int]], Iterator[Any]]
"""From the first window whose uses of the parameters count, to the gradients of the losses of later windows."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The gradient of a rule. What it claims, carries and compiled are as in a `Result`."""

    gradient: Known
    claims: Mapping[str, str]
    carry_bytes: int | None
    program: Program | None


class Trial:
    """A model, a sequence and a loss; arguments are those of [`etpc.compare`][].

    - `options`: of an `Objective`.
    - `reference`: of which model, or of which step of this one, BPTT is taken; `None` for the model itself.
    """

    def __init__(
        self,
        model: Any,
        xs: Any,
        targets: Any,
        loss_fn: Any,
        *,
        weights: Any = None,
        memory: Any = None,
        tolerance: Any = None,
        reduction: str = "mean",
        reference: Any = None,
        **options: Any,
    ):
        check_reduction(reduction)
        check_tolerance(tolerance)
        size = options.get("batch_size")
        self.batch_size = None if size is None else checked_count("batch_size", size)
        options["batch_size"] = self.batch_size
        self._objective_of = lambda model: Objective.of(model, xs, targets, loss_fn, **options)
        objective = self._objective_of(model)
        self._called = {name: options.get(name) for name in ("state", "step", "batch_size")}
        self._inputs = jax.tree.map(lambda a: one_step(a, self.batch_size), xs)
        self.lead, self.mask = lead_of(xs, self.batch_size), objective.mask
        self.model, self.xs, self.targets, self.loss_fn = model, xs, targets, loss_fn
        self.reduction, self.has_aux = reduction, objective.loss.has_aux
        self._tolerance, self._reference = tolerance, reference
        chosen = dict(weights=weights, memory=memory, batch_size=self.batch_size or 1)
        self._options: Any = self._called | chosen
        no_cuts = jnp.zeros(self.steps, bool)  # as data: BPTT of all blocks is compiled once
        self.objective = dataclasses.replace(objective, cuts=no_cuts)

    # --- programs ---

    def program(self, algorithm: Algorithm | str) -> Program:
        """The program of a rule.

        **Raises** what `etpc.compile` raises; `InputError` where leading axes differ, and where the sequence
        seems to have a batch axis and no batch size was given, or the other way round.
        """
        with batch_axis_blamed(self.model, self.xs, **self._called):
            program = compile(self.model, algorithm, inputs=self._inputs, **self._options)
        check_lead(self.xs, self.targets, self.batch_size)
        self.__dict__.setdefault("shown", program)
        return program

    @cached_property
    def shown(self) -> Program:
        """Any program of the model, which shows its parameters and its state."""
        return self.program("d_rtrl")

    @property
    def steps(self) -> int:
        """T."""
        return self.lead[0]

    @property
    def leaves(self) -> Leaves:
        """Those of the model."""
        return self.shown.plan.analysis.step.model_leaves

    @cached_property
    def dtype(self) -> Any:
        """The least precise dtype in which a step computes."""
        return precision(self.shown.plan.analysis.step)

    @property
    def tolerance(self) -> float:
        """The largest relative error that counts as exact."""
        return default_tolerance(self.dtype) if self._tolerance is None else self._tolerance

    @cached_property
    def carry(self) -> Carry:
        """A fresh one."""
        return self.shown.init(self.batch_size)

    # --- gradients ---

    def of(self, algorithm: Algorithm, in_blocks: bool = True) -> Outcome:
        """The gradient of a rule; of one that is BPTT of blocks without a program, if `in_blocks`."""
        if in_blocks and algorithm.in_blocks:
            window = algorithm.lookback or self.steps
            claim = (
                "exact" if window >= self.steps else "approximate" if window > 1 else "current step"
            )
            unused = [path for path, c in self.shown.claims.items() if c.claim == "unused"]
            claims = {path: "unused" if path in unused else claim for path in self.shown.claims}
            return Outcome(self.in_blocks(window), claims, _bytes(self.carry.state), None)
        program = self.program(algorithm)
        claims = {path: c.claim for path, c in program.claims.items()}
        return Outcome(self.online(program), claims, _bytes(program.init(self.batch_size)), program)

    def online(self, program: Program) -> Gradient:
        """The gradient of a program."""
        gradient = program.value_and_grad(self.loss_fn, self.reduction, has_aux=self.has_aux)
        first = program.init(self.batch_size)

        def run(model: Any, mask: Any) -> tuple[Any, Any]:
            (value, _), grads = gradient(model, self.xs, self.targets, first, mask=mask)
            return value, grads

        return Gradient(run, self.leaves, self.model, self.mask, self.lead)

    def in_blocks(self, window: int) -> Gradient:
        """BPTT of blocks of so many steps: BPTT in which the state is cut."""
        if window >= self.steps:
            return self.bptt
        return self._reverse(self._cut(np.arange(self.steps) % window == 0))

    @cached_property
    def bptt(self) -> Gradient:
        """The gradient of BPTT, of the model itself."""
        return self._reverse(self.objective)

    @cached_property
    def reference(self) -> Gradient:
        """What gradients are compared with: BPTT of the model itself, or of the reference."""
        reference = self._reference
        if reference is None:
            return self.bptt
        if callable(reference) and not jax.tree.leaves(eqx.filter(reference, eqx.is_inexact_array)):
            return self._reverse(dataclasses.replace(self.objective, step=reference))
        own = self.shapes
        leaves = Leaves.of(reference, "model")
        shapes = {path: aval.shape for path, aval in leaves.float_avals.items()}
        shared = own.keys() & shapes.keys()
        if not shared:
            raise InputTypeError(
                f"reference is a {type(reference).__name__} without a parameter of the model, whose are "
                f"{', '.join(own)}. Pass a model with the same parameters, or a step function."
            )
        problems = (
            f"The reference has {path} of shape {list(shapes[path])}, and the model of {list(own[path])}. "
            "Pass a model with the same parameters, or a step function."
            for path in own
            if path in shared and shapes[path] != own[path]
        )
        raise_together(problems, InputError)
        return self._reverse(self._objective_of(reference), reference, leaves)

    def _reverse(
        self, objective: Objective, model: Any = None, leaves: Leaves | None = None
    ) -> Gradient:
        def run(model: Any, mask: Any) -> tuple[Any, Any]:
            return gradient_of(model, dataclasses.replace(objective, mask=mask), self.reduction)[:2]

        model = self.model if model is None else model
        return Gradient(run, leaves or self.leaves, model, self.mask, self.lead)

    def _cut(self, where: np.ndarray) -> Objective:
        """The objective in which the state is passed on to these steps without its derivative."""
        where = where & (np.arange(self.steps) > 0)  # the initial state may be learned
        return dataclasses.replace(self.objective, cuts=jnp.asarray(where))

    def given(self, gradient: Any) -> Outcome:
        """A gradient that something else computed; zero where it does not give one.

        **Raises** `InputError` and `InputTypeError` where it does not fit the model.
        """
        arrays = self.arrays_of(gradient)
        values = {
            path: flat(arrays.get(path, np.zeros(shape))) for path, shape in self.shapes.items()
        }
        return Outcome(Known(values), dict.fromkeys(values, "-"), None, None)

    def arrays_of(self, gradient: Any) -> dict[str, np.ndarray]:
        """The array of each parameter that a gradient has, by path. **Raises** as `given`."""
        return given_gradient(gradient, self.leaves, self.model, self.xs, self.targets)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the float parameters, by path."""
        return {path: aval.shape for path, aval in self.leaves.float_avals.items()}

    # --- comparisons ---

    def rows(self, found: Outcome) -> tuple[Row, ...]:
        """A row for each parameter. Claims are not judged against a reference that is not the model."""
        want = self.reference
        claims = {path: claim for path, claim in found.claims.items() if path in want.values}
        rows = compare_all(found.gradient, want, claims, self.tolerance, self.dtype)
        if self.has_reference:
            rows = tuple(dataclasses.replace(row, held=None) for row in rows)
        return rows

    @property
    def has_reference(self) -> bool:
        """Whether BPTT is of another model, or of another step."""
        return self._reference is not None

    def doubts(self, paths: Iterable[str] | None = None) -> tuple[str, ...]:
        """Sentences on what nothing is compared of, whatever the rule is.

        - `paths`: of the parameters that are compared; `None` for all.
        """
        values = self.reference.values
        compared = values if paths is None else {path: values[path] for path in paths}
        return doubts(self.shown, self.silent(), Known(compared))

    def silent(self) -> tuple[str, ...]:
        """What [`Program.silent`][etpc.Program.silent] says of the sequence."""
        return self.shown.silent(self.model, self.xs, self.carry, mask=self.mask)

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what BPTT goes back through."""
        if self.has_reference:
            return ()
        return tuple(
            f"at {source} the derivative is not that of the value ({how}), as with feedback weights, "
            "and BPTT goes back the same way. For the true gradient pass `reference=` a step, or a model, with the "
            "true weights in their place"
            for source, how in replaced_derivatives(self.shown.plan.analysis.step).items()
        )

    # --- how far back they reach ---

    @cached_property
    def window(self) -> int:
        """In how many steps lags are counted."""
        return max(1, self.steps // WINDOWS)

    @cached_property
    def lags(self) -> list[Lag]:
        """0 to W steps back, W to 2 W, 2 W to 4 W, ..."""
        count, edges = self.steps // self.window, [0, 1]
        while edges[-1] < count:
            edges.append(min(2 * edges[-1], count))
        return [(a * self.window, b * self.window) for a, b in itertools.pairwise(edges)]

    def by_lag(
        self, algorithm: Algorithm | None, program: Program | None, gradient: np.ndarray
    ) -> dict[Lag, float]:
        """The cosine with BPTT by how far back a gradient reaches; see [`etpc.Comparison.by_lag`][].

        - `algorithm`, `program`: as of a result; the gradient of none is known as a whole alone.
        """
        if algorithm is None:
            values = _partial_cosines(gradient, self._parts_of_bptt)
        else:
            block = algorithm.lookback or self.steps
            late = self._late_in_blocks(block) if program is None else self._late_of(program)
            pairs = zip(self._parts(late), self._parts_of_bptt, strict=True)
            values = [cosine(a, b) for a, b in pairs]
        return dict(zip(self.lags, values, strict=True))

    @cached_property
    def _parts_of_bptt(self) -> Parts:
        return self._parts(self._late_in_blocks(self.steps))

    def _parts(self, late: Late) -> Parts:
        """The parts of a gradient that reach back so far."""
        count, reaches = self.steps // self.window, [until // self.window for _, until in self.lags]
        totals = [np.zeros_like(whole(self.bptt.values)) for _ in reaches]
        for first in range(count):
            wanted = {
                last: [n for n, reach in enumerate(reaches) if max(0, last - reach + 1) == first]
                for last in range(first, count)
            }
            lasts = [last for last, places in wanted.items() if places]
            for last, tree in zip(lasts, late(first, lasts), strict=True):
                vector = whole(flat_gradients(self.leaves, tree))
                for place in wanted[last]:
                    totals[place] += vector
        return [totals[0], *(more - less for less, more in itertools.pairwise(totals))]

    def _late_in_blocks(self, block: int) -> Late:
        """BPTT of blocks: with a cut at the first step that counts, and the loss of one window."""
        steps = np.arange(self.steps)
        weights = jnp.ones(self.lead) if self.mask is None else self.mask.astype(float)

        def late(first: int, lasts: Sequence[int]) -> Iterator[Any]:
            objective = self._cut((steps % block == 0) | (steps == first * self.window))
            for last in lasts:
                counts = (steps // self.window == last).reshape(-1, *[1] * (len(self.lead) - 1))
                of_window = dataclasses.replace(objective, mask=weights * counts)
                yield gradient_of(self.model, of_window, "sum")[1]

        return late

    def _late_of(self, program: Program) -> Late:
        """A program, whose traces begin with zeros at the first step that counts."""
        gradient = program.value_and_grad(self.loss_fn, "sum", has_aux=self.has_aux)
        carries = [program.init(self.batch_size)]

        def of_window(carry: Carry, number: int) -> tuple[Carry, Any]:
            within = slice(number * self.window, (number + 1) * self.window)
            xs, targets, mask = jax.tree.map(
                lambda a: jnp.asarray(a)[within], (self.xs, self.targets, self.mask)
            )
            (_, after), grads = gradient(self.model, xs, targets, carry, mask=mask)
            return (after[0] if self.has_aux else after), grads

        def late(first: int, lasts: Sequence[int]) -> Iterator[Any]:
            carry = without_past(program, carries[first])
            for number in range(first, lasts[-1] + 1 if first else self.steps // self.window):
                carry, grads = of_window(carry, number)
                if not first:
                    carries.append(carry)
                if number in lasts:
                    yield grads

        return late


def _partial_cosines(total: np.ndarray, of_bptt: Parts) -> list[float]:
    """Of a gradient that is known as a whole with each part of BPTT, once the other parts are projected out of both."""
    found = []
    for n, part in enumerate(of_bptt):
        others = [other for m, other in enumerate(of_bptt) if m != n and other.any()]
        basis = np.linalg.qr(np.stack(others, 1))[0] if others else np.zeros((part.size, 0))
        own, rest = (a - basis @ (basis.T @ a) for a in (part, total))
        seen = np.linalg.norm(own) > 1e-6 * np.linalg.norm(part)
        seen &= np.linalg.norm(rest) > 1e-9 * np.linalg.norm(total)
        found.append(cosine(own, rest) if seen else float("nan"))
    return found


def _bytes(tree: Any) -> int:
    return sum(a.nbytes for a in jax.tree.leaves(tree))
