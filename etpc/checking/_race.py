"""Rules with learning rates train side by side: successive halving, from the same weights on the same data."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from time import monotonic
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..gradient.data import one_step
from ..gradient.loss import Loss, finite_where_masked
from ._data import Data
from ._lags import Batch, Way
from ._progress import show

FIRST = 16
"""After so many updates, twice as many, and so on, scores are compared."""

SETTLED = 3
"""A learning rate is chosen by the mean over so many seeds."""

SURE = 5
"""What one seed has learned is no chance if it is above the first weights by so many standard errors."""

Piece = tuple[float, Callable[[], None]]
"""How many seconds some work took at best, and the work."""


class Judge:
    """Scores and losses of weights on what is held out: of each example, the means over its steps.

    - `score`: of one example at one step, more is better; `None` for minus the loss.
    - `seconds`: how long it takes.

    **Raises** `InputTypeError` and `InputError` where the score is no function that returns one number.
    """

    def __init__(self, batch: Batch, data: Data, score: Callable[[Any, Any], Any] | None):
        trial = batch.trial
        loss, program, size = Loss.of(trial.loss_fn, False), trial.shown, batch.size
        chosen = loss if score is None else Loss.of(score, False, "score")
        if score is not None:
            leaves = program.plan.analysis.step.output_leaves
            targets = jax.tree.map(lambda a: one_step(a, size), trial.targets)
            chosen.check(leaves.join(leaves.avals), targets)
        self._data, self._sign, self.seconds = data, 1 if score else -1, 0.0

        def judged(arrays: Any, xs: Any, targets: Any, mask: Any) -> Any:
            xs = jax.tree.map(lambda x: finite_where_masked(x, mask), xs)
            ys, _ = program.predict(batch.model(arrays), xs, program.init(size))

            def means(loss: Loss) -> Any:
                of_each = lambda y, target, weight: loss(y, target, weight)[0]
                for _ in trial.lead:
                    of_each = jax.vmap(of_each)
                total = of_each(ys, targets, mask).sum(0)
                return total / jnp.where(counts, mask.sum(0), 1).astype(total.dtype)

            mask = mask.astype(float)
            counts = mask.sum(0) != 0
            return means(chosen), means(loss), counts

        self._judged = jax.jit(judged)

    def __call__(self, arrays: Any, seed: int) -> np.ndarray:
        """[2, N], of the N examples on which a loss counts."""
        begun, found = monotonic(), []
        for held in self._data.held(seed):
            score, loss, counts = (np.ravel(a) for a in self._judged(arrays, *held))
            found.append(np.stack([self._sign * score, loss])[:, counts])
        self.seconds = min(self.seconds or math.inf, monotonic() - begun)
        return np.concatenate(found, 1)


@dataclasses.dataclass
class Training:
    """One training of a rule at a rate with a seed.

    - `state`: parameters, state of the optimiser, and carry.
    - `losses`: before each update.
    - `judged`: [2, N] of the judge, by the number of updates.
    """

    state: Any
    judged: dict[int, np.ndarray]
    losses: list[float] = dataclasses.field(default_factory=list[float])

    @property
    def diverged(self) -> bool:
        return bool(self.losses) and not math.isfinite(self.losses[-1])

    @property
    def unstable(self) -> bool:
        """Whether it diverged, or its losses end two standard errors above those of an earlier quarter."""
        if self.diverged or len(self.losses) < FIRST:
            return self.diverged
        *before, last = (np.array(part) for part in np.array_split(self.losses, 4))
        gap = lambda part: last.mean() - part.mean() - 2 * math.hypot(error(last), error(part))
        return max(map(gap, before)) > 0

    def at(self, updates: int | float) -> tuple[float, float]:
        """The mean score and minus the loss after so many updates, on a line between those that were judged."""
        counts = sorted(self.judged)
        means = np.stack([self.judged[n].mean(1) for n in counts], 1)
        score, loss = (float(np.interp(updates, counts, values)) for values in means)
        finite = math.isfinite(score) and math.isfinite(loss)
        return (score, -loss) if finite else (-math.inf, -math.inf)


@dataclasses.dataclass(eq=False)
class Contender:
    """A rule at a rate, relative to that of the optimiser.

    - `name`: the same for rules that are one.
    """

    name: Hashable
    way: Way
    rate: float
    trainings: list[Training]

    @property
    def diverged(self) -> bool:
        return self.trainings[0].diverged

    def at(self, updates: float, seeds: int) -> tuple[float, ...]:
        """As of a training, the means over the first ones."""
        return tuple(np.mean([t.at(updates) for t in self.trainings[:seeds]], 0).tolist())

    def scores(self, updates: int) -> list[float]:
        """Of the trainings that went so far."""
        return [t.at(updates)[0] for t in self.trainings if updates in t.judged]

    def score(self, updates: int) -> float:
        return float(np.mean(self.scores(updates)))

    @property
    def reached(self) -> int:
        """The number of updates after which the most seeds are judged; of several, the largest."""
        counts = [n for n in self.trainings[0].judged if n]
        return max(counts, key=lambda n: (len(self.scores(n)), n), default=0)

    def spread(self, updates: int) -> float:
        """The standard error of the score over what is held out; that over seeds where it is more."""
        scores = [t.judged[updates][0] for t in self.trainings if updates in t.judged]
        return max(error(np.concatenate(scores)), error(np.array([s.mean() for s in scores])))


def error(values: np.ndarray) -> float:
    """The standard error of a mean."""
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else 0.0


class Race:
    """Contenders, what they have reached, and the order of the work.

    In each bracket all begin, at the first rate before any other; the better half goes on with twice the updates,
    until two rules are left, which train with three seeds. The next bracket compares all for the first time at twice
    the updates: scores may be noise before a task is learned. Better is who scores higher after equal numbers of
    updates; where no `longest` number is given, in equal time too. In the place of more than the longest number, the
    better half trains with one seed more. Once two are left, half of the time is for the rule that is ahead, which
    trains at all its rates with three seeds; a longer comparison counts if there is time for that again.

    What is next follows from what has been reached, wherever the race stopped.

    - `guests`: names that are no rules, such as BPTT's. They go along to the end, and take no place of a rule.
    - `updates`: of the longest comparison of two that were left; of the last comparison, if none were yet.
    - `seeds`: of the two that are left, after the longest number of updates; then the race is `over`.
    - `settling`: the number of seeds by which a rate is chosen.
    """

    def __init__(
        self,
        batch: Batch,
        data: Data,
        score: Any,
        rates: Sequence[float],
        longest: int | None = None,
    ):
        self.batch, self.data, self.score, self.rates = batch, data, score, rates
        self.judge = Judge(batch, data, score)
        self.longest = longest or sys.maxsize
        self.seeds = data.seeds if longest else min(SETTLED, data.seeds)
        self.settling = min(SETTLED, self.seeds)
        self.contenders, self.guests = list[Contender](), set[Hashable]()
        self.updates, self._final, self.over = 0, False, False
        self._compared = dict[tuple[Any, ...], list[Contender]]()

    @cached_property
    def start(self) -> list[np.ndarray]:
        """Of the first weights, what the judge finds with each seed."""
        if not self.data.single:  # all judge on the same batches
            return [self.judge(self.batch.arrays, 0)] * self.seeds
        return [self.judge(self.batch.arrays, seed) for seed in range(self.seeds)]

    def add(self, name: Hashable, way: Way) -> None:
        """Let a rule begin, at each rate, unless it is one with another that has begun."""
        if any(c.name == name for c in self.contenders):
            return
        for rate in self.rates:
            state = (*way.batch.start, way.first)
            trainings = [Training(state, {0: judged}) for judged in self.start]
            self.contenders.append(Contender(name, way, rate, trainings))

    def run(self, end: float) -> bool:
        """Work until no piece fits; see `Race`. **Returns** whether one was left."""
        begun, self.over = monotonic(), False
        left, worked, to_the_end = True, True, False
        while (worked or not to_the_end) and (now := monotonic()) < end:
            to_the_end = not worked  # what is longer than half of the time
            worked, left, before, settled = False, False, self.updates, self._settled
            half = (now + end) / 2
            for settling in (False, True):
                for seconds, work in self._settling() if settling else self.pieces():
                    whole = settling or to_the_end or not self._final
                    if (now := monotonic()) + seconds > (end if whole else half):
                        left = True
                        break
                    show(int(20 * (now - begun) / (end - begun)), 20, "training")
                    work()
                    worked = True
            if settled and not self._settled:
                self.updates = before
        return left

    @property
    def _first(self) -> Contender | None:
        """The rule that is ahead."""
        return next(iter(self._rules(self.order)), None)

    @property
    def _settled(self) -> bool:
        """Whether its rate is chosen."""
        return (first := self._first) is not None and self.settled(first)

    def pieces(self) -> Iterator[Piece]:
        """What is next, and what would be after that."""
        for bracket in itertools.count():
            playing = sorted(self.contenders, key=lambda c: self.rates.index(c.rate))
            updates, seeds = min(FIRST << bracket, self.longest), 1
            last = updates == self.longest
            for contender in [c for c in playing if c.rate == self.rates[0]]:
                yield from self._to(contender, 0, updates)
            self.updates = self.updates or updates  # all rules can be compared, at this rate
            while len(self._rules(playing)) > 2:
                for contender, seed in itertools.product(playing, range(seeds)):
                    yield from self._to(contender, seed, updates)
                order = self._compare(playing, updates, seeds)
                rules, half = self._rules(order), lambda group: -(-len(group) // 2)
                guests = [c for c in order if c not in rules]
                playing = rules[: max(2, half(rules))] + guests[: half(guests)]
                seeds = min(seeds + (updates == self.longest), self.seeds)
                updates = min(2 * updates, self.longest)
            seeds = self.seeds if last else min(max(seeds, SETTLED), self.seeds)
            for contender, seed in itertools.product(playing, range(seeds)):
                yield from self._to(contender, seed, updates)
            if all(c.diverged for c in playing):
                return
            if updates >= self.updates:
                self.updates, self._final = updates, True
            if last:
                self.over = True
                return

    def _settling(self) -> Iterator[Piece]:
        """All rates of the rule that is ahead, with several seeds; then those of the rule that is ahead by that."""
        while self._final and (best := self._first):
            if best.diverged or self.settled(best):
                return
            rates = [c for c in self.contenders if c.name == best.name and not c.diverged]
            for seed, contender in itertools.product(range(self.settling), rates):
                yield from self._to(contender, seed, self.updates)

    def _rules(self, contenders: Sequence[Contender]) -> list[Contender]:
        return [c for c in contenders if c.name not in self.guests]

    def _to(self, contender: Contender, seed: int, updates: int) -> Iterator[Piece]:
        """Train until so many updates, and judge there."""
        training = contender.trainings[seed]
        while len(training.losses) < updates and not training.diverged:
            yield contender.way.shortest, lambda: self._update(contender, seed)
        if updates not in training.judged:
            yield self.judge.seconds, lambda: self._judge(training, seed, updates)

    def _update(self, contender: Contender, seed: int) -> None:
        training, way = contender.trainings[seed], contender.way
        data = self.batch.padded(*self.data.training(seed, len(training.losses)))
        begun = monotonic()
        state, loss = way.train(training.state, data, contender.rate)
        way.shortest = min(way.shortest or math.inf, monotonic() - begun)
        training.state = state
        training.losses.append(loss)

    def _judge(self, training: Training, seed: int, updates: int) -> None:
        nothing, weights = math.nan * training.judged[0], training.state[0]
        training.judged[updates] = nothing if training.diverged else self.judge(weights, seed)

    def _compare(self, playing: Sequence[Contender], updates: int, seeds: int) -> list[Contender]:
        """Order contenders by the scores after so many updates; where no longest number is given, in turns by these and
        by those within the time in which the fastest rule comes so far. The best rate of each rule is before the other
        ones. It is done once: times get shorter."""
        if (updates, seeds, *playing) in self._compared:
            return self._compared[updates, seeds, *playing]
        order = sorted(playing, key=lambda c: c.at(updates, seeds), reverse=True)
        if self.longest == sys.maxsize:
            shortest = min(c.way.shortest for c in self._rules(playing))
            within = lambda c: updates * shortest / (c.way.shortest or 1)
            by_time = sorted(playing, key=lambda c: c.at(within(c), seeds), reverse=True)
            order = list(dict.fromkeys(itertools.chain(*zip(order, by_time, strict=True))))
        names = [c.name for c in order]
        place = {c: names[:n].count(c.name) for n, c in enumerate(order)}
        order.sort(key=lambda c: place[c])
        if not self._final:
            self.updates = updates
        self._compared[updates, seeds, *playing] = order
        return order

    # --- the answer ---

    def ranked(self, updates: int) -> list[Contender]:
        """Who went so far, in any bracket: the highest score first, of equal ones the faster, then the lower loss.

        Who trained with more seeds was chosen for high scores with the first ones. So with each seed scores count above
        the mean of those who trained with the most seeds.
        """
        scores = {c: found for c in self.contenders if (found := c.scores(updates))}
        most = max(map(len, scores.values()), default=0)
        rows = [row for row in scores.values() if len(row) == most and all(map(math.isfinite, row))]
        usual = np.mean(rows or [[0.0] * most], 0)
        above = {c: float(np.mean(row - usual[: len(row)])) for c, row in scores.items()}
        return sorted(
            scores, key=lambda c: (-above[c], c.way.shortest, -c.trainings[0].at(updates)[1])
        )

    @property
    def order(self) -> list[Contender]:
        """Who went as far as `updates`, the best first, each at its best rate; one `in_doubt` only without others."""
        far = self.ranked(self.updates) if self.updates else []
        first = dict[Hashable, Contender]()
        for c in [*(c for c in far if not self.in_doubt(c, far)), *far]:
            first.setdefault(c.name, c)
        return [c for c in far if c is first[c.name]]

    def in_doubt(self, one: Contender, far: Sequence[Contender]) -> bool:
        """Whether a rate is at the edge of several, and is unstable in a seed, or is higher than all others and not
        ahead of each beyond doubt: after few updates, high rates lead that do not in the end."""
        rates = [c for c in far if c.name == one.name and c is not one]
        low, high = min(self.rates), max(self.rates)
        if not rates or one.rate not in (low, high):
            return False
        early = one.rate == high and self.updates < self.longest
        unstable = any(t.unstable for t in one.trainings[: len(one.scores(self.updates))])
        return unstable or (early and not all(self.ahead(one, c) for c in rates))

    def settled(self, one: Contender) -> bool:
        """Whether all rates of a rule that have not diverged trained with several seeds."""
        rates = (c for c in self.contenders if c.name == one.name and not c.diverged)
        return all(len(c.scores(self.updates)) >= self.settling for c in rates)

    def ahead(self, one: Contender, other: Contender | None, last: int | None = None) -> bool:
        """Whether one scores higher than another, or than the first weights, after `updates` or `last`: in the mean by
        two standard errors over what is held out, and over the seeds that both have, of two seeds with each."""
        last = self.updates if last is None else last
        if math.isinf(one.score(last)) or (other and other.diverged):
            return math.isfinite(one.score(last))
        gaps = self._gaps(one, other, last)
        means = np.array([gap.mean() for gap in gaps])
        least = 2 * error(means) if len(means) > 2 else means.mean() - means.min()
        return bool(means.mean() > max(least, *(2 * error(gap) for gap in gaps)))

    def lucky(self, one: Contender) -> int:
        """With how many seeds it is far above the first weights, where it is not ahead of them in the mean; with none
        where one example is held out, which has no spread."""
        gaps = self._gaps(one, None, self.updates)
        if self.ahead(one, None):
            return 0
        return sum(gap.size > 1 and gap.mean() > SURE * error(gap) for gap in gaps)

    def _gaps(self, one: Contender, other: Contender | None, last: int) -> list[np.ndarray]:
        """How much higher it scores than another, or than the first weights, with each seed that both have: for each
        example that is held out."""
        then = last if other else 0
        return [
            a.judged[last][0] - b.judged[then][0]
            for a, b in zip(one.trainings, (other or one).trainings, strict=True)
            if last in a.judged and then in b.judged
        ]

    def decided(self, one: Contender, other: Contender) -> bool:
        """Whether one is ahead of another, with three seeds or as many as there are, and two at least."""
        seeds = min(len(c.scores(self.updates)) for c in (one, other))
        enough = seeds >= max(2, self.settling)
        return self.ahead(one, other) and (enough or other.diverged)

    def leads(self, one: Contender | None, other: Contender | None) -> bool:
        """Whether one is ahead of another where both were last judged; not if there are no two."""
        if one is None or other is None or one is other:
            return False
        counts = set(one.trainings[0].judged) & set(other.trainings[0].judged) - {0}
        return bool(counts) and self.ahead(one, other, max(counts))

    def best(self, name: Hashable) -> Contender | None:
        """Of a rule, the rate in `order`, or else the one that went furthest; of several, the best one there."""
        if (found := next((c for c in self.order if c.name == name), None)) is not None:
            return found
        mine = [c for c in self.contenders if c.name == name and c.trainings[0].losses]
        furthest = max((max(c.trainings[0].judged) for c in mine), default=0)
        return next((c for c in self.ranked(furthest) if c in mine), None)
