"""One sequence, and the gradients of learning rules on it."""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..algorithms import TBPTT, Algorithm
from ..errors import InputError, InputTypeError, checked_count, raise_together
from ..gradient.agreement import (
    Gradient,
    KnownGradient,
    Row,
    compare_all,
    default_tolerance,
    flat,
    precision,
    replaced_derivatives,
)
from ..gradient.bptt import Objective, batch_axis_blamed, gradient_of
from ..gradient.data import check_lead, check_tolerance, lead_of, one_step
from ..gradient.loss import check_reduction
from ..run import Carry, Program, compile, doubts
from ..trace import Leaves


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The gradient of a rule. What it claims, carries and compiled are as in a `Result`."""

    gradient: KnownGradient
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
        passes: Any = None,
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
        self.steps = self.lead[0]
        self.model, self.xs, self.targets, self.loss_fn = model, xs, targets, loss_fn
        self.reduction, self.has_aux = reduction, objective.loss.has_aux
        self._tolerance, self._reference = tolerance, reference
        self.has_reference = reference is not None
        chosen = dict(weights=weights, memory=memory, passes=passes)
        self._options: Any = self._called | chosen | dict(batch_size=self.batch_size or 1)
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
            back = (
                "exact" if window >= self.steps else "approximate" if window > 1 else "current step"
            )
            of_one = self._claims_of_one_step
            claims = {path: back if c == "current step" else c for path, c in of_one.items()}
            return Outcome(self.in_blocks(window), claims, _bytes(self.carry.state), None)
        program = self.program(algorithm)
        claims = {path: c.claim for path, c in program.claims.items()}
        return Outcome(self.online(program), claims, _bytes(program.init(self.batch_size)), program)

    def online(self, program: Program) -> Gradient:
        """The gradient of a program."""
        gradient = program.value_and_grad(self.loss_fn, self.reduction, has_aux=self.has_aux)
        first = program.init(self.batch_size)

        def run(model: Any, mask: Any) -> tuple[Any, Any]:
            data = dict(mask=mask, begins=self.objective.begins)
            (value, _), grads = gradient(model, self.xs, self.targets, first, **data)
            return value, grads

        return Gradient(run, self.leaves, self.model, self.mask, self.lead)

    def in_blocks(self, window: int) -> Gradient:
        """BPTT of blocks of so many steps: BPTT in which the state is cut."""
        if window >= self.steps:
            return self.bptt
        steps = np.arange(self.steps)
        cuts = (steps % window == 0) & (steps > 0)  # the initial state may be learned
        return self._reverse(dataclasses.replace(self.objective, cuts=jnp.asarray(cuts)))

    @cached_property
    def _claims_of_one_step(self) -> Mapping[str, str]:
        """Those of the gradient of the current step, by path: with credit from further back the others are exact."""
        return {path: c.claim for path, c in self.program(TBPTT(1)).claims.items()}

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

    def given(self, gradient: Any) -> Outcome:
        """A gradient that something else computed; zero where it does not give one.

        **Raises** `InputError` and `InputTypeError` where it does not fit the model.
        """
        arrays = self.arrays_of(gradient)
        values = {
            path: flat(arrays.get(path, np.zeros(shape))) for path, shape in self.shapes.items()
        }
        return Outcome(KnownGradient(values), dict.fromkeys(values, "-"), None, None)

    def arrays_of(self, gradient: Any) -> dict[str, np.ndarray]:
        """The array of each parameter that a gradient has, by path. **Raises** as `given`."""
        from ._foreign import given_gradient

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

    def doubts(self, paths: Iterable[str] | None = None) -> tuple[str, ...]:
        """Sentences on what nothing is compared of, whatever the rule is.

        - `paths`: of the parameters that are compared; `None` for all.
        """
        values = self.reference.values
        compared = values if paths is None else {path: values[path] for path in paths}
        return (*self.silent(), *doubts(self.shown, compared, *self.data))

    @property
    def data(self) -> tuple[Any, ...]:
        """The model, its state, the sequence and the mask."""
        return self.model, self.carry.state, self.xs, self.targets, self.mask

    def silent(self) -> tuple[str, ...]:
        """What [`Program.silent`][etpc.Program.silent] says of the sequence."""
        return self.shown.silent(self.model, self.xs, self.carry, mask=self.mask)

    @property
    def unused(self) -> tuple[str, ...]:
        """A sentence on the weights whose gradient is zero under any rule, if there are some."""
        claims = self.shown.claims.values()
        paths = ", ".join(c.path for c in claims if c.claim == "unused" and c.uses)
        text = "unused: no derivative of an output depends on it, as behind a spike without a surrogate"
        return (f"{paths}: {text}",) if paths else ()

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on what BPTT goes back through."""
        if self.has_reference:
            return ()
        analysis = self.shown.plan.analysis  # of another step, where the rule replaces derivatives
        step = analysis.step if analysis.given is None else analysis.given
        return tuple(
            f"at {source} the derivative is not that of the value ({how}), as with feedback weights, "
            "and BPTT goes back the same way. For the true gradient pass `reference=` a step, or a model, with the "
            "true weights in their place"
            for source, how in replaced_derivatives(step).items()
        )


def _bytes(tree: Any) -> int:
    return sum(a.nbytes for a in jax.tree.leaves(tree))
