"""One model and one task, trained by several learning rules with the same data and updates.

A task is a module of this folder with a `Task` in it. Its command line:

    python -m examples.tasks.copying                         # a table; minutes on 2 cores
    python -m examples.tasks.copying --seeds 1 --arms "D-RTRL" "BPTT"
    python -m examples.tasks.copying --json copying.json --plot copying.svg

With `--json`, arms that the file has and that are not run again are kept.

An arm differs from the others in its gradient and its learning rate: initial weights, data and the
number of updates are the same for each seed. The rate is chosen for each arm from a grid of three, by
the training loss of one more seed. The weights move once for a batch of sequences, or, where a task is
online, after every so many steps, with the traces carried on. Backpropagation through time (BPTT)
always waits for the end of the sequence. In a stream, each batch goes on where the one before stopped;
the traces are carried on from batch to batch, and BPTT begins anew with each.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import optax
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PRNGKeyArray
from tqdm import tqdm

import etpc
from etpc.algorithms import Algorithm
from etpc.rules import CreditSubspace

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few updates, to see that it runs

Batch = tuple[Any, Any, Array | None]
"""`xs` and `targets` with the leading axes T and B, and the weight of each step in loss and score
[T, B], `None` where all count."""


GRID = (1.0, 1 / 3, 3.0)
"""The learning rates that are tried, relative to the task's."""

TUNING_SEED = 100

DRAWN = 5
"""So many arms are drawn at least."""

SETTLING = 20
"""So many batches follow the directions of credit at weights that other arms have trained, before the
gradient is compared there."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A learning rule under the name it has in tables; `None` is BPTT.

    A `main` arm is run with all seeds, the others with the first three; so is each that is asked for by name.
    """

    name: str
    rule: Algorithm | None
    optimiser: Callable[..., optax.GradientTransformation] = optax.adam
    main: bool = False


@dataclasses.dataclass(frozen=True)
class RandomDirections(CreditSubspace):
    """Directions drawn at random, which stay."""

    def ends(self, shared: Any, each: Any, states: Any) -> tuple[Array, Any]:
        units = shared[-1]
        return self.basis(shared, each), (*shared[:3], shared[-2], units, units)

    def advance(
        self, shared: Any, each: Any, chosen: Any, starts: Any, credit: Any, push: Any
    ) -> tuple[Array, Any, Any]:
        transition, _, each = super().advance(shared, each, chosen, starts, None, push)
        return transition, shared, each


