"""`etpc.suggest`: which learning rule to take, by what trains on the user's own model and data."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from time import monotonic
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..algorithms import D_RTRL, ES_D_RTRL, RTRL, TBPTT, Algorithm, resolve
from ..analyse import trace_dtype
from ..errors import InputError, InputTypeError, checked_count, checked_list
from ..files.record import record
from ..forms import Full, Site, size_of
from ..gradient.agreement import not_finite
from ..gradient.data import is_real
from ..plan import DEFAULT_MEMORY
from ..rules import CreditRTRL
from ..run import Program, check_optimizer
from ..show import edits, table, uncut_block
from ..trace import StepFunction
from ._data import Data
from ._lags import Batch, Measurement, Online, Reverse, Way, step_ms
from ._progress import show
from ._race import FIRST, Contender, Race
from ._trial import Trial
from .compare import short_name

NEAR = 0.1
"""Mean cosines by lag that differ by no more than this are called equally near to BPTT."""

RTRL_WORK = 10**8
"""RTRL is measured where its traces take at most so many multiplications to move: beyond, a sequence takes minutes."""

EXACT = "Every gradient of D_RTRL() equals that of BPTT: no influence escapes, and there is nothing to choose."
UNLESS = "Every gradient of D_RTRL() equals that of BPTT: it is taken unless another rule is ahead."

RATE = 3e-3
"""The learning rate of Adam where no optimiser is given."""

BASELINE = "TBPTT(1), RMSprop"
"""The current step's gradient with RMSprop. **Source:** Merin, "Temporal credit is free", arXiv 2603.28750, 2026."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One rule that [`etpc.suggest`][] measured, or BPTT.

    - `name`: of the rule, with those of its settings that are not the default.
    - `rule`: the algorithm; `None` for BPTT, which all others are compared with.
    - `ms`: the shortest time of one step of the batch, with its gradient, in ms.
    - `carry_bytes`: what is passed on from step to step, for the batch; `None` for BPTT, which keeps all steps.
    - `cosine`: between its gradient of the sequence and that of BPTT, over all parameters.
    - `by_lag`: the same of the parts of the gradient of the last losses that reach back over each of
        `Suggestion.lags`; both after a training at the weights that are best. `nan` where BPTT has no such part, or
        where it was not measured.
    - `exact`: whether every gradient is claimed to be exact. Such rules train as one.
    - `losses`: before each update of the training with the first seed, as far as scores are compared.
    - `rate`: of this training, relative to that of the optimiser; `None` where it did not train.
    - `score`, `spread`: the mean over what is held out and the seeds, and its standard error, or that over the seeds
        where it is more; `nan` without a training.
    - `compile_s`: how long it took to compile.
    - `curve`: at each comparison the number of examples, the seconds of training and the mean score; last `score`.
    - `seeds`: how many `score` is the mean of.
    """

    name: str
    rule: Algorithm | None
    ms: float
    carry_bytes: int | None
    cosine: float
    by_lag: tuple[float, ...]
    exact: bool
    losses: tuple[float, ...] = ()
    rate: float | None = None
    score: float = math.nan
    spread: float = math.nan
    compile_s: float = 0.0
    curve: tuple[tuple[int, float, float], ...] = ()
    seeds: int = 0

    @property
    def updates(self) -> int:
        """After how many its score was taken."""
        return len(self.losses)

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


@dataclasses.dataclass(frozen=True, eq=False)
class Suggestion:
    """The result of [`etpc.suggest`][]. `print` it for a table with reasons.

    - `rule`: the algorithm to compile with; `None` where none fits `memory` and `time`, where nothing could be
        compared, and where nothing was learned.
    - `rows`: a [`Candidate`][etpc.Candidate] for BPTT, and for each rule that was measured.
    - `lags`: the ranges of steps before the last window that `by_lag` of the rows is about.
    - `reasons`: what is wrong, if anything is; why this rule, and how sure that is; and what to change in the network
        where none is near BPTT or none fits.
    - `left_out`: which rules were not measured, and why.
    - `decided`: whether all rules that were asked for have trained and the rule scores higher than the next one beyond
        the spread, at a rate that three seeds chose; or it is exact with nothing to choose.
    - `headline`: the rule and its rate, how many others it is ahead of, and how many have not trained.
    - `advice`: what `go_on` goes on with: compiled rules, and what they trained. It is not pickled.
    """

    rule: Algorithm | None
    rows: tuple[Candidate, ...]
    lags: tuple[tuple[int, int], ...]
    reasons: tuple[str, ...]
    left_out: tuple[str, ...]
    decided: bool = False
    headline: str = ""
    advice: Any = dataclasses.field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"advice": None}

    def go_on(self, budget: float = 120) -> "Suggestion":
        """Measure for so many seconds more, from where it stopped: rules that were left out for want of time, and the
        trainings.

        **Returns** the new suggestion, as if the first budget had been so much larger.

        **Raises** `etpc.InputError` where the budget is not positive, or the suggestion is not one of `etpc.suggest`.
        """
        _check_limits(budget=budget)
        if self.advice is None:
            raise InputError(
                "There is nothing to go on with: `etpc.suggest` made no such suggestion."
            )
        return self.advice.go_on(budget, monotonic())

    def as_dict(self) -> dict[str, Any]:
        """Numbers, texts, lists and dictionaries of them, as `etpc suggest --json` prints them; `None` for a number
        that is not finite."""
        text = lambda rule: None if rule is None else str(rule)
        own = lambda row: {"rule": text(row.rule), "updates": row.updates}
        first = dict(rule=text(self.rule), decided=self.decided, headline=self.headline)
        rows = [dataclasses.asdict(row) | own(row) for row in self.rows]
        fields = dict(lags=self.lags, rows=rows, reasons=self.reasons, left_out=self.left_out)
        return record("etpc-suggestion/1", **first, **fields)

    def __str__(self) -> str:
        trained = any(row.losses for row in self.rows)
        columns = ["rule", *["rate", "score", "seeds", "updates"] * trained, "ms/step"]
        columns += ["carry bytes", "compile s", "cosine", *(f"{a}-{b} back" for a, b in self.lags)]
        rows = []
        for row in self.rows:
            cells = [row.name]
            if trained:
                score = f"{row.score:.3g} ± {row.spread:.1g}"
                found = [f"{row.rate or 0:.2g}", score, str(row.seeds), str(row.updates)]
                cells += found if row.losses else ["-"] * 4
            size = "all steps" if row.carry_bytes is None else f"{row.carry_bytes:,}"
            cells += [f"{row.ms:.3f}", size, f"{row.compile_s:.1f}"]
            cosines = [f"{row.cosine:.3f}", *(f"{c:.2f}" for c in row.by_lag)]
            rows.append(cells + ["-" if text == "nan" else text for text in cosines])
        rule = "no rule" if self.rule is None else short_name(self.rule)
        below = [*self.reasons, *(f"Not measured: {text}." for text in self.left_out)]
        shown = [*table(columns, rows), "", *(f"- {text}" for text in below)]
        return "\n".join([f"suggested: {self.headline or rule}", "", *shown])

    __repr__ = __str__


def suggest(
    model: Any,
    data: Any,
    *loss_fn: Any,
    score: Callable[[Any, Any], Any] | None = None,
    optimiser: Any = None,
    rules: Sequence[Algorithm | str] | None = None,
    rates: Sequence[float] = (1.0, 1 / 3, 3.0),
    updates: int | None = None,
    budget: float = 120,
    memory: int | None = None,
    time: float | None = None,
    every: int | None = None,
    state: Any = None,
    step: StepFunction | None = None,
    weights: Any = None,
    batch_size: int | None = None,
    mask: Any = None,
) -> Suggestion:
    """Find which learning rule trains a model best, on its own data.

    Where every gradient of D-RTRL is exact and no optimiser is given, that is the rule. Otherwise the rules train
    side by side, each at several learning rates, from the same weights on the same data, and are compared by how they
    score on what is held out, after equal numbers of examples, and without `updates` in equal time too: in rounds, the
    better half going on with twice the updates, and the last two with three seeds (successive halving). All go on
    again, and half of the time is for the rates of the rule that is ahead, with three seeds each, until the
    budget is spent. Suggested is the rule that scores highest, at the rate that the mean over three seeds chooses; of
    equal ones the faster; and where BPTT alone has learned something, the one whose gradient is the nearest to
    BPTT's. How near gradients are to those of BPTT, by how far they reach back, is measured at the weights that are
    best by then, and explains the scores.

    **Arguments:**

    - `model`, `state`, `step`, `weights`: as in [`etpc.compile`][].
    - `data`: a function that draws a batch from a PRNG key (under `jax.jit`, if it can be); an iterable of batches; or
        one batch, of which one example of four is held out. A batch is `(xs, targets)` or `(xs, targets, mask)`, as in
        [`etpc.verify`][], all of one shape, of sequences that are at least as long as what has to be remembered. Each
        sequence begins in the initial state. An iterable is remembered, up to 1 GiB, and gone through again if it is
        too short.
    - `loss_fn`: `loss_fn(y, target) -> scalar`, for one example at one step. One batch may also be passed as
        `suggest(model, xs, targets, loss_fn)`, with `mask=`.
    - `batch_size`: B where the data has a batch axis, `None` where it has none.
    - `score`: `score(y, target) -> scalar`, for one example at one step as the loss is, such as whether the answer is
        right; higher is better. It is averaged where the mask is not zero. By default it is minus the loss.
    - `optimiser`: one of Optax; by default Adam at 3e-3, and clipped gradients.
    - `rules`: algorithms or their names, in place of the usual ones, one of which has RMSprop. BPTT is always there.
    - `rates`: multiples of its learning rate: what each update changes is multiplied by them.
    - `updates`: for how many updates you will train. Rules are compared after no more, and then with more seeds. After
        fewer updates other rules and higher rates are the best. By default they train as long as the budget lets them.
    - `budget`: so many seconds are taken, or up to a tenth more. Each piece of work begins only if it fits, by the time
        that those before it took. More is taken where BPTT and the first rule need more, which are always measured, and
        where a rule takes longer to compile than all before it.
    - `memory`: at most so many bytes are passed on from step to step, for the batch.
    - `time`: at most so many milliseconds are taken by one step of the batch.
    - `every`: the number of steps between updates, where they come within a sequence as in [`etpc.online`][];
        windows are as long. By default the weights move once for each sequence.

    Ctrl-C stops earlier, with what has been measured by then.

    **Returns** a [`Suggestion`][etpc.Suggestion]: `print` it, compile with its `.rule`, and let it `.go_on()`.

    **Raises** what `etpc.compile` and `value_and_grad` raise; `etpc.InputError` where a limit or a rate is not
    positive, batches differ in shape, or a score is not one number; `etpc.InputTypeError` where data is none of these,
    `rules` or `rates` is no list, or `score` no function.

    ```pycon
    >>> import jax, jax.numpy as jnp, etpc
    >>> def step(w, x, h):
    ...     h = jnp.tanh(w * h + x)
    ...     return h, h
    >>> xs = jax.random.normal(jax.random.key(0), (40, 3))
    >>> def loss(y, target):
    ...     return jnp.sum((y - target) ** 2)
    >>> suggestion = etpc.suggest(jnp.full(3, 0.9), (xs, 0 * xs), loss, state=jnp.zeros(3), step=step)
    >>> suggestion.rule
    D_RTRL(window='auto', backprop='cut')
    >>> print(*suggestion.reasons)
    Every gradient of D_RTRL() equals that of BPTT: no influence escapes, and there is nothing to choose.

    ```
    """
    begun = monotonic()
    _check_limits(memory=memory, time=time, budget=budget)
    if len(loss_fn) not in (1, 2):
        raise InputTypeError(
            "suggest takes `(model, data, loss_fn)`, or `(model, xs, targets, loss_fn)` for one batch."
        )
    if len(loss_fn) == 2:
        data = data, loss_fn[0], mask
    elif mask is not None:
        raise InputError("mask= is for xs and targets. Pass data=(xs, targets, mask).")
    found = Data(data, batch_size)
    xs, targets, mask = found.first
    called = dict(state=state, step=step, weights=weights, memory=1 << 62)
    trial = Trial(*(model, xs, targets, loss_fn[-1]), **called, batch_size=batch_size, mask=mask)
    cut = trial.program(D_RTRL())  # which checks the data
    multiples = checked_list("rates", rates, "numbers")
    if not multiples or not all(is_real(rate) and 0 < rate < math.inf for rate in multiples):
        raise InputError(f"rates must be finite numbers above zero, at least one, not {rates!r}.")
    tried = [resolve(rule) for rule in checked_list("rules", rules, "algorithms or their names")]
    if rules is not None and not tried:
        raise InputError("rules is empty. Leave it out to try the usual ones.")
    usual = optimiser is None
    if usual and not (cut.exact and memory is time is rules is None):
        optimiser = _adam()
    batch = _batch(trial, every, optimiser, found.single)
    longest = None if updates is None else checked_count("updates", updates)
    race = Race(batch, found, score, [float(rate) for rate in multiples], longest)
    advice = _Advice(race, tried or _rules(batch, cut), memory, time)
    advice.baseline, advice.scale = rules is None, RATE if usual else None
    return advice.go_on(budget, begun)


def _check_limits(**limits: Any) -> None:
    for name, limit in limits.items():
        if limit is not None and not (is_real(limit) and limit > 0):
            raise InputError(f"{name} must be a number above zero, not {limit!r}.")


def _adam() -> Any:
    """**Raises** `InputError` without Optax."""
    try:
        import optax
    except ModuleNotFoundError as error:
        raise InputError(
            "Rules are compared by training. Pass `optimiser=`, or install Optax."
        ) from error
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE))


def _batch(trial: Trial, every: Any, optimiser: Any, single: bool = True) -> Batch:
    """The steps of a trial, in windows that suit them, or of `every` steps; of a `single` batch those until the last
    loss that counts."""
    every = None if every is None else checked_count("every", every)
    if optimiser is not None:
        check_optimizer("optimiser", optimiser)
    steps = trial.steps
    if trial.mask is not None:
        counting = np.flatnonzero(np.asarray(trial.mask).reshape(steps, -1).any(1))
        if not counting.size:
            raise InputError("mask is zero everywhere, so there is no loss to take a gradient of.")
        steps = int(counting[-1]) + 1 if single else steps
    return Batch(trial, every or _window(steps), steps, every, optimiser)


def _window(steps: int) -> int:
    """About 16 steps, fewer so that there are eight windows; a divisor of all steps where one is near."""
    wanted = max(1, min(16, steps // 8))
    near = [w for w in range(-(-wanted // 2), 2 * wanted + 1) if steps % w == 0]
    return min(near, key=lambda w: abs(math.log(w / wanted)), default=wanted)


def _rules(batch: Batch, cut: Program) -> list[Algorithm]:
    """The rules that the claims leave open: D-RTRL first, then in the order of what they take."""
    w, steps = batch.window, batch.steps
    low_rank, decay = ES_D_RTRL(rank=4, window=w), ES_D_RTRL(decay=0.99)
    cheap = [D_RTRL(), decay, TBPTT(1)]
    if cut.exact:
        return [*cheap, low_rank]
    if D_RTRL(through=True).analysis(cut.plan.step).step.added:
        cheap.insert(1, D_RTRL(through=True))
    behind = max(2 * w, 8)
    truncated = TBPTT(2 * behind if 4 * behind <= steps else behind, every=w)
    full, look_back = D_RTRL(window=w, backprop="full"), D_RTRL(window=w, lookback=behind)
    whole = [RTRL(window=w)] if _rtrl_work(batch, cut) <= RTRL_WORK else []
    return [*cheap, truncated, full, look_back, low_rank, CreditRTRL(window=w), *whole]


def _rtrl_work(batch: Batch, cut: Program) -> int:
    """How many multiplications move the traces of RTRL once."""
    analysis, work = cut.plan.analysis, 0
    for op in analysis.ops:
        if analysis.reach[op.number].role == "state":
            block = uncut_block(analysis, op.number)
            work += block * size_of(Full(), Site(op.kind, block, trace_dtype(analysis, op)))
    return work * (batch.size or 1)


def _racer(row: Candidate) -> Hashable:
    """The name under which a row trains: rules that are exact are one."""
    return "exact" if row.exact else row.name


class _Advice:
    """What has been measured, BPTT first, and the suggestion that follows from it.

    - `waiting`: the rules that have not been measured yet.
    - `compiling`: the seconds in which a rule was compiled, in the mean.
    - `baseline`: whether the gradient of the current step also trains with RMSprop, once it is measured.
    - `scale`, `rms_rate`: the learning rate of the optimiser, where it is known; and of RMSprop.
    """

    baseline, rms_rate = False, RATE
    scale: float | None = None

    def __init__(self, race: Race, rules: Sequence[Algorithm], memory: Any, time: Any):
        self.race, self.batch, self.memory, self.time = race, race.batch, memory, time
        batch, self.cut = race.batch, race.batch.trial.shown
        self.lags = tuple(pairwise((reach - 1) * batch.window for reach in batch.reaches))
        """The ranges of steps before the last window."""
        self.trains = batch.optimiser is not None
        self.compiling, self.interrupted, self.budget = 0.0, False, 0.0
        self.left_out = list[str]()
        begun = monotonic()
        bptt = Reverse(batch)
        self.reference = Measurement(bptt)
        seconds, self.unknown = monotonic() - begun, (math.nan,) * len(self.lags)
        row = Candidate(
            "BPTT", None, step_ms(bptt), None, 1.0, self.unknown, True, compile_s=seconds
        )
        self.rows, self.ways = [row], list[Way]([bptt])
        self.remarks = [
            f"{text[0].upper()}{text[1:]}. Scale its weights with `etpc.nn.init_from_data`."
            for text in batch.trial.silent()
        ]
        if not self.reference.comparable:
            where = [f", as {place} is" for place in not_finite(*batch.trial.data)[:1]]
            why = "".join(["NaN or infinite", *where] if not self.reference.finite else ["zero"])
            self.remarks.append(f"No rule can be compared: the gradient of BPTT is {why}.")
        self.waiting = [*dict.fromkeys(rules)] if self.trains else [D_RTRL()]
        if not self.reference.comparable:
            self.waiting = self.waiting[:1] if self.cut.exact else []

    # --- measurements ---

    def go_on(self, budget: float, begun: float) -> Suggestion:
        """The suggestion after so many seconds more."""
        self.budget, self.interrupted, end = budget, False, begun + budget
        try:
            self._measure(end)
            if self.trains and monotonic() < end:
                self._train(end)
            self._explain(end + budget / 10)
        except KeyboardInterrupt:
            if len(self.rows) < 2:
                raise
            self.interrupted = True
        finally:
            show(0, 0, "")
        return self._suggestion()

    def _measure(self, end: float) -> None:
        """Add the rules that are waiting, while there is time for them and for what is `_reserved`."""
        count, measured = len(self.waiting), [row.rule for row in self.rows]
        self.waiting = [rule for rule in self.waiting if rule not in measured]  # after Ctrl-C
        fits = lambda: monotonic() + self.compiling + self._reserved() < end
        while self.waiting and (len(self.rows) < 2 or fits()):
            rule, left = self.waiting[0], self.compiling * len(self.waiting)
            about = f", about {left:.0f} s of compilation left" if left else ""
            show(count - len(self.waiting), count, short_name(rule) + about)
            self._add_rule(rule)
            del self.waiting[0]

    def _reserved(self) -> float:
        """The seconds that are left to trainings: of each rule a short one, and an eighth of the budget."""
        fast = [self._seconds(n, FIRST) for n in range(len(self.rows)) if not self._is_slow(n)]
        judging = self.race.judge.seconds * (len(fast) + 1)
        first = (sum(fast) + max(fast) + judging) * len(self.race.rates)
        return min(max(self.budget / 8, first), self.budget / 2)

    def _add_baseline(self, way: Online) -> None:
        """The last rule once more with RMSprop, which moves weights as far as the optimiser does."""
        import optax

        arrays, opt_state = (batch := self.batch).start
        ones = jax.tree.map(jnp.ones_like, arrays)
        moved, _ = batch.moved(jnp.ones(()), ones, arrays, opt_state, 1.0)
        sizes = jax.tree.map(lambda new, old: abs(new - old).mean(), moved, arrays)
        rate = float(np.mean(jax.tree.leaves(sizes)))
        self.rms_rate = rate if math.isfinite(rate) and rate else RATE
        clip, moves = optax.clip_by_global_norm(1.0), optax.rmsprop(self.rms_rate, decay=0.9)
        settings = batch.trial, batch.window, batch.steps, batch.every, optax.chain(clip, moves)
        self.ways.append(way.with_optimiser(Batch(*settings)))
        self.rows.append(dataclasses.replace(self.rows[-1], name=BASELINE, compile_s=0.0))

    def _add_rule(self, rule: Algorithm) -> None:
        """Add a rule, unless what it carries is too large."""
        begun, name = monotonic(), short_name(rule)
        program = self.cut if rule == D_RTRL() else self.batch.trial.program(rule)
        size = program.memory(self.batch.size).total
        if size > (self.memory or DEFAULT_MEMORY):
            self.left_out.append(f"{name}, which carries {size:,} bytes")
            return
        way = Online(self.batch, program)
        way.seconds(1)  # the first run of a window makes kernels, even where it is compiled
        seconds = monotonic() - begun
        self.compiling = float(np.mean([seconds, *(r.compile_s for r in self.rows if r.compile_s)]))
        ms = 1e3 * way.seconds(1) / self.batch.window
        row = Candidate(
            name, rule, ms, size, math.nan, self.unknown, program.exact, compile_s=seconds
        )
        self.rows.append(row)
        self.ways.append(way)
        if self._is_slow(len(self.rows) - 1):
            return
        found = Measurement(way)
        if self.reference.comparable and not found.finite:
            self.left_out.append(f"{name}, whose gradient is NaN or infinite")
            del self.rows[-1], self.ways[-1]
        else:
            measured: Any = dict(ms=step_ms(way), cosine=found.cosine(self.reference))
            self.rows[-1] = dataclasses.replace(row, **measured)
            if self.baseline and self.trains and rule == TBPTT(1):
                self._add_baseline(way)

    def _is_slow(self, n: int) -> bool:
        """Whether the first comparison of a rule that has not trained takes more than a quarter of the budget."""
        if n < 2 or self.race.best(_racer(self.rows[n])):  # BPTT and the first rule always train
            return False
        return self._seconds(n, FIRST * len(self.race.rates)) > self.budget / 4

    def _train(self, end: float) -> None:
        if not self.reference.comparable or not any(map(self._fits, self.rows[1:])):
            return
        fast = [n for n in range(len(self.rows)) if not self._is_slow(n)]
        playing = [n for n in fast if self._fits(self.rows[n]) and (n or not self.batch.every)]
        self.race.guests = {_racer(self.rows[0])} - {_racer(self.rows[n]) for n in playing if n}
        for n in sorted(playing, key=lambda n: self.rows[n].ms):
            self.race.add(_racer(self.rows[n]), self.ways[n])
        lags = sum(self._seconds(n, self.ways[n].passes) for n in fast)
        self.race.run(end - min(lags, self.budget / 4))

    def _trained(self, row: Candidate) -> Candidate:
        """A row with what was found of it in the race."""
        contender = self.race.best(_racer(row))
        if contender is None:
            return row
        training, size, last = contender.trainings[0], self.batch.size or 1, contender.reached
        counts = [k for k in sorted(training.judged) if k <= last]
        return dataclasses.replace(
            row,
            losses=tuple(training.losses[:last] if last else training.losses),
            rate=contender.rate,
            score=contender.score(last),
            spread=contender.spread(last),
            curve=tuple((k * size, k * contender.way.shortest, contender.score(k)) for k in counts),
            seeds=len(contender.scores(last)),
        )

    def _fits(self, row: Candidate) -> bool:
        return self.time is None or row.ms <= self.time

    def _seconds(self, n: int, passes: int) -> float:
        return passes * self.rows[n].ms * self.batch.steps / 1e3

    def _explain(self, end: float) -> None:
        """Cosines at the best weights, if there is time for all; or at the first ones, for as many as there is time."""
        best = self.race.order[0].trainings[0] if self.race.order else None
        at = best.state[:2] if best and not best.diverged else self.batch.start
        rows, reference = [*self.rows], self.reference
        for n, way in enumerate(self.ways):
            if self._is_slow(n):
                continue
            if n > 1 and monotonic() + self._seconds(n, way.passes) > end:
                if at is not self.batch.start:
                    return
                break
            show(n, len(self.ways), "gradients by lag")
            way.move_to((at[0], way.batch.start[1]))
            found = Measurement(way)
            reference = found if n == 0 else reference
            near: Any = dict(cosine=found.cosine(reference), by_lag=found.lags(reference))
            rows[n] = dataclasses.replace(rows[n], **near)
        if reference.comparable:
            self.rows = rows

    # --- the answer ---

    def _suggestion(self) -> Suggestion:
        bptt, *rules = self.rows
        fitting = [row for row in rules if self._fits(row)]
        reasons = [*self.remarks, *self._divergence()]
        if not self.cut.exact and any(row.rule == D_RTRL() for row in rules):
            reasons += self._escaping(rules)
        best, decided, why = self._chosen(fitting)
        reasons += why
        first, mine = (row and self.race.best(_racer(row)) for row in (bptt, best))
        higher = self.race.leads(first, mine)
        if best is not None and not best.exact and not self.batch.every:
            reasons.append(self._on_bptt(bptt, best, higher - self.race.leads(mine, first)))
            if best.rule and best.rule.window == self.batch.window:
                reasons.append(f"No windows but those of {best.rule.window} steps were measured.")
        lost = bool(best) and best.mean_cosine < 0.8 and not self._trained(bptt).losses
        if self.reference.comparable and (higher or lost or not fitting):
            plan = self.cut.plan
            reach = [plan.analysis.reach[p.op.number] for p in plan.ops if p.escapes]
            escapes = (e for found in reach for e in found.escapes)
            texts = list(dict.fromkeys(edits(self.cut.graph, escapes)))
            reasons += [" ".join(["A change of the network:", *texts])] * bool(texts)
        rule = None if best is None else best.rule
        left, names = [*self.left_out], ", ".join(map(short_name, self.waiting))
        if self.interrupted:
            left.append("what was left when it was interrupted")
        elif names:
            takes = f"to compile them takes about {self.compiling * len(self.waiting):.0f} s"
            left.append(f"{names}, as the budget of {self.budget:g} s was spent; {takes}")
        head, rows = self._headline(best), tuple(map(self._trained, self.rows))
        found = self.lags, tuple(reasons), tuple(left), decided, head, self
        return Suggestion(rule, rows, *found)

    def _on_bptt(self, bptt: Candidate, best: Candidate, order: int) -> str:
        """Whether to take BPTT: 1 where it is ahead, -1 where it is behind."""
        found, mine = self._trained(bptt), self._trained(best)
        cost = f"BPTT takes {bptt.ms:.3g} ms a step and {best.name} {best.ms:.3g}"
        if not found.losses or not mine.losses:
            return f"{cost}; their scores were not compared."
        texts = "BPTT is not surely ahead", "BPTT scores higher", "BPTT is exact and scores less"
        scores = (f"{row.score:.3g} after {row.updates} updates" for row in (found, mine))
        fits = ": take it if all sequences are about so long, and their steps fit into memory"
        return f"{texts[order]} ({', '.join(scores)}){fits * (order > 0)}. {cost}."

    def _untrained(self) -> list[str]:
        """How many rules that fit have not trained, for each reason."""
        rows = [n for n, row in enumerate(self.rows) if n and self._fits(row)]
        rows = [n for n in rows if not self.race.best(_racer(self.rows[n]))]
        slow, why = sum(map(self._is_slow, rows)), "interrupted" if self.interrupted else "budget"
        counts = {why: len(self.waiting) + len(rows) - slow, "too slow": slow}
        return [f"{n} did not train ({why})" for why, n in counts.items() if n]

    def _headline(self, best: Candidate | None) -> str:
        """What is suggested, what it was raced with, and how sure that is."""
        race, missing = self.race, self._untrained()
        name, one = ("no rule", None) if best is None else (best.name, race.best(_racer(best)))
        raced = {race.best(_racer(row)) for row in self.rows[1:] if self._fits(row)} - {None, one}
        if best is None or one is None:
            return "; ".join([name, *missing]) if raced else name
        scale, row = self.rms_rate if name == BASELINE else self.scale, self._trained(best)
        at = f"{one.rate * scale:.2g}" if scale else f"{one.rate:.2g} times the rate"
        ahead = sum(race.leads(one, other) for other in raced if other)
        parts = [f"ahead of {ahead} of {len(raced)} other rules that have trained", *missing]
        if row.seeds < race.settling or not race.settled(one):
            of = f"of {row.seeds} of {race.settling} seeds and {row.updates} updates"
            at = f"a rate that is not settled ({at} so far, {of})"
        return f"{name} at {at}: {'; '.join(parts)}"

    def _divergence(self) -> list[str]:
        """Which rules diverged, and at what rates."""
        diverged = [c for c in self.race.contenders if c.diverged]
        of = lambda rate: [r.name for c in diverged if c.rate == rate for r in self._rows_of(c)]
        return [
            f"At {rate:.2g} times the rate these diverge: {', '.join(of(rate))}."
            for rate in dict.fromkeys(c.rate for c in diverged)
        ]

    def _chosen(self, fitting: Sequence[Candidate]) -> tuple[Candidate | None, bool, list[str]]:
        """The rule to take of those that fit; whether this is decided; and why."""
        exact = next((row for row in fitting if row.rule == D_RTRL() and row.exact), None)
        if exact and not (self.trains and self.reference.comparable):
            return exact, True, [EXACT]
        if not self.reference.comparable:
            return None, False, []
        if not fitting:
            return None, False, [self._misfit(self.rows[1:])]
        if len(fitting) == 1 and (self.waiting or self.interrupted) and not exact:
            text = (
                f"{fitting[0].name} is the only rule that was measured, with {fitting[0].nearness}"
            )
            return None, False, [f"{text}. Take a larger budget= to compare it with others."]
        nearest = max(fitting, key=lambda row: np.nan_to_num(row.mean_cosine))
        best, decided, why = self._winner(fitting, nearest)
        if exact and not (best and decided):
            return exact, False, [UNLESS, *why]
        slow = [row.name for n, row in enumerate(self.rows) if self._is_slow(n)]
        if slow:
            why.append(f"Too slow to train within this budget: {', '.join(slow)}.")
        if best is not None:
            text, score = f"{best.name} has {best.nearness}", lambda row: self._trained(row).score
            if nearest.mean_cosine > best.mean_cosine + NEAR and score(nearest) <= score(best):
                other = f"{nearest.name} ({nearest.mean_cosine:.2f})"
                text += f"; a nearer gradient, that of {other}, does not score higher"
            why.append(f"{text}.")
        return best, decided, why

    def _winner(
        self, fitting: Sequence[Candidate], nearest: Candidate
    ) -> tuple[Candidate | None, bool, list[str]]:
        """The rule that scores highest; whether this is decided; and why."""
        race, more = self.race, f"go on with `suggestion.go_on(budget={5 * self.budget:g})`"
        more = f"take more than `updates={race.longest}`" if race.over else more
        updates, bptt = race.updates, [c for c in race.order if c.name in race.guests]
        online = {c: [row for row in self._rows_of(c) if row in fitting] for c in race.order}
        rules = [c for c in race.order if online[c]][:2]
        if not rules:
            return None, False, [f"The budget left no time to compare scores: {more}."]
        shown = [
            f"{c.score(updates):.3g} ± {c.spread(updates):.1g} by "
            f"{' = '.join(row.name for row in self._rows_of(c))} at {c.rate:.2g} times the rate"
            for c in rules + bptt
        ]
        text = f"After {updates} updates the best scores on what is held out are {', '.join(shown)}"
        why = [f"{text}; that of the first weights is {race.start[0][0].mean():.3g}."]
        why += [] if race.score else ["Scores are minus the loss."]
        if not race.data.parted:
            why.append("There is one example, which is what scores are of: nothing is held out.")
        if race.data.repeats:
            why.append(f"The data was repeated after {race.data.repeats} batches.")
        if not any(race.ahead(c, None) or race.lucky(c) for c in rules):
            if any(race.ahead(c, None) for c in bptt):
                text = "What BPTT has learned no rule has yet, so the nearest gradient is taken"
                return nearest, False, [*why, f"{text}: {more}."]
            text = "longer, at other rates, or not at all: no rule may learn this task"
            return None, False, [*why, f"Nothing was learned: try {text}. To train longer, {more}."]
        for c in rules:
            if lucky := race.lucky(c):
                text = f"with {lucky} of {len(c.scores(updates))} seeds, and not in the mean"
                why.append(f"{self._rows_of(c)[0].name} has learned {text}.")
        edges = {min(race.rates): "lowest", max(race.rates): "highest"}
        first, *others = rules
        if first.rate in edges and len(edges) > 1:
            why.append(f"The best rate is the {edges[first.rate]} one: try others beyond it.")
        compared = all(race.decided(first, other) for other in others)
        decided = compared and race.settled(first) and not self._untrained()
        if not compared:
            seeds = "one seed" if race.seeds == 1 else f"{race.seeds} seeds"
            within = f"with {seeds}" if race.over else "within this budget"
            end = "" if race.over else f": {more}"
            why.append(f"It is not decided {within} which rule is better{end}.")
        elif not decided:
            why.append(f"It is not decided until all rules have trained: {more}.")
        now = any(row.rule == TBPTT(1) for c in rules[: 2 - decided] for row in online[c])
        if now and not any(race.ahead(c, first) for c in bptt):
            text = "The immediate gradient, TBPTT(1), is among these: so far no credit through time is needed."
            why.append(text)
        best = min(online[first], key=lambda row: row.ms)
        if best.name == BASELINE:
            moves = f"optax.rmsprop({first.rate * self.rms_rate:.2g}, decay=0.9)"
            why.append(f"Train {best.name} with {moves} behind optax.clip_by_global_norm(1.0).")
        return best, decided, why

    def _rows_of(self, contender: Contender) -> list[Candidate]:
        return [row for row in self.rows if _racer(row) == contender.name]

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
        assert cut is not None
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
