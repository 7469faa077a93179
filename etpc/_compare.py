"""`etpc.verify` and `etpc.compare`: algorithms against backpropagation through time."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from ._agreement import (
    Gradient,
    Row,
    compare_all,
    default_tolerance,
    doubts,
    precision,
    unread_traces,
)
from ._bptt import Objective, blame_batch_axis, gradient_of
from ._data import check_data, check_lead, check_tolerance, lead_of, one_step
from ._errors import InputError, checked_count
from ._loss import Loss, check_reduction, checked_weights
from .algorithms import TBPTT, Algorithm, resolve
from .plan import UNMARKED
from .run import Carry, Program, compile
from .show import table
from .trace import StepFunction

TOTAL = "(all)"
"""Stands for the path in the row of all parameters together."""

HELD = {True: "yes", False: "NO", None: "-"}


def fidelity(row: Row) -> list[str]:
    """Cosine, error and ratio of a row, for a table."""
    return [f"{row.cosine:.6f}", f"{row.error:.2e}", f"{row.ratio:.4f}"]


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One algorithm of a comparison.

    - `rows`: a [`Row`][etpc.Row] for each parameter.
    - `total`: that of all parameters as one vector, so of the update that an optimiser sees; large
        gradients count for more in it.
    - `carry_bytes`: what is passed on from window to window, for the whole batch: the hidden state,
        and the traces where there are any.
    - `program`: the compiled program; `None` for `TBPTT(K)`, which is computed as BPTT of blocks.
    """

    algorithm: Algorithm
    rows: tuple[Row, ...]
    total: Row
    carry_bytes: int
    program: Program | None

    @property
    def name(self) -> str:
        """The algorithm with those of its settings that are not the default."""
        return short_name(self.algorithm)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The result of [`etpc.compare`][]. `print` it for a table."""

    results: tuple[Result, ...]
    notes: tuple[str, ...]
    """What makes the comparison say less than it seems to: zero gradients, silent neurons, traces that
    were not read."""
    tolerance: float
    loss: float

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all results, one after the other."""
        return tuple(row for result in self.results for row in result.rows)

    @property
    def vacuous(self) -> bool:
        """Whether something that should have been compared was zero or silent, or was not used."""
        return bool(self.notes)

    @property
    def ok(self) -> bool:
        """Whether every claim held, and none of them emptily."""
        return not self.vacuous and all(row.held is not False for row in self.rows)

    def __str__(self) -> str:
        columns = ["algorithm", "carry bytes", "parameter", "cosine", "rel. error", "ratio"]
        rows: list[list[str]] = []
        for result in self.results:
            first = [result.name, f"{result.carry_bytes:,}"]
            for row in (*result.rows, result.total):
                rows.append([*first, row.path, *fidelity(row), row.claim, HELD[row.held]])
                first = ["", ""]
        return self._text("against BPTT", [*columns, "claim", "held"], rows)

    def _text(
        self, head: str, columns: list[str], rows: list[list[str]], below: Sequence[str] = ()
    ) -> str:
        outcome = "ok" if self.ok else "NOT ok"
        if self.notes:
            outcome += ": the comparison is vacuous in part"
        outcome += f"  (exact means a relative error of at most {self.tolerance:.0e})"
        notes = [f"note: {text}" for text in self.notes]
        head = f"{head} (loss {self.loss:.6g})"
        return "\n".join([head, "", *table(columns, rows), "", *below, *notes, outcome])

    __repr__ = __str__


class Report(Comparison):
    """The result of [`etpc.verify`][]: a comparison of one algorithm. `print` it for a table."""

    @property
    def program(self) -> Program:
        """The compiled program."""
        program = self.results[0].program
        assert program is not None
        return program

    @property
    def remarks(self) -> tuple[str, ...]:
        """Things that a reader may want to change. The verdict does not depend on them."""
        ops = self.program.plan.ops
        unmarked = dict.fromkeys(p.path for p in ops if p.reason.startswith(UNMARKED))
        text = "not marked, and so without a trace; leave weights= out to give every weight one"
        return (f"{', '.join(unmarked)}: {text}",) if unmarked else ()

    def __str__(self) -> str:
        columns = ["parameter", "cosine", "rel. error", "ratio", "norm", "claim", "held"]
        rows = [
            [row.path, *fidelity(row), f"{row.norm:.3e}", row.claim, HELD[row.held]]
            for row in self.rows
        ]
        head = f"{self.program.algorithm} against BPTT"
        return self._text(head, columns, rows, [f"remark: {text}" for text in self.remarks])

    __repr__ = __str__