@dataclasses.dataclass(frozen=True)
class RandomRTRL(etpc.CreditRTRL):
    """The control of `CreditRTRL`: what escapes is followed along random directions."""

    def choose(self, context: Any) -> Any:
        choice = super().choose(context)
        count = min(4, context.analysis.hidden.size)
        return dataclasses.replace(choice, extension=RandomDirections(count))


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The task's level rises by one after each batch whose loss is below `threshold`.

    A batch is then drawn by `batch(key, level)`, and the score is the level reached.
    """

    threshold: float
    first: int = 1
    last: int = 10**6


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learnt, and how.

    - `make_model(key)`: a model as `etpc.compile` takes it, with `init_state`.
    - `batch(key)`: a `Batch`; traced by JAX. With a curriculum, `batch(key, level)`.
    - `loss_fn(y, target)`: of one example at one step.
    - `score(ys, targets, mask)`: of outputs [T, B, ...], from 0 to 1 unless `unit` says otherwise.
    - `chance`: the score of not remembering anything.
    - `rate`: the middle of the grid of learning rates; `schedule(rate)` is what the optimiser gets.
    - `last`: the score is the mean of so many last measurements.
    - `window`: W of truncated BPTT, of full windows and of low-rank traces; it divides T.
    - `every`: in an online task, the number of steps between updates; it divides T, and W it.
    - `stream`: whether each batch goes on where the one before stopped. A batch is then drawn by
        `batch(key, number)`, with the number of batches before it.
    - `test`: what the score is measured on, one `Batch` of any size; `None` for new batches.
    - `uncut`: whether the rules that need the Jacobian of the whole step are among the arms. They can
        take many times as long as all other rules together.
    - `through`: whether the rules that follow influence through a leaky readout are among the arms.
    """

    name: str
    make_model: Callable[[PRNGKeyArray], Any]
    batch: Callable[..., Batch]
    loss_fn: Callable[[Any, Any], Array]
    score: Callable[[Any, Any, Array], Array] | None = None
    chance: float = 0.5
    unit: str = "accuracy"
    batch_size: int = 32
    updates: int = 500
    rate: float = 3e-3
    schedule: Callable[[Any], Any] = lambda rate: rate
    last: int = 1
    window: int = 10
    decay: float = 0.99
    rank: int = 4
    every: int | None = None
    stream: bool = False
    test: Batch | None = None
    uncut: bool = True
    through: bool = False
    curriculum: Curriculum | None = None
    fixed: Callable[[], Sequence[Batch]] | None = None
    """All of a fixed data set in batches, each example once; `None` where data does not end."""
    points: int = 20
    """How often the score is measured while training."""
    test_batches: int = 8
    """So many new batches are a measurement of the score; the same ones each time."""

    @property
    def steps(self) -> int:
        """T."""
        level = jnp.zeros((), int)
        needs = self.curriculum or self.stream
        drawn = jax.eval_shape(self.batch, jax.random.key(0), *([level] if needs else []))
        return jax.tree.leaves(drawn[0])[0].shape[0]

    def optimiser(
        self, rate: Any, moves: Callable[[Any], Any] = optax.adam
    ) -> optax.GradientTransformation:
        """With the schedule of the task; the norm of gradients is clipped to 1."""
        return optax.chain(optax.clip_by_global_norm(1.0), moves(self.schedule(rate)))


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm with one seed.

    `error` (of the norm) and `cosine` are those of the gradient of a whole sequence against BPTT,
    over all weights, at the initial weights, at those that BPTT has trained, and at those that the arm
    itself has. `past` is the cosine of the part that TBPTT(W) lacks: between what is left of both
    gradients when that of TBPTT(W) is subtracted. `lags` is that cosine by lag, at the weights that
    BPTT has trained: of the gradient of the loss in the last W steps, the part that reaches back over
    the lags in `bins`, from `bins[n]` to `bins[n + 1]` steps before these. `carry_bytes` is what is
    passed on from step to step, `temp_bytes` what XLA needs beside it for the gradient of one batch,
    which takes `ms_per_batch`. `batches` and `curve` are the learning curve. `None`: not measured.
    """

    task: str
    arm: str
    seed: int
    score: float
    chance: float
    unit: str
    error_initial: float
    cosine_initial: float
    error_trained: float
    cosine_trained: float
    ms_per_batch: float
    carry_bytes: int
    temp_bytes: int
    batches: list[int]
    curve: list[float]
    rate: float | None = None
    cosine_own: float | None = None
    past_initial: float | None = None
    past_trained: float | None = None
    bins: list[int] | None = None
    lags: list[float] | None = None


def default_arms(task: Task) -> tuple[Arm, ...]:
    """The rules that each task is learnt by."""
    w, r = task.window, task.rank
    exact = etpc.D_RTRL(window=w, backprop="full")
    uncut = {
        "SnAp(1)": etpc.SnAp(1),
        f"RTRL, rank {r}": etpc.RTRL(rank=r, window=w),
        "Kronecker sums, rank 4": etpc.OK(window=w),
    }
    # Once for each sequence it is BPTT.
    rtrl = [Arm("exact gradient", etpc.TBPTT(task.steps, w), main=True)] if task.every else []
    return (
        Arm("BPTT", None, main=True),
        *rtrl,
        Arm("immediate gradient", etpc.TBPTT(1), main=True),
        Arm("immediate gradient, RMSprop", etpc.TBPTT(1), optax.rmsprop),
        *(
            Arm(str(rule), rule, main=rule.every is None)
            for rule in (etpc.TBPTT(w), etpc.TBPTT(2 * w, w), etpc.TBPTT(4 * w, w))
        ),
        Arm("D-RTRL", etpc.D_RTRL(), main=True),
        *([Arm("D-RTRL, through", etpc.D_RTRL(through=True), main=True)] if task.through else []),
        *([Arm("e-prop", etpc.EProp(), main=True)] if task.through else []),
        Arm("D-RTRL, full windows", exact, main=True),
        Arm(f"D-RTRL, look-back {2 * w}", dataclasses.replace(exact, lookback=2 * w)),
        Arm(f"ES-D-RTRL, decay {task.decay:g}", etpc.ES_D_RTRL(decay=task.decay), main=True),
        Arm(f"ES-D-RTRL, rank {r}", etpc.ES_D_RTRL(rank=r, window=w), main=True),
        *(Arm(name, rule) for name, rule in uncut.items() if task.uncut),
        Arm("UORO", etpc.UORO(window=w)),
        Arm(f"credit, q = 4, rank {r}, random directions", RandomRTRL(4, r, window=w)),
        *(
            Arm(f"credit, q = {q}, rank {r}", etpc.CreditRTRL(q, r, window=w), main=q == 4)
            for q in (2, 4, 8)
        ),
        *(Arm(f"credit, q = {q}, whole", etpc.CreditRTRL(q, None, window=w)) for q in (2, 4)),
    )


# --- gradients ---


@dataclasses.dataclass(frozen=True)
class Rule:
    """`gradient(model, xs, targets, carry) -> ((loss, carry), grads)`, a fresh carry, and from a carry
    that with which new sequences begin."""

    gradient: Callable[..., Any]
    carry: Any
    restart: Callable[[Any], Any]
    every: int | None


def make_rule(task: Task, arm: Arm, model: Any, xs: Any) -> Rule:
    """The gradient of an arm, summed over time and averaged over the batch."""
    if arm.rule is not None:
        step_inputs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[2:], a.dtype), xs)
        program = etpc.compile(model, arm.rule, inputs=step_inputs, batch_size=task.batch_size)
        gradient = program.value_and_grad(weighted(task.loss_fn), "sum")
        everyone = jnp.ones(task.batch_size, bool)
        restart = lambda carry: program.reset(carry, everyone)
        return Rule(gradient, program.init(task.batch_size), restart, task.every)
    state = jax.vmap(lambda _: model.init_state())(jnp.arange(task.batch_size))
    return Rule(backpropagation(weighted(task.loss_fn)), state, lambda _: state, None)


def weighted(loss_fn: Callable[[Any, Any], Array]) -> Callable[[Any, Any], Array]:
    """A loss whose target comes with the weight of the step."""
    return lambda y, target: target[1] * loss_fn(y, target[0])


def backpropagation(loss_fn: Callable[[Any, Any], Array]) -> Callable[..., Any]:
    """BPTT; the state is passed on, as a carry is."""

    def sequence(model: Any, xs: Any, targets: Any, state: Any) -> tuple[Array, Any]:
        def step(state: Any, step_data: Any) -> tuple[Any, Array]:
            x, target = step_data
            y, state = jax.vmap(model)(x, state)
            return state, jax.vmap(loss_fn)(y, target).mean()

        state, losses = jax.lax.scan(step, state, (xs, targets))
        return losses.sum(), state

    return eqx.filter_value_and_grad(sequence, has_aux=True)


def gradient_from(loss_fn: Callable[[Any, Any], Array]) -> Callable[..., Any]:
    """The gradient of BPTT in which nothing reaches back beyond the start of step `first`."""

    def losses(weights: Any, static: Any, data: Any, state: Any, first: Array) -> Array:
        model = eqx.combine(weights, static)

        def step(state: Any, step_data: Any) -> tuple[Any, Array]:
            t, (x, target) = step_data
            state = jax.tree.map(
                lambda a: jnp.where(t == first, jax.lax.stop_gradient(a), a), state
            )
            y, state = jax.vmap(model)(x, state)
            return state, jax.vmap(loss_fn)(y, target).mean()

        steps = jnp.arange(jax.tree.leaves(data)[0].shape[0])
        return jax.lax.scan(step, state, (steps, data))[1].sum()

    return eqx.filter_jit(jax.grad(losses))


def in_windows(tree: Any, size: int) -> Any:
    """[T, ...] as [T / size, size, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)


