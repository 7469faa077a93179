"""`etpc.verify` and `etpc.compare`: gradients against backpropagation through time."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..algorithms import TBPTT, Algorithm, resolve
from ..errors import Code, InputError
from ..files.record import record
from ..gradient.agreement import (
    TOTAL,
    KnownGradient,
    Row,
    Vectors,
    cosine,
    remarks_on,
    whole,
)
from ..plan import Pass
from ..run import Program, unread_traces
from ..trace import StepFunction
from ._progress import progress
from ._trial import Trial

HIDDEN = 0.01
"""By how much the lowest cosine of a parameter is below the cosine of all together, to be shown once more."""

HELD = {True: "yes", False: "NO", None: "-"}


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One gradient of a comparison.

    - `algorithm`: `None` for a gradient that was given.
    - `rows`: a [`Row`][etpc.Row] for each parameter.
    - `total`: the row of all parameters as one vector, so of the update that an optimiser sees; large
        gradients count for more in it.
    - `carry_bytes`: what is passed on from window to window, for the whole batch: the hidden state,
        and the traces where there are any; `None` where it is not known.
    - `program`: the compiled program; `None` for `TBPTT(K)`, which is computed as BPTT of blocks, and for a
        gradient that was given.
    - `values`: the gradient of each parameter as a vector, by its path.
    - `label`: the name that was given; empty for an algorithm without one.
    """

    algorithm: Algorithm | None
    rows: tuple[Row, ...]
    total: Row
    carry_bytes: int | None
    program: Program | None
    values: Vectors = dataclasses.field(default_factory=dict[str, np.ndarray], repr=False)
    label: str = ""

    @property
    def name(self) -> str:
        """The name that was given; or the algorithm, with those of its settings that are not the default."""
        return self.label or ("" if self.algorithm is None else short_name(self.algorithm))

    @property
    def worst(self) -> Row:
        """The row with the lowest cosine. In `total`, a large gradient hides a small one."""
        known = [row for row in self.rows if row.cosine == row.cosine]
        return min(known, key=lambda row: row.cosine, default=self.total)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The result of [`etpc.compare`][]. `print` it for a table.

    - `results`: a [`Result`][etpc.Result] for each gradient.
    - `notes`: what makes the comparison say less than it seems to: zero gradients, silent neurons, traces that
        were not read.
    - `tolerance`: the largest relative error that counts as exact.
    - `loss`: that of the sequence.
    - `trial`: what is compared: the model and the sequence.
    """

    results: tuple[Result, ...]
    notes: tuple[str, ...]
    tolerance: float
    loss: float
    trial: Trial | None = dataclasses.field(default=None, repr=False)

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

    @property
    def against(self) -> str:
        """What the gradients are compared with: BPTT of the model, or of a reference."""
        return "BPTT of the reference" if self.trial and self.trial.has_reference else "BPTT"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Things that a reader should know. The verdict does not depend on them."""
        approximate = [r for r in self.rows if r.claim in ("approximate", "current step")]
        found = () if self.trial is None else (*self.trial.remarks, *self.trial.unused)
        return (*found, *remarks_on(row.cosine for row in approximate))

    @cached_property
    def between(self) -> Mapping[str, Mapping[str, float]]:
        """The cosine of each gradient with each other, over all parameters, by their names."""
        totals = {result.name: whole(result.values) for result in self.results}
        return {a: {b: cosine(totals[a], totals[b]) for b in totals} for a in totals}

    @cached_property
    def by_lag(self) -> Mapping[str, Mapping[tuple[int, int], float]]:
        """The cosine with BPTT by how far back the gradient reaches, over all parameters, by the name of the result.

        The sequence is cut into windows of W steps, and a key is `(a, b)`: of the losses of a window, the part
        of the gradient from uses of the parameters `a` to `b` steps before the end of that window, in units of W.
        Steps that fill no window are left out. Of a rule it is the cosine of that part of its own gradient, for which
        it begins with fresh traces at several steps. A gradient that was given is known as a whole alone: then it is
        the cosine of what is left of both when the other parts of BPTT's gradient are projected out, in which an
        error of any part counts. `nan` where one of them is zero.

        It is computed when it is first asked for: some 30 gradients of BPTT, and for each program as many windows.
        """
        from ._lags import cosines_by_lag

        assert self.trial is not None
        if self.trial.objective.begins is not None:
            return {}  # what lies so many steps back may be of another stream
        given = [
            (result.algorithm, result.program, whole(result.values)) for result in self.results
        ]
        names = progress([result.name for result in self.results], "by lag")
        return dict(zip(names, cosines_by_lag(self.trial, given), strict=True))

    def as_dict(self) -> dict[str, Any]:
        """What it says, ready for JSON: plain numbers, and `None` for those that are not finite."""
        results = [
            {
                "name": result.name,
                "algorithm": None if result.algorithm is None else str(result.algorithm),
                "carry_bytes": result.carry_bytes,
                "parameters": [dataclasses.asdict(row) for row in result.rows],
                "total": dataclasses.asdict(result.total),
                "worst": result.worst.path,
            }
            for result in self.results
        ]
        return record(
            "etpc-comparison/1",
            loss=self.loss,
            tolerance=self.tolerance,
            ok=self.ok,
            against=self.against,
            notes=self.notes,
            remarks=self.remarks,
            results=results,
            between=self.between,
        )

    def __str__(self) -> str:
        columns = ["algorithm", "carry bytes", "parameter", "cosine", "rel. error", "ratio"]
        rows: list[list[str]] = []
        for result in self.results:
            size = "-" if result.carry_bytes is None else f"{result.carry_bytes:,}"
            first = [result.name, size]
            shown = [(row.path, row) for row in (*result.rows, result.total)]
            if result.worst.cosine < result.total.cosine - HIDDEN:
                shown.append((f"(worst: {result.worst.path})", result.worst))
            for path, row in shown:
                rows.append([*first, path, *row.cells, row.claim, HELD[row.held]])
                first = ["", ""]
        head = f"against {self.against}"
        return self._text(head, [*columns, "claim", "held"], rows, self._between())

    def _between(self) -> list[str]:
        """A table of the cosines between the results."""
        from ..show import table

        if len(self.results) < 2:
            return []
        names = list(self.between)
        rows = [[a, *(f"{self.between[a][b]:.4f}" for b in names)] for a in names]
        return [*table(["cosine between", *names], rows), ""]

    def _text(
        self, head: str, columns: list[str], rows: list[list[str]], below: Sequence[str] = ()
    ) -> str:
        from ..show import table

        outcome = "ok" if self.ok else "NOT ok"
        if self.notes:
            outcome += ": the comparison is vacuous in part"
        outcome += f"  (exact means a relative error of at most {self.tolerance:.0e})"
        notes = [f"remark: {text}" for text in self.remarks]
        notes += [f"note: {text}" for text in self.notes]
        head = f"{head} (loss {self.loss:.6g})"
        return "\n".join([head, "", *table(columns, rows), "", *below, *notes, outcome])

    __repr__ = __str__