def verify(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    algo: Algorithm | str = "d_rtrl",
    *,
    state: Any = None,
    step: StepFunction | None = None,
    weights: Any = None,
    batch_size: int | None = None,
    tolerance: float | None = None,
    reduction: str = "mean",
    mask: Any = None,
    has_aux: bool = False,
) -> Report:
    """Compare the gradient of an algorithm with BPTT, parameter by parameter.

    **Arguments:**

    - `model`, `algo`, `state`, `step`, `weights`: as in [`etpc.compile`][].
    - `xs`, `targets`: a sequence; leading axis T, then B where `batch_size` is given. Take T
        longer than the window (16 by default), or no trace is read.
    - `loss_fn`, `reduction`, `mask`, `has_aux`: as in `value_and_grad` of a
        [`Program`][etpc.Program.value_and_grad].
    - `tolerance`: the largest relative error that counts as exact. By default it follows the least
        precise dtype in which a step computes: 1e-9 in float64, 1e-3 in float32, and the root of the
        precision in less, 0.03 in float16 and 0.09 in bfloat16. What rounding alone explains counts as
        exact too: a difference of at most 64 times the precision, relative to the gradient of all
        parameters (and to `tolerance`, if that is smaller), that is also no larger than what a change of
        the parameters in their last digit makes of this gradient.

    **Returns** a [`Report`][etpc.Report]: `print` shows the table, `.ok` is the verdict.
    It is not ok where a claim of exactness does not hold, and where the comparison says nothing
    because a gradient is zero, no neuron of a layer spikes, or no loss counts after the first window, so
    that no trace was read.

    **Raises** what `etpc.compile` and `value_and_grad` raise.
    """
    options = dict(state=state, step=step, weights=weights, memory=None, tolerance=tolerance)
    options |= dict(batch_size=batch_size, reduction=reduction, mask=mask, has_aux=has_aux)
    found = _compare(model, xs, targets, loss_fn, [resolve(algo)], in_blocks=False, **options)
    return Report(found.results, found.notes, found.tolerance, found.loss)


def compare(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    algos: Sequence[Algorithm | str] = ("d_rtrl", "es_d_rtrl", TBPTT(10), TBPTT(1)),
    *,
    state: Any = None,
    step: StepFunction | None = None,
    weights: Any = None,
    batch_size: int | None = None,
    memory: int | None = None,
    tolerance: float | None = None,
    reduction: str = "mean",
    mask: Any = None,
    has_aux: bool = False,
) -> Comparison:
    """Compare the gradients of algorithms with BPTT, side by side, parameter by parameter.

    **Arguments:**

    - `model`, `state`, `step`, `weights`, `memory`: as in [`etpc.compile`][].
    - `xs`, `targets`, `loss_fn`, `tolerance`, `reduction`, `mask`, `has_aux`: as in
        [`etpc.verify`][].
    - `algos`: algorithms or their names; `TBPTT(K)` or `TBPTT(K, every=W)` for truncated BPTT.
    - `batch_size`: B where the data has a batch axis, `None` where it has none.

    BPTT is computed once.

    **Returns** a [`Comparison`][etpc.Comparison]: `print` shows the table, `.results` holds
    it as data, `.ok` is the verdict, as for a report of [`etpc.verify`][]. What is not claimed to be
    exact cannot fail.

    **Raises** what `etpc.compile` raises, for the first algorithm that it refuses; `etpc.InputError`
    where there is no algorithm.

    ```pycon
    >>> import jax, jax.numpy as jnp, etpc
    >>> def step(w, x, h):
    ...     h = jnp.tanh(w * h + x)
    ...     return h, h
    >>> xs = jax.random.normal(jax.random.key(0), (40, 3))
    >>> def loss(y, target):
    ...     return jnp.sum((y - target) ** 2)
    >>> found = etpc.compare(
    ...     jnp.full(3, 0.9), xs, 0 * xs, loss, ["d_rtrl", etpc.TBPTT(1)], state=jnp.zeros(3),
    ...     step=step,
    ... )
    >>> [(result.name, result.total.claim) for result in found.results]
    [('D_RTRL()', 'exact'), ('TBPTT(1)', 'current step')]

    ```
    """
    if isinstance(algos, str) or not isinstance(algos, Iterable) or not (algos := list(algos)):
        raise InputError(
            f"algos is a list of algorithms or their names, with at least one, not {algos!r}."
        )
    options = dict(state=state, step=step, weights=weights, memory=memory, tolerance=tolerance)
    options |= dict(batch_size=batch_size, reduction=reduction, mask=mask, has_aux=has_aux)
    chosen = [resolve(algo) for algo in algos]
    return _compare(model, xs, targets, loss_fn, chosen, in_blocks=True, **options)


