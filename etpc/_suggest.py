"""`etpc.suggest`: which learning rule to take, measured on the user's own model and data."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import numpy as np

from ._compare import short_name
from ._errors import InputError
from ._measured import Batch, Measurement, Online, Reverse, Way, step_ms
from ._progress import show
from ._record import record
from ._trial import Trial
from .algorithms import D_RTRL, ES_D_RTRL, RTRL, TBPTT, Algorithm, CreditRTRL
from .analyse import trace_dtype, uncut_block
from .plan import DEFAULT_MEMORY
from .run import Program
from .show import edits, table
from .trace import StepFunction
from .traces import Full, Site, size_of

NEAR = 0.1
"""Rules whose mean cosines by lag differ by no more than this are taken as equally near to BPTT."""

PROGRESS = 0.95
"""A rule trains about as well as the best one if it lowers the loss by this part of what that one does."""

RTRL_WORK = 10**8
"""RTRL is measured where its traces take at most so many multiplications to move: beyond, a sequence takes minutes."""

UPDATES = 10, 200
"""The training ends after so many passes through the data at most; fewer than the first say nothing."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One rule that [`etpc.suggest`][] measured, or BPTT.

    - `rule`: the algorithm; `None` for BPTT, which all others are compared with.
    - `ms`: the shortest time of one step of the batch, with its gradient, in ms.
    - `carry_bytes`: what is passed on from step to step, for the batch; `None` for BPTT, which keeps all steps.
    - `cosine`: between its gradient of the sequence and that of BPTT, over all parameters.
    - `by_lag`: the same of the parts of the gradient of the last losses that reach back over each of
        `Suggestion.lags`, after a training at the weights with the lowest loss; `nan` where BPTT has no such part.
    - `losses`: before each update of the short training.
    - `exact`: whether every gradient is claimed to be exact.
    """

    name: str
    rule: Algorithm | None
    ms: float
    carry_bytes: int | None
    cosine: float
    by_lag: tuple[float, ...]
    exact: bool
    losses: tuple[float, ...] = ()

    @property
    def mean_cosine(self) -> float:
        """The mean of the cosines by lag; the cosine of the whole gradient where there are none."""
        parts = [c for c in self.by_lag if not math.isnan(c)]
        return sum(parts) / len(parts) if parts else self.cosine

    @property
    def loss(self) -> float | None:
        """The mean loss of the last fifth of the training, infinite where one is NaN; `None` without a training."""
        last = self.losses[-max(1, len(self.losses) // 5) :]
        mean = sum(last) / len(last) if last else None
        return math.inf if mean is not None and math.isnan(mean) else mean


@dataclasses.dataclass(frozen=True, eq=False)
class Suggestion:
    """The result of [`etpc.suggest`][]. `print` it for a table with reasons.

    - `rule`: the algorithm to compile with; `None` where none fits `memory` and `time`.
    - `rows`: a [`Candidate`][etpc.Candidate] for BPTT, and for each rule that was measured.
    - `lags`: the ranges of steps before the last window that `by_lag` of the rows is about.
    - `reasons`: why this rule, and what to change in the network where none is near BPTT or none fits.
    - `left_out`: which rules were not measured, and why.
    """

    rule: Algorithm | None
    rows: tuple[Candidate, ...]
    lags: tuple[tuple[int, int], ...]
    reasons: tuple[str, ...]
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Numbers, texts, lists and dictionaries of them, as `etpc suggest --json` prints them; `None` for a number
        that is not finite."""
        text = lambda rule: None if rule is None else str(rule)
        rows = [
            {**dataclasses.asdict(row), "rule": text(row.rule), "loss": row.loss}
            for row in self.rows
        ]
        fields = dict(lags=self.lags, rows=rows, reasons=self.reasons, left_out=self.left_out)
        return record("etpc-suggestion/1", rule=text(self.rule), **fields)

    def __str__(self) -> str:
        trained = any(row.losses for row in self.rows)
        columns = ["rule", "ms/step", "carry bytes", "cosine"]
        columns += [f"{a}-{b} back" for a, b in self.lags] + ["loss"] * trained
        rows = []
        for row in self.rows:
            size = "all steps" if row.carry_bytes is None else f"{row.carry_bytes:,}"
            cells = [row.name, f"{row.ms:.3f}", size, f"{row.cosine:.3f}"]
            cells += ["-" if math.isnan(c) else f"{c:.2f}" for c in row.by_lag]
            rows.append(cells + ["-" if row.loss is None else f"{row.loss:.4g}"] * trained)
        head = "no rule fits" if self.rule is None else f"suggested: {short_name(self.rule)}"
        below = [*self.reasons, *(f"Not measured: {text}." for text in self.left_out)]
        return "\n".join([head, "", *table(columns, rows), "", *(f"- {text}" for text in below)])

    __repr__ = __str__