class Report(Comparison):
    """The result of [`etpc.verify`][]: a comparison of one algorithm. `print` it for a table.

    - `results`, `notes`, `tolerance`, `loss`, `trial`: as of a [`Comparison`][etpc.Comparison], with one result.
    """

    @property
    def program(self) -> Program:
        """The compiled program."""
        program = self.results[0].program
        assert program is not None
        return program

    @property
    def remarks(self) -> tuple[str, ...]:
        """Things that a reader may want to change or should know. The verdict does not depend on them."""
        ops = self.program.plan.ops
        unmarked = dict.fromkeys(p.path for p in ops if p.code is Code.NOT_MARKED)
        text = "not marked, and so without a trace; leave weights= out to give every weight one"
        return (*((f"{', '.join(unmarked)}: {text}",) if unmarked else ()), *super().remarks)

    def __str__(self) -> str:
        columns = ["parameter", "cosine", "rel. error", "ratio", "norm", "claim", "held"]
        rows = [
            [row.path, *row.cells, f"{row.norm:.3e}", row.claim, HELD[row.held]]
            for row in self.rows
        ]
        return self._text(f"{self.program.algorithm} against {self.against}", columns, rows)

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
    reference: Any = None,
    passes: Collection[str | Pass] | None = None,
    begins: Any = None,
) -> Report:
    """Compare the gradient of an algorithm with BPTT, parameter by parameter.

    **Arguments:**

    - `model`, `algo`, `state`, `step`, `weights`, `passes`: as in [`etpc.compile`][].
    - `xs`, `targets`: a sequence; leading axis T, then B where `batch_size` is given. Take T
        longer than the window (16 by default), or no trace is read.
    - `loss_fn`, `reduction`, `mask`, `begins`, `has_aux`: as in `value_and_grad` of a
        [`Program`][etpc.Program.value_and_grad]. Of data with `begins` there are no cosines by lag.
    - `tolerance`: the largest relative error that counts as exact. By default it follows the least
        precise dtype in which a step computes: 1e-9 in float64, 1e-3 in float32, and the root of the
        precision in less, 0.03 in float16 and 0.09 in bfloat16. What rounding alone explains counts as
        exact too: a difference of at most 64 times the precision, relative to the gradient of all
        parameters (and to `tolerance`, if that is smaller), that is also no larger than what a change of
        the parameters in their last digit makes of this gradient.
    - `reference`: of what BPTT is taken, where it is not the model itself: another model with the same
        parameters, or some of them, which is called in the same way; or a step function `(model, x, state) -> (y,
        new_state)` for this one. Where credit goes back through feedback weights, BPTT of the model goes back through
        them too: pass a step with the true weights in their place for the true gradient. With a reference, claims,
        which are about BPTT of the model itself, are not judged.

    **Returns** a [`Report`][etpc.Report]: `print` shows the table, `.ok` is the verdict.
    It is not ok where a claim of exactness does not hold, and where the comparison says nothing
    because a gradient is zero, no neuron of a layer spikes, or no loss counts after the first window, so
    that no trace was read.

    **Raises** what `etpc.compile` and `value_and_grad` raise.
    """
    called: Any = dict(state=state, step=step, weights=weights, batch_size=batch_size)
    judged: Any = dict(tolerance=tolerance, reduction=reduction, mask=mask, has_aux=has_aux)
    more: Any = dict(reference=reference, passes=passes, begins=begins)
    trial = Trial(model, xs, targets, loss_fn, **called, **judged, **more)
    found = _compare(trial, {"": resolve(algo)}, in_blocks=False)
    return Report(found.results, found.notes, found.tolerance, found.loss, trial)