def _compare(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Any,
    algorithms: list[Algorithm],
    *,
    in_blocks: bool,
    state: Any,
    step: Any,
    weights: Any,
    memory: Any,
    tolerance: Any,
    batch_size: Any,
    reduction: str,
    mask: Any,
    has_aux: bool,
) -> Comparison:
    """Each algorithm against BPTT; those that are BPTT of blocks without a program if `in_blocks`."""
    check_reduction(reduction)
    check_tolerance(tolerance)
    batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
    check_data(xs, targets)
    lead = lead_of((xs, targets), batch_size)
    mask = checked_weights("mask", mask, lead)
    options = dict(state=state, step=step, weights=weights, memory=memory)
    compiled = lambda algorithm: compiled_for(xs, batch_size, model, algorithm, **options)
    without = [in_blocks and algorithm.in_blocks for algorithm in algorithms]
    programs = [
        None if no_program else compiled(algorithm)
        for algorithm, no_program in zip(algorithms, without, strict=True)
    ]
    any_program = next((p for p in programs if p is not None), None) or compiled("d_rtrl")
    check_lead(xs, targets, batch_size)
    traced = any_program.plan.analysis.step
    dtype, leaves = precision(traced), traced.model_leaves
    tolerance = default_tolerance(dtype) if tolerance is None else tolerance
    carry = any_program.init(batch_size)
    loss, start = Loss.of(loss_fn, has_aux), full_state(any_program, carry)
    batched, learned = batch_size is not None, traced.initial is not None

    def reverse(window: int | None = None) -> Gradient:
        def run(model: Any, mask: Any) -> tuple[Any, Any]:
            objective = Objective(xs, targets, mask, loss, start, step, batched, learned)
            return gradient_of(model, objective, reduction, window)[:2]

        return Gradient(run, leaves, model, mask, lead)

    def online(program: Program) -> Gradient:
        gradient = program.value_and_grad(loss_fn, reduction, has_aux=has_aux)
        first = program.init(batch_size)

        def run(model: Any, mask: Any) -> tuple[Any, Any]:
            (value, _), grads = gradient(model, xs, targets, first, mask=mask)
            return value, grads

        return Gradient(run, leaves, model, mask, lead)

    reference, steps = reverse(), lead[0]
    results, unread = [], {}
    for algorithm, program in zip(algorithms, programs, strict=True):
        if program is None:
            window = algorithm.lookback or steps
            claim = "exact" if window >= steps else "current step" if window == 1 else "approximate"
            claims = {
                path: "unused" if c.claim == "unused" else claim
                for path, c in any_program.claims.items()
            }
            got, passed_on = reverse(window), carry.state
        else:
            claims = {path: c.claim for path, c in program.claims.items()}
            got, passed_on = online(program), program.init(batch_size)
            unread.setdefault(unread_traces(program, steps, mask), []).append(short_name(algorithm))
        rows = compare_all(got, reference, claims, tolerance, dtype)
        size = sum(a.nbytes for a in jax.tree.leaves(passed_on))
        results.append(Result(algorithm, rows, _total(got, reference, rows), size, program))
    unread.pop(None, None)
    silent = any_program.silent(model, xs, carry, mask=mask)
    notes = [*doubts(any_program, silent, reference)]
    notes += [f"{', '.join(names)}: {text}" for text, names in unread.items()]
    return Comparison(tuple(results), tuple(notes), tolerance, reference.loss)


def compiled_for(xs: Any, batch_size: int | None, model: Any, algo: Any, **options: Any) -> Program:
    """The program of a model for the steps of a sequence.

    **Raises** what `etpc.compile` raises; `InputError` where the sequence seems to have a batch axis
    and no batch size was given, or the other way round.
    """
    inputs = jax.tree.map(lambda a: one_step(a, batch_size), xs)
    try:
        return compile(model, algo, inputs=inputs, batch_size=batch_size or 1, **options)
    except Exception as error:
        blame_batch_axis(error, model, xs, options["state"], options["step"], batch_size)
        raise


def full_state(program: Program, carry: Carry) -> Any:
    """The hidden state of a carry, with the leaves that are no arrays."""
    leaves = program.plan.analysis.step.state_leaves
    return leaves.join(leaves.split(carry.state))


def _total(got: Gradient, want: Gradient, rows: tuple[Row, ...]) -> Row:
    """The row of all parameters together. Its claim holds if the claim of each parameter does."""
    a, b = (np.concatenate([*gradient.values.values()]) for gradient in (got, want))
    claims = {row.claim for row in rows} - {"unused"}
    claim = claims.pop() if len(claims) == 1 else "approximate"
    row = Row.of(TOTAL, a, b, claim)
    if claim != "exact":
        return row
    held = all(row.held is not False for row in rows)
    return dataclasses.replace(row, held=None if held and not row.norm else held)


def short_name(algorithm: Algorithm) -> str:
    """An algorithm with those of its settings that are not the default."""
    settings = algorithm.shown()
    for field in dataclasses.fields(algorithm):
        value = getattr(algorithm, field.name)
        if field.kw_only is True and field.name not in algorithm.main and value != field.default:
            settings.append(f"{field.name}={value!r}")
    return f"{type(algorithm).__name__}({', '.join(settings)})"