def windows_of(tree: Any, size: int) -> list[Any]:
    """The parts of [T, ...], [size, ...] each."""
    parts = in_windows(tree, size)
    count = jax.tree.leaves(parts)[0].shape[0]
    return [jax.tree.map(lambda a, n=n: a[n], parts) for n in range(count)]


def fidelity(grads: Any, reference: Any) -> tuple[float, float]:
    """Relative error and cosine of a gradient, all weights as one vector."""
    got, want = (ravel_pytree(tree)[0] for tree in (grads, reference))
    norm, size = jnp.linalg.norm(want), jnp.linalg.norm(got)
    cosine = got @ want / (size * norm) if size or not norm else 0.0
    return float(jnp.linalg.norm(got - want) / norm), float(cosine)


# --- training ---


class Learner:
    """An arm on a task, compiled once for all seeds and rates."""

    def __init__(self, task: Task, arm: Arm):
        self.task, self.arm = task, arm
        model = task.make_model(jax.random.key(0))
        weights, self.static = eqx.partition(model, eqx.is_inexact_array)
        level = jnp.asarray(task.curriculum.first if task.curriculum else 0)
        key = jax.random.key(0)
        sample = self.draw(key, level)
        self.rule = make_rule(task, arm, model, sample[0])
        self.begin = (level, self.rule.carry)
        arguments = (weights, *sample, self.rule.carry)
        self.gradient = jax.jit(self._gradient).lower(*arguments).compile()
        self.part = jax.jit(partial(self._gradient, restart=False))
        self.train = jax.jit(self._train)
        self.ms_per_batch = self._time(arguments)

    @property
    def temp_bytes(self) -> int:
        stats: Any = self.gradient.memory_analysis()
        return stats.temp_size_in_bytes

    @property
    def carry_bytes(self) -> int:
        return sum(a.nbytes for a in jax.tree.leaves(self.rule.carry))

    def optimiser(self, rate: Any) -> optax.GradientTransformation:
        return self.task.optimiser(rate, self.arm.optimiser)

    def draw(self, key: PRNGKeyArray, level: Array) -> tuple[Any, Any]:
        """Inputs, and targets with the weight of each step; the weights add up to 1 over time.

        `level` is that of the curriculum, or in a stream the number of the batch.
        """
        arguments = (key, level) if self.task.curriculum or self.task.stream else (key,)
        xs, targets, mask = self.task.batch(*arguments)
        mask = full_mask(xs, mask)
        return xs, (targets, mask / mask.sum(0).mean())

    def _gradient(
        self, weights: Any, xs: Any, targets: Any, carry: Any, restart: bool = True
    ) -> tuple[Any, Any]:
        """The gradient of a batch, and the carry with which the next one begins or goes on."""
        model = eqx.combine(weights, self.static)
        (_, carry), grads = self.rule.gradient(model, xs, targets, carry)
        return grads, self.rule.restart(carry) if restart else carry

    def _time(self, arguments: tuple[Any, ...]) -> float:
        times = []
        for _ in range(3 if FAST else 20):
            begin = time.perf_counter()
            jax.block_until_ready(self.gradient(*arguments))
            times.append(1e3 * (time.perf_counter() - begin))
        return min(times)

    def settled(self, weights: Any, level: Array, key: PRNGKeyArray) -> Any:
        """A fresh carry with directions that have followed the credit at some weights."""
        carry = self.rule.carry
        if getattr(carry, "shared", ()):
            for one in jax.random.split(jax.random.fold_in(key, 1), SETTLING):
                carry = self.gradient(weights, *self.draw(one, level), carry)[1]
        return carry

    def gradient_from(self, weights: Any, xs: Any, targets: Any, carry: Any, first: int) -> Any:
        """The gradient of a batch in which nothing reaches back beyond step `first`."""
        sums = None
        for n, window in enumerate(windows_of((xs, targets), self.task.window)):
            if n * self.task.window == first:
                fresh = self.rule.restart(carry)
                carry = dataclasses.replace(fresh, state=carry.state)
                sums = None
            part, carry = self.part(weights, *window, carry)
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
        return sums

    def _train(self, rate: Any, start: Any, keys: PRNGKeyArray) -> tuple[Any, Array]:
        """One batch for each key."""
        optimiser = self.optimiser(rate)

        def update(training_state: Any, window_data: Any) -> tuple[Any, Array]:
            weights, opt_state, carry = training_state
            model = eqx.combine(weights, self.static)
            (loss, carry), grads = self.rule.gradient(model, *window_data, carry)
            changes, opt_state = optimiser.update(grads, opt_state, weights)
            return (optax.apply_updates(weights, changes), opt_state, carry), loss

        def one_batch(training_state: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
            weights, opt_state, (level, carry) = training_state
            xs, targets = self.draw(key, level)
            size = self.rule.every or jax.tree.leaves(xs)[0].shape[0]
            start = (weights, opt_state, carry)
            after, losses = jax.lax.scan(update, start, in_windows((xs, targets), size))
            weights, opt_state, carry = after
            if self.task.stream:
                level = level + 1
            else:
                carry = self.rule.restart(carry)
            if (rises := self.task.curriculum) is not None:
                up = level + (losses.sum() < rises.threshold)
                level = jnp.minimum(up, rises.last)
            return (weights, opt_state, (level, carry)), losses.sum()

        return jax.lax.scan(one_batch, start, keys)


def full_mask(xs: Any, mask: Array | None) -> Float[Array, "T B"]:
    if mask is None:
        return jnp.ones(jax.tree.leaves(xs)[0].shape[:2])
    return jnp.asarray(mask, jnp.float32)


def evaluator(task: Task) -> Callable[[Any], Array]:
    """The score of a model on test data. The model runs without any gradient."""
    score = task.score
    if score is None:
        raise ValueError(f"{task.name} has neither a score nor a curriculum")

    def measure(model: Any, xs: Any, targets: Any, mask: Array | None) -> Array:
        size = jax.tree.leaves(xs)[0].shape[1]
        state = jax.vmap(lambda _: model.init_state())(jnp.arange(size))

        def step(state: Any, x: Any) -> tuple[Any, Any]:
            y, state = jax.vmap(model)(x, state)
            return state, y

        _, ys = jax.lax.scan(step, state, xs)
        return score(ys, targets, full_mask(xs, mask))

    if task.test is not None:
        return partial(eqx.filter_jit(lambda test, model: measure(model, *test)), task.test)
    keys = jax.random.split(jax.random.key(2**31), task.test_batches)

    def measure_all(model: Any) -> Array:
        return jax.lax.map(lambda key: measure(model, *task.batch(key)), keys).mean()

    return eqx.filter_jit(measure_all)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run ends with."""

    weights: Any
    level: Array
    carry: Any
    batches: list[int]
    curve: list[float]
    loss: float
    """That of training, over the last tenth."""


def trained(learner: Learner, seed: int, rate: float, measure: Any, chunk: int) -> Trained:
    """A run; `measure(weights, level)` is the score."""
    task = learner.task
    model_key, data_key = jax.random.split(jax.random.key(seed))
    weights = eqx.filter(task.make_model(model_key), eqx.is_inexact_array)
    level, carry = learner.begin
    training_state = (weights, learner.optimiser(rate).init(weights), learner.begin)
    points = min(task.points, task.updates)
    batches, curve, losses = [0], [measure(weights, level)], []
    name = f"{task.name}: {learner.arm.name}, seed {seed}, rate {rate:.2g}"
    with tqdm(total=points * chunk, desc=f"{name:<60}", unit="batch", ncols=130) as bar:
        for keys in jax.random.split(data_key, (points, chunk)):
            training_state, loss = jax.block_until_ready(learner.train(rate, training_state, keys))
            losses += loss.tolist()
            weights, _, (level, carry) = training_state
            batches.append(batches[-1] + chunk)
            curve.append(measure(weights, level))
            bar.update(chunk)
            bar.set_postfix({task.unit: f"{curve[-1]:.3g}"})
    last = statistics.fmean(losses[-max(1, len(losses) // 10) :])
    return Trained(weights, level, carry, batches, curve, last)


def between_scores(task: Task) -> int:
    """So many updates lie between two scores."""
    return max(1, task.updates // task.points)


def tuned(learner: Learner, measure: Any, chunk: int, seeds: int = 1) -> float:
    """The rate of the grid with the lowest loss at the end; with a curriculum, the highest level. Means over seeds,
    which are other ones than those of the scores."""
    return best_rate(learner, measure, chunk, seeds)[1]


def best_rate(
    learner: Learner, measure: Any, chunk: int, seeds: int = 1
) -> tuple[tuple[float, float], float]:
    """By what `tuned` chooses, the lowest first, and the rate."""

    def rank(rate: float) -> tuple[float, float]:
        ends = [trained(learner, TUNING_SEED + n, rate, measure, chunk) for n in range(seeds)]
        loss = statistics.fmean(end.loss if end.loss == end.loss else float("inf") for end in ends)
        level = statistics.fmean(float(end.level) for end in ends)
        return (-level if learner.task.curriculum else 0.0), loss

    rates = (factor * learner.task.rate for factor in GRID)
    return min(((rank(rate), rate) for rate in rates), key=lambda found: found[0])


def prepared(task: Task, arm: Arm) -> tuple[Learner, Any, int]:
    """A rule that is compiled, the score of weights, and the updates between two scores."""
    measure = measured(learner := Learner(task, arm), None if task.curriculum else evaluator(task))
    return learner, measure, between_scores(task)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What gradients are compared with at some weights: those of BPTT and of TBPTT(W), of one batch.

    `parts` are the gradients of BPTT of the loss in the last W steps, nothing of which reaches back
    beyond the steps `firsts`, from the start of the last window to that of the sequence.
    """

    weights: Any
    level: Array
    data: tuple[Any, Any]
    whole: Any
    window: Any
    firsts: list[int]
    parts: list[Any]

    def past(self, grads: Any) -> float:
        """The cosine of the part that TBPTT(W) lacks."""
        beyond = [jax.tree.map(jnp.subtract, g, self.window) for g in (grads, self.whole)]
        return fidelity(*beyond)[1]

    def lags(self, learner: Learner, carry: Any) -> list[float]:
        """The cosine of a rule between one step of `firsts` and the next; `carry` is a fresh one."""
        xs, targets = self.data
        gradients = [
            learner.gradient_from(self.weights, xs, late(targets, learner.task), carry, first)
            for first in self.firsts
        ]
        between = lambda grads: [
            jax.tree.map(jnp.subtract, more, less) for less, more in pairwise(grads)
        ]
        return [
            fidelity(*pair)[1] for pair in zip(between(gradients), between(self.parts), strict=True)
        ]


def late(targets: tuple[Any, Array], task: Task) -> tuple[Any, Array]:
    """The loss counts in the last W steps alone."""
    target, weight = targets
    last = jnp.arange(weight.shape[0]) >= weight.shape[0] - task.window
    return target, weight * last[:, None]


def reference(
    exact: Learner, truncated: Learner, back: Any, weights: Any, level: Array, key: PRNGKeyArray
) -> Reference:
    """`exact` is BPTT, `truncated` TBPTT(W), and `back` what `gradient_from` gives."""
    task, data = exact.task, exact.draw(jax.random.fold_in(key, 0), level)
    whole, window = (by.gradient(weights, *data, by.rule.carry)[0] for by in (exact, truncated))
    steps, lag = jax.tree.leaves(data[0])[0].shape[0], task.window
    firsts = []
    while lag < steps:
        firsts.append(steps - lag)
        lag *= 2
    firsts.append(0)
    asked = (data[0], late(data[1], task))
    parts = [
        back(weights, exact.static, asked, exact.rule.carry, jnp.asarray(first)) for first in firsts
    ]
    return Reference(weights, level, data, whole, window, firsts, parts)


def run(
    task: Task,
    arms: Sequence[Arm] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    tune: bool = True,
    found: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Train each arm with each seed. BPTT is always among them, as gradients are compared with it.

    Each arm has the best rate of the grid, or without `tune` that of the task. `found` gets the rows so
    far after each arm.
    """
    chosen = list(default_arms(task) if arms is None else arms)
    chosen.sort(key=lambda arm: arm.rule is not None)
    if chosen[0].rule is not None:
        chosen.insert(0, Arm("BPTT", None, main=True))
    chunk = between_scores(task)
    evaluate = None if task.curriculum else evaluator(task)
    exact = truncated = None
    back = gradient_from(weighted(task.loss_fn))
    references: dict[int, tuple[Reference, Reference]] = {}
    rows = []
    for arm in chosen:
        learner = Learner(task, arm)
        exact = exact or learner
        truncated = truncated or Learner(task, Arm("", etpc.TBPTT(task.window)))
        measure = measured(learner, evaluate)
        rate = tuned(learner, measure, chunk) if tune else task.rate
        for seed in [*seeds][: None if arm.main else 3]:
            end = trained(learner, seed, rate, measure, chunk)
            model_key, data_key = jax.random.split(jax.random.key(seed))
            probe = jax.random.fold_in(data_key, 0)
            if arm.rule is None:
                first = eqx.filter(task.make_model(model_key), eqx.is_inexact_array)
                points = (first, learner.begin[0]), (end.weights, end.level)
                one, other = (
                    reference(exact, truncated, back, weights, level, probe)
                    for weights, level in points
                )
                references[seed] = one, other
            initial, final = references[seed]
            carries = [learner.settled(r.weights, r.level, probe) for r in (initial, final)]
            gradients = [
                learner.gradient(r.weights, *r.data, carry)[0]
                for r, carry in zip((initial, final), carries, strict=True)
            ]
            drawn = learner.draw(jax.random.fold_in(probe, 0), end.level)
            # of a stream that begins, with the directions that training has found
            begins = learner.rule.restart(end.carry)
            own_gradient = learner.gradient(end.weights, *drawn, begins)[0]
            wanted = exact.gradient(end.weights, *drawn, exact.rule.carry)[0]
            compared = fidelity(gradients[0], initial.whole), fidelity(gradients[1], final.whole)
            rows.append(
                Row(
                    task=task.name,
                    arm=arm.name,
                    seed=seed,
                    rate=rate,
                    score=statistics.fmean(end.curve[-task.last :]),
                    chance=task.chance,
                    unit=task.unit,
                    error_initial=compared[0][0],
                    cosine_initial=compared[0][1],
                    error_trained=compared[1][0],
                    cosine_trained=compared[1][1],
                    cosine_own=fidelity(own_gradient, wanted)[1],
                    past_initial=initial.past(gradients[0]),
                    past_trained=final.past(gradients[1]),
                    bins=[final.firsts[0] - first for first in final.firsts],
                    lags=None if arm.rule is None else final.lags(learner, carries[1]),
                    ms_per_batch=learner.ms_per_batch,
                    carry_bytes=learner.carry_bytes,
                    temp_bytes=learner.temp_bytes,
                    batches=end.batches,
                    curve=end.curve,
                )
            )
        found(rows)
    return rows


def measured(
    learner: Learner, evaluate: Callable[[Any], Array] | None
) -> Callable[[Any, Array], float]:
    """The score of a run from its weights and level."""
    if evaluate is None:
        return lambda weights, level: float(level)
    return lambda weights, level: float(evaluate(eqx.combine(weights, learner.static)))


# --- what there is to see ---

COLUMNS = (
    "arm",
    "seeds",
    "rate",
    "{unit}",
    "range",
    "cosine, initial",
    "cosine, trained",
    "cosine, own",
    "past, initial",
    "past, trained",
    "ms per batch",
    "carry KiB",
    "temp KiB",
)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table with a line for each arm; means over the seeds, and the score's range."""
    lines = [
        "| " + " | ".join(COLUMNS).format(unit=rows[0].unit) + " |",
        "| --- |" + " ---: |" * (len(COLUMNS) - 1),
    ]
    for name in dict.fromkeys(row.arm for row in rows):
        same = [row for row in rows if row.arm == name]

        def mean(field: str, digits: int, same: list[Row] = same) -> str:
            values = [getattr(row, field) for row in same]
            return "-" if None in values else f"{statistics.fmean(values):.{digits}f}"

        scores = [row.score for row in same]
        cells = [
            name,
            str(len(same)),
            "-" if same[0].rate is None else f"{same[0].rate:.1g}",
            f"{statistics.fmean(scores):.3g}",
            f"{min(scores):.3g} to {max(scores):.3g}",
            *(mean(f"cosine_{at}", 3) for at in ("initial", "trained", "own")),
            *(mean(f"past_{at}", 2) for at in ("initial", "trained")),
            f"{min(row.ms_per_batch for row in same):.1f}",
            f"{same[0].carry_bytes / 1024:.0f}",
            f"{same[0].temp_bytes / 1024:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def lag_table(rows: Sequence[Row]) -> str:
    """A Markdown table of the cosines by lag, for the arms that have some; empty where none has."""
    # Of a batch in which nothing of BPTT's gradient reaches back so far there is no cosine.
    known = [row for row in rows if row.bins and any(lag == lag for lag in row.lags or ())]
    if not known:
        return ""
    bins = known[0].bins or []
    heads = ["arm", *(f"{a} to {b} steps before" for a, b in pairwise(bins))]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name in dict.fromkeys(row.arm for row in known):
        columns = zip(*(row.lags or [] for row in known if row.arm == name), strict=True)
        means = [statistics.fmean(c) if all(v == v for v in c) else None for c in columns]
        cells = [name, *("-" if mean is None else f"{mean:.2f}" for mean in means)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Learning curves of the arms with the most seeds, five at least: the mean over the seeds, and their range."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    # The same rows give the same file.
    plt.rcParams.update({"svg.hashsalt": rows[0].task, "svg.fonttype": "none"})
    figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
    styles = ["-", "--", "-.", ":"]
    seeds = Counter(row.arm for row in rows)
    fewest = sorted(seeds.values(), reverse=True)[:DRAWN][-1]
    arms = [name for name in seeds if seeds[name] >= fewest]
    for i, name in enumerate(arms):
        same = [row for row in rows if row.arm == name]
        curves = jnp.asarray([row.curve for row in same])
        x = same[0].batches
        color = "black" if name == "BPTT" else f"C{i}"
        ax.plot(x, curves.mean(0), styles[i % 4], color=color, label=name)
        ax.fill_between(x, curves.min(0), curves.max(0), color=color, alpha=0.12, linewidth=0)
    ax.axhline(rows[0].chance, color="0.6", linewidth=1)
    ax.set(xlabel="batches", ylabel=rows[0].unit, title=rows[0].task)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def save(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([dataclasses.asdict(row) for row in rows], indent=0)
    path.write_text(text + "\n")


def load(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())]


def merged(task: Task, before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """The new rows, and those of arms that were not run again, in the order of the arms."""
    names = [arm.name for arm in default_arms(task)]
    kept = [row for row in before if row.arm not in {new.arm for new in rows}]
    return sorted([*kept, *rows], key=lambda row: (names.index(row.arm), row.seed))


def main(task: Task) -> None:
    """The command line of a task."""
    arms = {arm.name: arm for arm in default_arms(task)}
    parser = argparse.ArgumentParser(description=f"Learn by several rules: {task.name}.")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--arms", nargs="+", choices=list(arms), help="these alone, with all seeds")
    parser.add_argument("--json", type=Path, help="write the rows here, arm by arm")
    parser.add_argument("--plot", type=Path, help="write the learning curves here")
    parser.add_argument("--rate", type=float, help="for all arms, in place of the grid")
    args = parser.parse_args()
    asked = [dataclasses.replace(arms[name], main=True) for name in args.arms or ()]
    chosen, seeds = asked or list(arms.values()), range(args.seeds)
    if args.rate:
        task = dataclasses.replace(task, rate=args.rate)
    if FAST:
        task, chosen, seeds = fast(task), list(arms.values())[:2], range(1)
    before = load(args.json) if args.json and args.json.exists() else []

    def found(rows: list[Row]) -> None:
        if args.json:
            save(merged(task, before, rows), args.json)

    begin = time.perf_counter()
    rows = merged(task, before, run(task, chosen, seeds, not (args.rate or FAST), found))
    print(f"\n{task.name}: chance is {task.chance:g}\n\n{table(rows)}\n\n{lag_table(rows)}\n")
    print(f"{time.perf_counter() - begin:.0f} s")
    if args.plot:
        plot(rows, args.plot)


def fast(task: Task) -> Task:
    """A few updates of a task."""
    return dataclasses.replace(task, updates=2, points=1, test_batches=1)