def compare(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    algos: Sequence[Any] | Mapping[str, Any] = ("d_rtrl", "es_d_rtrl", TBPTT(10), TBPTT(1)),
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
    reference: Any = None,
) -> Comparison:
    """Compare the gradients of algorithms with BPTT, side by side, parameter by parameter.

    **Arguments:**

    - `model`, `state`, `step`, `weights`, `memory`: as in [`etpc.compile`][].
    - `xs`, `targets`, `loss_fn`, `tolerance`, `reduction`, `mask`, `has_aux`, `reference`: as in
        [`etpc.verify`][].
    - `algos`: algorithms or their names; `TBPTT(K)` or `TBPTT(K, every=W)` for truncated BPTT. Gradients that
        something else computed go in with a name, as `{"mine": gradient}`: in the list, or in the place of
        it; [`etpc.check`][] says what forms they may have. Of these nothing is claimed, and a parameter that
        one of them does not give counts as zero.
    - `batch_size`: B where the data has a batch axis, `None` where it has none.

    BPTT is computed once. On a terminal, a bar shows the progress.

    **Returns** a [`Comparison`][etpc.Comparison]: `print` shows the table, `.results` holds
    it as data, `.ok` is the verdict, as for a report of [`etpc.verify`][]. What is not claimed to be
    exact cannot fail.

    **Raises** what `etpc.compile` raises, for the first algorithm that it refuses; `etpc.InputError`
    where there is no algorithm, or a gradient does not fit the model.

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
    chosen = _chosen(algos)
    called: Any = dict(state=state, step=step, weights=weights, batch_size=batch_size)
    judged: Any = dict(tolerance=tolerance, reduction=reduction, mask=mask, has_aux=has_aux)
    more: Any = dict(memory=memory, reference=reference)
    trial = Trial(model, xs, targets, loss_fn, **called, **judged, **more)
    return _compare(trial, chosen, in_blocks=True)


def _chosen(algos: Any) -> dict[str, Any]:
    """Algorithms and gradients by their names. **Raises** `InputError` where there are none, or two have one name."""
    groups = [algos] if isinstance(algos, Mapping) else algos
    if isinstance(algos, str) or not isinstance(groups, Iterable) or not (groups := [*groups]):
        raise InputError(
            f"algos is a list of algorithms or their names, with at least one, not {algos!r}."
        )
    chosen: dict[str, Any] = {}
    for group in groups:
        named = group if isinstance(group, Mapping) else {"": resolve(group)}
        for name, algo in named.items():
            algo = resolve(algo) if isinstance(algo, Algorithm | str) else algo
            name = str(name) or short_name(algo)
            if name in chosen:
                raise InputError(
                    f"algos has {name!r} twice. Give each its own name: {{'name': gradient}}."
                )
            chosen[name] = algo
    return chosen


def _compare(trial: Trial, chosen: Mapping[str, Any], *, in_blocks: bool) -> Comparison:
    """Each algorithm or gradient against BPTT; those that are BPTT of blocks without a program if `in_blocks`."""
    results, unread = [], {}
    for name in progress(list(chosen), "comparing"):
        algorithm = chosen[name]
        if isinstance(algorithm, Algorithm):
            found = trial.of(algorithm, in_blocks)
        else:
            found, algorithm = trial.given(algorithm), None
        rows = trial.rows(found)
        result = Result(
            *(algorithm, rows, _total(found.gradient, trial.reference, rows), found.carry_bytes),
            *(found.program, found.gradient.values, name),
        )
        results.append(result)
        if found.program is not None:
            why = unread_traces(found.program, trial.steps, trial.mask)
            unread.setdefault(why, []).append(result.name)
    unread.pop(None, None)
    notes = [*trial.doubts()]
    notes += [f"{', '.join(names)}: {why}" for why, names in unread.items()]
    return Comparison(tuple(results), tuple(notes), trial.tolerance, trial.reference.loss, trial)


def _total(got: KnownGradient, want: KnownGradient, rows: tuple[Row, ...]) -> Row:
    """The row of all parameters together. Its claim holds if the claim of each parameter does."""
    a, b = (whole(g.values, [row.path for row in rows]) for g in (got, want))
    claims = {row.claim for row in rows} - {"unused"}
    less = claims - {"exact"}
    claim = "approximate" if len(less) > 1 or not claims else (less or claims).pop()
    row = Row.of(TOTAL, a, b, claim)
    if claim != "exact":
        return row
    held = all(row.held is not False for row in rows)
    shown = row.norm > 0 and np.isfinite(row.norm)
    return dataclasses.replace(row, held=held if shown or not held else None)


def short_name(algorithm: Algorithm) -> str:
    """An algorithm with those of its settings that are not the default."""
    settings = algorithm.shown()
    for field in dataclasses.fields(algorithm):
        value = getattr(algorithm, field.name)
        if field.kw_only is True and field.name not in algorithm.main and value != field.default:
            settings.append(f"{field.name}={value!r}")
    return f"{type(algorithm).__name__}({', '.join(settings)})"