def suggest(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    *,
    memory: int | None = None,
    time: float | None = None,
    optimiser: Any = None,
    every: int | None = None,
    state: Any = None,
    step: StepFunction | None = None,
    weights: Any = None,
    batch_size: int | None = None,
    mask: Any = None,
    budget: float = 60.0,
) -> Suggestion:
    """Measure which learning rule suits a model, on its own data.

    Where every gradient of D-RTRL is exact, that is the rule. Otherwise the rules that are left are compiled and
    measured: time and bytes of a step, and how near the gradient is to that of BPTT, by how far it reaches back. The
    suggestion is the fastest of the rules that are about as near as the nearest one; with `optimiser`, of those that
    also train about as well as the best. What is measured holds at the weights of the model, and by lag at those after
    the short training: ask again later in a long one.

    **Arguments:**

    - `model`, `state`, `step`, `weights`: as in [`etpc.compile`][].
    - `xs`, `targets`, `loss_fn`, `batch_size`, `mask`: as in [`etpc.verify`][]: one batch of sequences that are at
        least as long as what has to be remembered.
    - `memory`: at most so many bytes are passed on from step to step, for the batch.
    - `time`: at most so many milliseconds are taken by one step of the batch.
    - `optimiser`: one of Optax. With it the rules train too, from the same weights, on this batch alone.
    - `every`: the number of steps between updates, where they come within a sequence as in [`etpc.online`][];
        windows are as long. By default the weights move once for each sequence.
    - `budget`: so many seconds are taken at most, but for the measurement that runs then.

    Ctrl-C stops earlier, with what has been measured by then.

    **Returns** a [`Suggestion`][etpc.Suggestion]: `print` it, and compile with its `.rule`.

    **Raises** what `etpc.compile` and `value_and_grad` raise; `etpc.InputError` where a limit is not positive.

    ```pycon
    >>> import jax, jax.numpy as jnp, etpc
    >>> def step(w, x, h):
    ...     h = jnp.tanh(w * h + x)
    ...     return h, h
    >>> xs = jax.random.normal(jax.random.key(0), (40, 3))
    >>> def loss(y, target):
    ...     return jnp.sum((y - target) ** 2)
    >>> suggestion = etpc.suggest(jnp.full(3, 0.9), xs, 0 * xs, loss, state=jnp.zeros(3), step=step)
    >>> suggestion.rule
    D_RTRL(window='auto', backprop='cut')
    >>> print(*suggestion.reasons)
    Every gradient of D_RTRL() equals that of BPTT: no influence escapes, and there is nothing to choose.

    ```
    """
    _check_positive(memory=memory, time=time, budget=budget)
    called = dict(state=state, step=step, weights=weights, memory=1 << 62)
    trial = Trial(*(model, xs, targets, loss_fn), **called, batch_size=batch_size, mask=mask)
    batch, cut = Batch(trial, every, optimiser), trial.program(D_RTRL())
    report = _Report(cut, batch, memory, time)
    rules = [D_RTRL()] if cut.exact and memory is time is None else _rules(batch, cut)
    end = monotonic() + budget
    measured_by = end if optimiser is None else end - budget / 3
    try:
        report.add("BPTT", Reverse(batch))
        for n, rule in enumerate(rules):
            if monotonic() > measured_by and len(report.rows) > 1:
                names = ", ".join(map(short_name, rules[n:]))
                report.left_out.append(f"{names}, as the budget of {budget:g} s was spent")
                break
            show(n, len(rules), short_name(rule))
            report.measure(rule, trial.program(rule) if n else cut)
        if optimiser is not None and len(rules) > 1:
            report.train(max(end, monotonic() + budget / 6))
    except KeyboardInterrupt:
        if len(report.rows) < 2:
            raise
        report.left_out.append("what was left when it was interrupted")
    finally:
        show(0, 0, "")
    return report.suggestion()


def _check_positive(**limits: Any) -> None:
    for name, limit in limits.items():
        number = isinstance(limit, int | float | np.number) and not isinstance(limit, bool)
        if limit is not None and not (number and limit > 0):
            raise InputError(f"{name} must be a number above zero, not {limit!r}.")


