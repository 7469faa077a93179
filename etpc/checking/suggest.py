"""`etpc.suggest`: which learning rule to take, measured on the user's own model and data."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from time import monotonic
from typing import Any

import numpy as np

from ..algorithms import D_RTRL, ES_D_RTRL, RTRL, TBPTT, Algorithm, CreditRTRL
from ..analyse import trace_dtype, uncut_block
from ..errors import InputError, checked_count
from ..files.record import record
from ..forms import Full, Site, size_of
from ..gradient.agreement import not_finite
from ..gradient.data import is_real
from ..plan import DEFAULT_MEMORY
from ..run import Program, check_optimizer
from ..show import edits, table
from ..trace import StepFunction
from ._lags import Batch, Measurement, Online, Reverse, Way, step_ms
from ._progress import show
from ._trial import Trial
from .compare import short_name

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
    def nearness(self) -> str:
        """`mean_cosine` in words."""
        by_lag = "mean cosine by lag" if any(not math.isnan(c) for c in self.by_lag) else "cosine"
        return f"a {by_lag} of {self.mean_cosine:.2f} with BPTT"

    @property
    def loss(self) -> float | None:
        """The mean loss of the last fifth of the training, infinite where one is NaN; `None` without a training."""
        last = self.losses[-max(1, len(self.losses) // 5) :]
        mean = sum(last) / len(last) if last else None
        return math.inf if mean is not None and math.isnan(mean) else mean


@dataclasses.dataclass(frozen=True, eq=False)
class Suggestion:
    """The result of [`etpc.suggest`][]. `print` it for a table with reasons.

    - `rule`: the algorithm to compile with; `None` where none fits `memory` and `time`, and where nothing could be
        compared.
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
        head = f"suggested: {'no rule' if self.rule is None else short_name(self.rule)}"
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
    - `budget`: so many seconds are taken, or up to a tenth more; up to a third of them is for training. Each piece
        of work begins only if it fits, by the time that those before it took. More is taken where BPTT and the first
        rule need more, which are always measured, and where a rule takes longer to compile than all before it.

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
    for name, limit in (("memory", memory), ("time", time), ("budget", budget)):
        if limit is not None and not (is_real(limit) and limit > 0):
            raise InputError(f"{name} must be a number above zero, not {limit!r}.")
    end = monotonic() + budget
    called = dict(state=state, step=step, weights=weights, memory=1 << 62)
    trial = Trial(*(model, xs, targets, loss_fn), **called, batch_size=batch_size, mask=mask)
    cut = trial.program(D_RTRL())  # which checks the data
    batch = _batch(trial, every, optimiser)
    report = _Report(cut, batch, memory, time, budget, end)
    rules = [D_RTRL()] if cut.exact and memory is time is None else _rules(batch, cut)
    if not report.reference.comparable:
        rules = rules[:1] if cut.exact else []
    try:
        for n, rule in enumerate(rules):
            if len(report.rows) > 1 and monotonic() + report.compiling + report.training() > end:
                names = ", ".join(map(short_name, rules[n:]))
                report.unmeasured(f"{names}, as the budget of {budget:g} s was spent")
                break
            show(n, len(rules), short_name(rule))
            report.measure(rule)
        if optimiser is not None and len(report.rows) > 2:
            report.train()
    except KeyboardInterrupt:
        if len(report.rows) < 2:
            raise
        report.unmeasured("what was left when it was interrupted")
    finally:
        show(0, 0, "")
    return report.suggestion()


def _batch(trial: Trial, every: Any, optimiser: Any) -> Batch:
    """The steps of a trial until the last loss that counts, in windows that suit them, or of `every` steps."""
    every = None if every is None else checked_count("every", every)
    if optimiser is not None:
        check_optimizer("optimiser", optimiser)
    steps = trial.steps
    if trial.mask is not None:
        counting = np.flatnonzero(np.asarray(trial.mask).reshape(steps, -1).any(1))
        if not counting.size:
            raise InputError("mask is zero everywhere, so there is no loss to take a gradient of.")
        steps = int(counting[-1]) + 1
    return Batch(trial, every or _window(steps), steps, every, optimiser)


