"""Algorithms side by side, each against backpropagation through time."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ._errors import InputError, checked_count
from ._verify import (
    HELD,
    Row,
    StepFunction,
    _bptt,
    compare_all,
    compare_one,
    compiled_for,
    default_tolerance,
    doubts,
    fidelity,
    flat_gradients,
    full_state,
    lead_of,
    rounding,
    verdict,
)
from .algorithms import TBPTT, Algorithm, resolve
from .run import Program
from .run._loss import Loss, check_reduction, checked_weights
from .show import table

TOTAL = "(all)"
"""In the place of a path, in the row of all parameters together."""


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
    """What makes the comparison say less than it seems to: zero gradients, silent neurons."""
    tolerance: float
    loss: float

    @property
    def vacuous(self) -> bool:
        """Whether something that should have been compared was zero or silent."""
        return bool(self.notes)

    @property
    def ok(self) -> bool:
        """Whether every claim held, and none of them emptily."""
        rows = [row for result in self.results for row in result.rows]
        return not self.vacuous and all(row.held is not False for row in rows)

    def __str__(self) -> str:
        columns = ["algorithm", "carry bytes", "parameter", "cosine", "rel. error", "ratio"]
        columns += ["claim", "held"]
        rows = []
        for result in self.results:
            first = [result.name, f"{result.carry_bytes:,}"]
            for row in (*result.rows, result.total):
                rows.append([*first, row.path, *fidelity(row), row.claim, HELD[row.held]])
                first = ["", ""]
        lines = [f"against BPTT (loss {self.loss:.6g})", "", *table(columns, rows), ""]
        lines += verdict(self.ok, self.notes, self.tolerance)
        return "\n".join(lines)

    __repr__ = __str__


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
    if isinstance(algos, str) or not algos:
        raise InputError(
            f"algos is a list of algorithms or their names, with at least one, not {algos!r}."
        )
    check_reduction(reduction)
    chosen = [resolve(algo) for algo in algos]
    batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
    mask = checked_weights("mask", mask, lead_of((xs, targets), batch_size))
    options = dict(state=state, step=step, weights=weights, memory=memory)
    compiled = lambda algorithm: compiled_for(xs, batch_size, model, algorithm, **options)
    programs = [None if algo.in_blocks else compiled(algo) for algo in chosen]
    any_program = next((p for p in programs if p is not None), None) or compiled("d_rtrl")
    if tolerance is None:
        tolerance = default_tolerance(any_program)
    carry = any_program.init(batch_size)
    start = full_state(any_program, carry)
    batched = batch_size is not None
    loss = Loss.of(loss_fn, has_aux)
    arguments = model, xs, targets, loss, start, step, mask, batched, reduction
    value, reference, _ = _bptt(*arguments)
    steps = lead_of((xs, targets), batch_size)[0]
    results = []
    for algorithm, program in zip(chosen, programs, strict=True):
        if program is None:
            window = algorithm.lookback or steps
            _, grads, _ = _bptt(*arguments, window=window)
            rows = _tbptt_rows(any_program, grads, reference, window, steps, tolerance)
            passed_on = carry.state
        else:
            run = program.value_and_grad(loss_fn, reduction, has_aux=has_aux)
            passed_on = program.init(batch_size)
            _, grads = run(model, xs, targets, passed_on, mask=mask)
            rows = compare_all(program, grads, reference, tolerance)
        total = _total(any_program, grads, reference, rows, tolerance)
        size = sum(a.nbytes for a in jax.tree.leaves(passed_on))
        results.append(Result(algorithm, rows, total, size, program))
    notes = doubts(any_program, model, xs, carry, results[0].rows, mask)
    return Comparison(tuple(results), notes, tolerance, float(value))


def _tbptt_rows(
    program: Program, grads: Any, reference: Any, window: int, steps: int, tolerance: float
) -> tuple[Row, ...]:
    claim = "exact" if window >= steps else "current step" if window == 1 else "approximate"
    got, want = (flat_gradients(program, tree) for tree in (grads, reference))
    noise = rounding(program, reference, tolerance)
    return tuple(
        compare_one(
            path,
            got[path],
            want[path],
            "unused" if program.claims[path].claim == "unused" else claim,
            tolerance,
            noise,
        )
        for path in got
    )


def _total(
    program: Program, grads: Any, reference: Any, rows: tuple[Row, ...], tolerance: float
) -> Row:
    got, want = (
        np.concatenate([*flat_gradients(program, tree).values()]) for tree in (grads, reference)
    )
    claims = {row.claim for row in rows} - {"unused"}
    claim = claims.pop() if len(claims) == 1 else "approximate"
    return compare_one(TOTAL, got, want, claim, tolerance)


def short_name(algorithm: Algorithm) -> str:
    """An algorithm with those of its settings that are not the default."""
    settings = algorithm.shown()
    for field in dataclasses.fields(algorithm):
        value = getattr(algorithm, field.name)
        if field.kw_only is True and field.name not in algorithm.main and value != field.default:
            settings.append(f"{field.name}={value!r}")
    return f"{type(algorithm).__name__}({', '.join(settings)})"


__all__ = ["TBPTT", "TOTAL", "Comparison", "Result", "compare"]