def _rules(batch: Batch, cut: Program) -> list[Algorithm]:
    """The rules that the claims leave open: D-RTRL first, then those that are suggested most often."""
    w, steps = batch.window, batch.steps
    low_rank, decay = ES_D_RTRL(rank=4, window=w), ES_D_RTRL(decay=0.99)
    if cut.exact:  # and a limit is given
        return [D_RTRL(), low_rank, decay, TBPTT(1)]
    behind = max(2 * w, 8)
    truncated = TBPTT(2 * behind if 4 * behind <= steps else behind, every=w)
    full, look_back = D_RTRL(window=w, backprop="full"), D_RTRL(window=w, lookback=behind)
    whole = [RTRL(window=w)] if _rtrl_work(batch, cut) <= RTRL_WORK else []
    rules = [D_RTRL(), full, look_back, CreditRTRL(window=w), low_rank, truncated, TBPTT(1)]
    return [*rules, *whole, decay]


def _rtrl_work(batch: Batch, cut: Program) -> int:
    """How many multiplications move the traces of RTRL once."""
    analysis, work = cut.plan.analysis, 0
    for op in analysis.ops:
        if analysis.reach[op.number].role == "state":
            block = uncut_block(analysis, op.number)
            work += block * size_of(Full(), Site(op.kind, block, trace_dtype(analysis, op)))
    return work * (batch.size or 1)