def _window(steps: int) -> int:
    """About 16 steps, fewer so that there are eight windows; a divisor of all steps where one is near."""
    wanted = max(1, min(16, steps // 8))
    near = [w for w in range(-(-wanted // 2), 2 * wanted + 1) if steps % w == 0]
    return min(near, key=lambda w: abs(math.log(w / wanted)), default=wanted)


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
    """What has been measured, BPTT first, and the suggestion that follows from it.

    - `end`, `latest`: when the budget is spent, and when it is by a tenth more.
    - `compiling`: the seconds in which a rule was compiled, at most.
    - `missing`: whether rules were not measured that may fit the limits.
    """

    def __init__(
        self, cut: Program, batch: Batch, memory: Any, time: Any, budget: float, end: float
    ):
        self.cut, self.batch, self.memory, self.time = cut, batch, memory, time
        bounds = [(reach - 1) * batch.window for reach in batch.reaches]
        self.lags = [*pairwise(bounds)]
        """The ranges of steps before the last window."""
        self.budget, self.end, self.latest = budget, end, end + budget / 10
        self.compiling, self.missing = 0.0, False
        self.rows: list[Candidate] = []
        self.ways: list[Way] = []
        self.left_out: list[str] = []
        bptt = Reverse(batch)
        self.reference = Measurement(bptt)
        self.add(bptt, self.reference, None, None, True)
        self.remarks = [
            f"{text[0].upper()}{text[1:]}. Scale its weights with `etpc.nn.init_from_data`."
            for text in batch.trial.silent()
        ]
        if not self.reference.comparable:
            where = [f", as {place} is" for place in not_finite(*batch.trial.data)[:1]]
            why = "".join(["NaN or infinite", *where] if not self.reference.finite else ["zero"])
            self.remarks.append(f"No rule can be compared: the gradient of BPTT is {why}.")

    def unmeasured(self, text: str) -> None:
        self.left_out.append(text)
        self.missing = True

    def training(self, more: float = 0.0) -> float:
        """How many seconds the training takes, and the measurement after it; a third of the budget at most."""
        each = (self._seconds(n, UPDATES[1] + way.passes) for n, way in enumerate(self.ways))
        return 0.0 if self.batch.optimiser is None else min(self.budget / 3, sum(each) + more)

    def _seconds(self, n: int, passes: int = 1) -> float:
        return passes * self.rows[n].ms * self.batch.steps / 1e3

    def measure(self, rule: Algorithm) -> None:
        """Add a rule, unless what it carries is too large or it would take too long."""
        begun, name = monotonic(), short_name(rule)
        program = self.cut if rule == D_RTRL() else self.batch.trial.program(rule)
        size = program.memory(self.batch.size).total
        if size > (self.memory or DEFAULT_MEMORY):
            self.left_out.append(f"{name}, which carries {size:,} bytes")
            return
        way = Online(self.batch, program)
        way.seconds(0)
        self.compiling = max(self.compiling, monotonic() - begun)
        a_pass = way.seconds(1) * self.batch.count
        if monotonic() + a_pass < self.latest:
            a_pass = way.seconds(self.batch.count)
        needed = a_pass * way.passes + self.training(a_pass * (UPDATES[1] + way.passes))
        if len(self.rows) > 1 and monotonic() + needed > self.latest:
            passes = f"{way.passes} passes through the data of {a_pass:.3g} s each"
            self.unmeasured(f"{name}, as the budget of {self.budget:g} s is too short for {passes}")
            return
        way.move_to(self.batch.start)
        found = Measurement(way)
        if self.reference.comparable and not found.finite:
            self.left_out.append(f"{name}, whose gradient is NaN or infinite")
        else:
            self.add(way, found, rule, size, program.exact)

    def add(self, way: Way, found: Measurement, rule: Any, size: Any, exact: bool) -> None:
        name, cosines = short_name(rule) if rule else "BPTT", found.cosines(self.reference)
        self.rows.append(Candidate(name, rule, step_ms(way), size, *cosines, exact))
        self.ways.append(way)

    def train(self) -> None:
        """Train all in turns until the budget is spent, so that each has as many updates."""
        training = [n for n, row in enumerate(self.rows) if row.rule or not self.batch.every]
        end = min(max(self.end, monotonic() + self.budget / 10), self.latest)
        seconds = sum(self._seconds(n) for n in training)
        again = sum(self._seconds(n, way.passes) for n, way in enumerate(self.ways))
        for done in range(UPDATES[1]):
            begun = monotonic()
            if begun + seconds + again > end:
                break
            show(20 * done // UPDATES[1], 20, "training")
            losses = {n: self.ways[n].update() for n in training}
            for n, loss in losses.items():
                row = self.rows[n]
                self.rows[n] = dataclasses.replace(row, losses=(*row.losses, loss))
            seconds = monotonic() - begun
        lowest = min(training, key=lambda n: _loss_of(self.rows[n]))
        count, at = len(self.rows[-1].losses), "first weights"
        if count < UPDATES[0]:
            text = f"The budget left time for {count} updates of each, too few to compare losses."
            self.remarks.append(text)
        elif _trains(self.rows[lowest]) and self._measured_again(lowest):
            at = f"weights that {self.rows[lowest].name} has trained"
        self.remarks.append(f"The cosines by lag are those at the {at}.")

    def _measured_again(self, lowest: int) -> bool:
        """Whether there are cosines by lag at the weights that one of the rows has trained: those at the first ones
        say little of a later training."""
        at = self.ways[lowest].trained
        found: list[Measurement] = []
        for n, way in enumerate(self.ways):
            if monotonic() + self._seconds(n, way.passes) > self.latest:
                return False
            way.move_to(at)
            found.append(Measurement(way))
            if not found[0].comparable:
                return False
        for n, measurement in enumerate(found):
            _, by_lag = measurement.cosines(found[0])
            self.rows[n] = dataclasses.replace(self.rows[n], by_lag=by_lag)
        return True

    def suggestion(self) -> Suggestion:
        bptt, *rules = self.rows
        fitting = [row for row in rules if self.time is None or row.ms <= self.time]
        reasons = [*self.remarks, *([] if self.cut.exact else self._escaping(rules))]
        best = None
        if self.cut.exact and fitting and fitting[0].rule == D_RTRL():
            best = fitting[0]
            reasons.append(EXACT)
        elif self.reference.comparable and not fitting:
            reasons.append(self._misfit(rules))
        elif self.reference.comparable and self.missing and len(rules) == 1:
            text = f"{rules[0].name} is the only rule that was measured, with {rules[0].nearness}"
            reasons.append(f"{text}. Take a larger budget= to compare it with others.")
        elif self.reference.comparable:
            best, why = _best(fitting, self.lags)
            reasons += why
        if best is not None and not best.exact and not self.batch.every:
            reasons.append(
                f"BPTT takes {bptt.ms:.3g} ms a step and {best.name} {best.ms:.3g}. BPTT is exact: take it if "
                "all sequences are about so long, and their steps fit into memory."
            )
            if best.rule and best.rule.window == self.batch.window:
                reasons.append(f"No windows but those of {best.rule.window} steps were measured.")
        if self.reference.comparable and (best.mean_cosine < 0.8 if best else not fitting):
            plan = self.cut.plan
            numbers = [p.op.number for p in plan.ops if p.escapes]
            escapes = (e for n in numbers for e in plan.analysis.reach[n].escapes)
            reasons += [
                f"A change of the network: {text}" for text in edits(self.cut.graph, escapes)
            ]
        rule = None if best is None else best.rule
        return Suggestion(
            *(rule, tuple(self.rows), tuple(self.lags)), tuple(reasons), tuple(self.left_out)
        )

    def _escaping(self, rules: Sequence[Candidate]) -> list[str]:
        """What D-RTRL ignores, and whether it matters."""
        paths = list(dict.fromkeys(e for p in self.cut.plan.ops for e in p.escapes))
        claims = self.cut.claims
        alone = ", ".join(path for path in claims if claims[path].claim == "current step")
        texts = [f"Under D-RTRL these learn from the current step alone: {alone}."] if alone else []
        if not paths:
            return texts
        more = f", and {len(paths) - 2} more paths" if len(paths) > 2 else ""
        text = " ".join([f"D-RTRL ignores {'; '.join(paths[:2])}{more}.", *texts])
        w, by_rule = self.batch.window, {row.rule: row for row in rules}
        cut, full = by_rule.get(D_RTRL()), by_rule.get(D_RTRL(window=w, backprop="full"))
        if cut is None:
            return [text]
        far = [n for n, c in enumerate(cut.by_lag) if c < 1 - NEAR][:3]
        if not far and cut.mean_cosine >= 1 - NEAR:
            return [f"{text} On this data that matters little: it has {cut.nearness}."]
        lags = [" from {} to {} steps back".format(*self.lags[n]) for n in far]
        by_lag = lambda row: [row.by_lag[n] for n in far] or [row.cosine]
        parts = [f"{c:.2f}{lag}" for c, lag in zip(by_lag(cut), lags or [""], strict=True)]
        why = f"The cosine of D-RTRL with BPTT is {', '.join(parts)}"
        if full is not None:
            parts = ", ".join(f"{c:.2f}" for c in by_lag(full))
            why += f"; with nothing cut inside windows of {w} steps it is {parts}"
        return [text, f"{why}."]

    def _misfit(self, rules: Sequence[Candidate]) -> str:
        """That no rule fits, with those that come nearest."""
        limits = [] if self.memory is None else [f"memory={self.memory:,}"]
        limits += [] if self.time is None else [f"time={self.time:g}"]
        fits = f"fits {' and '.join(limits)}" if limits else "fits"
        fast = min(rules, key=lambda row: row.ms, default=None)
        nearest = f" The fastest is {fast.name}, with {fast.ms:.3g} ms a step." if fast else ""
        return (
            f"No rule {fits}.{nearest} Take a smaller batch, fewer units, or fewer weights with "
            "a trace (`weights=`)."
        )


EXACT = "Every gradient of D_RTRL() equals that of BPTT: no influence escapes, and there is nothing to choose."


def _best(
    rules: Sequence[Candidate], lags: Sequence[tuple[int, int]]
) -> tuple[Candidate, list[str]]:
    """The rule to take of those that fit, and why."""
    good, why = list(rules), []
    count = len(rules[0].losses)
    if count >= UPDATES[0]:
        start, lowest = rules[0].losses[0], min(map(_loss_of, rules))
        if any(map(_trains, rules)):
            enough = start - PROGRESS * (start - lowest)
            good = [row for row in rules if _loss_of(row) <= enough]
            text = f"In {count} updates on this batch the loss goes from {start:.4g} to {lowest:.4g}, or nearly, under"
            why = [f"{text} {', '.join(row.name for row in good)}."]
            if any(row.rule == TBPTT(1) for row in good):
                why.append(
                    "The immediate gradient, TBPTT(1), trains as well: so far no memory is needed."
                )
        else:
            text = f"In {count} updates on this batch no rule lowers the loss, which is {start:.4g} at first"
            diverges = "The optimiser diverges: take a lower rate."
            why = [f"{text} and {lowest:.4g} at best. {diverges if lowest > start else ''}".strip()]
    for n, (start, end) in enumerate(lags):
        follows = max(good, key=lambda row: row.by_lag[n])
        blind = [row for row in good if row.by_lag[n] == 0]
        if blind and follows.by_lag[n] > NEAR:
            names, where = ", ".join(row.name for row in blind), f"{start} to {end} steps back"
            text = f"From {where} {follows.name} has a cosine of {follows.by_lag[n]:.2f} with BPTT"
            why.append(f"{text}, and {names} gives nothing.")
            good = [row for row in good if row not in blind]
    nearest = max(good, key=lambda row: row.mean_cosine)
    near = [row for row in good if row.mean_cosine >= nearest.mean_cosine - NEAR]
    best = min(near, key=lambda row: row.ms)
    text = f"{best.name} has {best.nearness}"
    if best is nearest:
        of = "the highest of these" if len(rules) > 1 else "and no other that was measured fits"
        return best, [*why, f"{text}, {of}."]
    other = f"{nearest.name} ({nearest.mean_cosine:.2f})"
    return best, [*why, f"{text}, near the highest, that of {other}, and is faster."]


def _trains(row: Candidate) -> bool:
    """Whether its training lowers the loss by more than rounding may."""
    return bool(row.losses) and row.losses[0] - _loss_of(row) > 1e-5 * abs(row.losses[0])


def _loss_of(row: Candidate) -> float:
    return math.inf if row.loss is None else row.loss