class _Report:
    """What has been measured, and the suggestion that follows from it."""

    def __init__(self, cut: Program, batch: Batch, memory: int | None, time: float | None):
        self.cut, self.batch, self.memory, self.time = cut, batch, memory, time
        self.rows: list[Candidate] = []
        self.ways: list[Way] = []
        self.left_out: list[str] = []
        self.moved_to: list[str] = []
        self._reference: Measurement | None = None

    def measure(self, rule: Algorithm, program: Program) -> None:
        """Add a rule, unless what it carries is too large."""
        size = program.memory(self.batch.size).total
        if size <= (self.memory or DEFAULT_MEMORY):
            self.add(short_name(rule), Online(self.batch, program), rule, size, program.exact)
        else:
            self.left_out.append(f"{short_name(rule)}, which carries {size:,} bytes")

    def add(
        self, name: str, way: Way, rule: Any = None, size: Any = None, exact: bool = True
    ) -> None:
        found = Measurement(way, self.batch.trial.leaves)
        self._reference = self._reference or found
        cosines = found.cosines(self._reference)
        self.rows.append(Candidate(name, rule, step_ms(way), size, *cosines, exact))
        self.ways.append(way)

    def train(self, end: float) -> None:
        """Train all in turns until the budget is spent, so that each has as many updates."""
        training = [n for n, row in enumerate(self.rows) if row.rule or not self.batch.every]
        for done in range(UPDATES[1]):
            if monotonic() > end and done:
                break
            show(20 * done // UPDATES[1], 20, "training")
            losses = {n: self.ways[n].update() for n in training}
            for n, loss in losses.items():
                row = self.rows[n]
                self.rows[n] = dataclasses.replace(row, losses=(*row.losses, loss))
        if len(self.rows[-1].losses) >= UPDATES[0]:
            self._measure_again(min(training, key=lambda n: _loss_of(self.rows[n])))

    def _measure_again(self, lowest: int) -> None:
        """The cosines by lag at the weights that one of the rows has trained: those at the first ones say little of
        a later training."""
        leaves, at = self.batch.trial.leaves, self.ways[lowest].trained
        found: list[Measurement] = []
        for way in self.ways:
            way.move_to(at)
            found.append(Measurement(way, leaves))
        for n, measurement in enumerate(found):
            _, by_lag = measurement.cosines(found[0])
            self.rows[n] = dataclasses.replace(self.rows[n], by_lag=by_lag)
        name = self.rows[lowest].name
        self.moved_to = [f"The cosines by lag are those at the weights that {name} has trained."]

    def suggestion(self) -> Suggestion:
        bptt, *rules = self.rows
        fitting = [row for row in rules if self.time is None or row.ms <= self.time]
        reasons = [*self.moved_to, *([] if self.cut.exact else self._escaping(rules))]
        best = None
        if not fitting:
            reasons.append(self._misfit(rules))
        elif self.cut.exact and fitting[0].rule == D_RTRL():
            best = fitting[0]
            reasons.append(EXACT)
        else:
            best, why = _best(fitting)
            reasons += why
        if best is not None and not best.exact and not self.batch.every:
            reasons.append(
                f"BPTT takes {bptt.ms:.3g} ms a step and {best.name} {best.ms:.3g}. BPTT is exact: take it if "
                "all sequences are about so long, and their steps fit into memory."
            )
        if best is None or best.mean_cosine < 0.8:
            analysis, ops = self.cut.plan.analysis, self.cut.ops
            changes = dict.fromkeys(t for p in ops for t in edits(analysis, p.op.number))
            reasons += [f"A change of the network: {text}" for text in changes]
        rule = None if best is None else best.rule
        return Suggestion(
            *(rule, tuple(self.rows), tuple(self.batch.lags)), tuple(reasons), tuple(self.left_out)
        )

    def _escaping(self, rules: Sequence[Candidate]) -> list[str]:
        """What D-RTRL ignores, and whether it matters."""
        paths = list(dict.fromkeys(e for p in self.cut.ops for e in p.escapes))
        claims = self.cut.claims
        alone = ", ".join(path for path in claims if claims[path].claim == "current step")
        texts = [f"Under D-RTRL these learn from the current step alone: {alone}."] if alone else []
        if not paths:
            return texts
        more = f", and {len(paths) - 2} more paths" if len(paths) > 2 else ""
        text = " ".join([f"D-RTRL ignores {'; '.join(paths[:2])}{more}.", *texts])
        cut = next((row for row in rules if row.rule == D_RTRL()), None)
        if cut is None or len(rules) < 2:
            return [text]
        best = max(row.mean_cosine for row in rules)
        if cut.mean_cosine >= best - NEAR:
            return [f"{text} On this data that matters little."]
        w = self.batch.window
        full = next((row for row in rules if row.rule == D_RTRL(window=w, backprop="full")), cut)
        over = "mostly within" if full.mean_cosine >= best - NEAR else "over more than"
        lags = zip(cut.by_lag, self.batch.lags, strict=True)
        far = [f"{c:.2f} from {a} to {b} steps back" for c, (a, b) in lags if c < best - NEAR]
        why = f"Influence passes from unit to unit {over} {w} steps: the cosine of D-RTRL is {', '.join(far[:3])}."
        return [text, why]

    def _misfit(self, rules: Sequence[Candidate]) -> str:
        """That no rule fits, with those that come nearest."""
        limits = [] if self.memory is None else [f"memory={self.memory:,}"]
        limits += [] if self.time is None else [f"time={self.time:g}"]
        fast = min(rules, key=lambda row: row.ms, default=None)
        nearest = f" The fastest is {fast.name}, with {fast.ms:.3g} ms a step." if fast else ""
        return (
            f"No rule fits {' and '.join(limits)}.{nearest} Take a smaller batch, fewer units, or fewer weights with "
            "a trace (`weights=`)."
        )


EXACT = "Every gradient of D_RTRL() equals that of BPTT: no influence escapes, and there is nothing to choose."


def _best(rules: Sequence[Candidate]) -> tuple[Candidate, list[str]]:
    """The rule to take of those that fit, and why."""
    good, why = list(rules), []
    count = len(rules[0].losses)
    if 0 < count < UPDATES[0]:
        why = [f"The budget left time for {count} updates of each, too few to compare losses."]
    elif count:
        start, lowest = rules[0].losses[0], min(map(_loss_of, rules))
        enough = start - PROGRESS * (start - lowest)
        good = [row for row in rules if _loss_of(row) <= enough] or good
        text = f"In {count} updates on this batch the loss goes from {start:.4g} to {lowest:.4g}, or nearly, under"
        why = [f"{text} {', '.join(row.name for row in good)}."]
        if any(row.rule == TBPTT(1) for row in good):
            why.append(
                "The immediate gradient, TBPTT(1), trains as well: so far no memory is needed."
            )
    followed = [max(column) > NEAR for column in zip(*(row.by_lag for row in good), strict=True)]
    blind = [
        row for row in good if any(f and c == 0 for f, c in zip(followed, row.by_lag, strict=True))
    ]
    if 0 < len(blind) < len(good):
        names = ", ".join(row.name for row in blind)
        why.append(f"Another of these follows BPTT further back, where {names} gives nothing.")
        good = [row for row in good if row not in blind]
    nearest = max(good, key=lambda row: row.mean_cosine)
    near = [row for row in good if row.mean_cosine >= nearest.mean_cosine - NEAR]
    best = min(near, key=lambda row: row.ms)
    text = f"{best.name} has a mean cosine by lag of {best.mean_cosine:.2f} with BPTT"
    if best is nearest:
        return best, [*why, f"{text}, the highest of these."]
    other = f"{nearest.name} ({nearest.mean_cosine:.2f})"
    return best, [*why, f"{text}, near the highest, that of {other}, and is faster."]


def _loss_of(row: Candidate) -> float:
    return math.inf if row.loss is None else row.loss
