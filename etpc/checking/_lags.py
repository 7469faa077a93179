"""A sequence in windows: gradients by BPTT and by rules, how near they are by lag, their time, and what they train."""

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..algorithms import Algorithm
from ..gradient.agreement import cosine, flat_gradients, whole
from ..gradient.bptt import gradient_of
from ..run import Program, strong, updated, without_past
from ._trial import Trial

WINDOWS = 8
"""In how many windows a sequence is cut, to tell how far back a gradient reaches."""

SETTLING = 20
"""So many passes let directions of credit follow the weights at which they are compared."""

Lag = tuple[int, int]
"""From how many to how many steps back."""
Reach = tuple[int, int]
"""Of the loss of the second window, the gradient that reaches back to the first."""


class Batch:
    """The first `steps` of a trial, cut into N windows of W steps. The last window is filled up with masked steps.

    - `every`, `optimiser`: of updates, where the rules train.
    - `reaches`: over how many windows gradients reach back, their own among them: 1, 2, 4, ... N.
    - `mask`, `late`: weights of losses [N W, B]: as given; and in the last window alone.
    - `padded`: a sequence and its mask, of the trial's shape, in whole windows.
    """

    def __init__(
        self, trial: Trial, window: int, steps: int, every: int | None = None, optimiser: Any = None
    ):
        self.trial, self.size, self.window, self.steps = trial, trial.batch_size, window, steps
        self.every, self.optimiser = every, optimiser
        self.count = -(-steps // window)
        self.reaches = sorted({self.count, *(2**n for n in range(self.count.bit_length()))})
        self.padded, self.mean = jax.jit(self._padded), jax.jit(self._mean)
        mask = jnp.ones(trial.lead) if trial.mask is None else trial.mask
        *self.sequence, self.mask = self.padded(trial.xs, trial.targets, mask)
        self.late = self.counted(self.count - 1)

        arrays, self.static = eqx.partition(trial.model, eqx.is_inexact_array)
        self.arrays = jax.tree.map(lambda a: jnp.asarray(a, a.dtype), arrays)
        opt_state = None if optimiser is None else optimiser.init(self.arrays)
        self.start = self.arrays, strong(jax.tree.map(jnp.asarray, opt_state))
        self.moved = jax.jit(self._moved)
        if optimiser is not None:  # what it asks for is known before anything is measured
            jax.eval_shape(self.moved, jnp.zeros(()), self.arrays, *self.start, 1.0)

    def _padded(self, xs: Any, targets: Any, mask: Any) -> tuple[Any, Any, Array]:
        steps = np.arange(self.count * self.window)
        taken = np.minimum(steps, self.steps - 1)
        xs, targets, mask = jax.tree.map(lambda a: jnp.asarray(a)[taken], (xs, targets, mask))
        ends = (steps < self.steps).reshape(-1, *[1] * (mask.ndim - 1))
        return xs, targets, mask.astype(float) * ends.astype(float)

    def _mean(self, mask: Array) -> tuple[Array, Array]:
        """Weights of which a sum over time is the mean over the steps that one update sees; and how many updates
        there are."""
        by_update = mask.reshape(self.count if self.every else 1, -1)
        totals = by_update.sum(1, keepdims=True)
        scaled = by_update * ((self.size or 1) / jnp.where(totals == 0, 1, totals))
        return scaled.reshape(mask.shape), (totals != 0).sum()

    def _moved(self, loss: Any, grads: Any, arrays: Any, opt_state: Any, rate: Any) -> Any:
        """Parameters and state of the optimiser after an update, whose learning rate is multiplied by `rate`."""
        with jax.numpy_dtype_promotion("standard"):  # which Adam of Optax needs
            new, opt_state = updated(self.optimiser, loss, grads, arrays, opt_state)
        move = lambda old, new: (old + rate * (new - old)).astype(old.dtype)
        return jax.tree.map(move, arrays, new), opt_state

    def model(self, arrays: Any) -> Any:
        return eqx.combine(arrays, self.static)

    def counted(self, window: int) -> Array:
        """The mask of the losses of one window."""
        by_window = self.mask.reshape(self.count, self.window, -1)
        chosen = jnp.arange(self.count).reshape(-1, 1, 1) == window
        return jnp.where(chosen, by_window, 0).reshape(self.mask.shape)


class Online:
    """A rule. Each pass through the data is one compiled function, of its first window and the one after its last.

    Gradients are those `at` some weights, first those of the model.

    - `first`: the carry with which a training begins.
    - `passes`: how many a measurement at other weights takes, at most.
    - `shortest`: the seconds of an update.
    """

    shortest = 0.0

    def __init__(self, batch: Batch, program: Program):
        self.batch, self.program, self.at = batch, program, batch.start
        self.carry = self.first = program.init(batch.size)
        self._settling = SETTLING if program.ir.extends is not None else 0
        self.passes = self._settling + 2 + len(batch.reaches)
        self._jit_pass = jax.jit(self._pass)

    def with_optimiser(self, batch: Batch) -> "Online":
        """The same rule with the optimiser of another batch, compiled once where nothing moves within a pass."""
        if batch.every:
            return Online(batch, self.program)
        other = copy.copy(self)
        other.batch, other.at, other.shortest = batch, batch.start, 0.0
        return other

    def move_to(self, at: Any) -> None:
        """Other weights, and directions that have followed the credit there."""
        self.at = at
        for _ in range(self._settling):
            self.carry = self._restarted(self._run(self.batch.mask, self.carry)[2])

    def seconds(self, windows: int) -> float:
        """How long the first so many windows take, and at the first call the compilation."""
        begun = time.monotonic()
        jax.block_until_ready(self._run(self.batch.mask, self.carry, 0, windows))
        return time.monotonic() - begun

    def gradient(self) -> Any:
        """That of the sequence."""
        return self._run(self.batch.mask, self.carry)[4]

    def reaching(self, mask: Array, reaches: Sequence[Reach]) -> Iterator[Any]:
        """The gradients of windows, whose traces begin with zeros at the first one that they reach back to."""
        past, at = self.carry, 0
        for first, of_first in itertools.groupby(reaches, key=lambda reach: reach[0]):
            past, at = self._run(mask, past, at, first)[2], first
            carry, now = without_past(self.program, past), first
            for _, last in of_first:
                carry = self._run(mask, carry, now, last)[2]
                *_, carry, _, grads = self._run(mask, carry, last, last + 1)
                now = last + 1
                yield grads

    def train(self, training: Any, data: Any, rate: float) -> tuple[Any, float]:
        """Parameters, state of the optimiser and carry after a pass through `padded` data, in or after which the
        weights move; and the loss before."""
        batch, (*weights, carry), (xs, targets, mask) = self.batch, training, data
        mean, updates = batch.mean(mask)
        data = xs, targets, mean
        moving = self._moving(weights)
        *moved, carry, loss, grads = self._jit_pass(moving, carry, data, (0, batch.count), rate)
        if not batch.every:
            moved = batch.moved(loss, grads, *weights, rate)
        return (*moved, self._restarted(carry)), float(loss) / max(1, int(updates))

    def _restarted(self, carry: Any) -> Any:
        """A carry with which the sequence begins anew, with the same noise, and the directions of credit."""
        if self.program.ir.extends is None:
            return self.first
        fresh = self.program.reset(carry, jnp.ones(jnp.shape(carry.fresh), bool))
        return dataclasses.replace(fresh, state=self.first.state)

    def _run(self, mask: Array, carry: Any, start: int = 0, stop: int | None = None) -> Any:
        data = *self.batch.sequence, mask
        span = start, self.batch.count if stop is None else stop
        return self._jit_pass(self._moving(self.at), carry, data, span, 0.0)

    def _moving(self, weights: Any) -> Any:
        """Without the optimiser's state where nothing moves within a pass, compiled once for all optimisers."""
        return weights if self.batch.every else (weights[0], None)

    def _pass(self, weights: Any, carry: Any, data: Any, span: Any, rate: Any) -> Any:
        """Parameters, state of the optimiser, carry, and the sums of loss and gradient over a span of windows; the
        weights stay where the rate is zero."""
        batch, trial = self.batch, self.batch.trial
        gradient = self.program.value_and_grad(trial.loss_fn, "sum", has_aux=trial.has_aux)
        shape = batch.count, batch.window
        data = jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), data)

        def learn(arrays: Any, carry: Any, piece: Any) -> Any:
            xs, targets, mask = piece
            (value, after), grads = gradient(batch.model(arrays), xs, targets, carry, mask=mask)
            return (value, after[0] if trial.has_aux else after), grads

        def window(n: Any, before: Any) -> Any:
            arrays, opt_state, carry, total, sums = before
            piece = jax.tree.map(lambda a: a[n], data)
            (value, carry), grads = learn(arrays, carry, piece)
            if batch.every and batch.optimiser is not None:
                stay = lambda loss, grads, *weights: weights[:2]
                moves = (rate > 0) & (piece[2] != 0).any()
                arguments = value, grads, arrays, opt_state, rate
                arrays, opt_state = jax.lax.cond(moves, batch.moved, stay, *arguments)
            return arrays, opt_state, carry, total + value, jax.tree.map(jnp.add, sums, grads)

        first = jax.tree.map(lambda a: a[0], data)
        (value, _), grads = jax.eval_shape(learn, weights[0], carry, first)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (value, grads))
        return jax.lax.fori_loop(span[0], span[1], window, (*weights, carry, *zeros))


class Reverse:
    """BPTT, of blocks of so many steps if a number is given. At which step the state is passed on without its
    derivative is data, so that it is compiled once."""

    shortest = 0.0

    def __init__(self, batch: Batch, block: int | None = None):
        self.batch, self.at, self.first = batch, batch.start, None
        self.passes = 1 + len(batch.reaches)
        self._steps = np.arange(len(batch.mask))
        self._cuts = self._steps % (block or len(batch.mask)) == 0

    def move_to(self, at: Any) -> None:
        self.at = at

    def gradient(self) -> Any:
        return self._run(self.at[0], self.batch.mask)[1]

    def reaching(self, mask: Array, reaches: Sequence[Reach]) -> Iterator[Any]:
        for first, last in reaches:
            yield self._run(self.at[0], self.batch.counted(last), first * self.batch.window)[1]

    def train(self, training: Any, data: Any, rate: float) -> tuple[Any, float]:
        """As of a rule; there is no carry."""
        arrays, opt_state, _ = training
        *sequence, mask = data
        loss, grads = self._run(arrays, self.batch.mean(mask)[0], sequence=sequence)
        return (*self.batch.moved(loss, grads, arrays, opt_state, rate), None), float(loss)

    def _run(self, arrays: Any, mask: Array, first: int = 0, sequence: Any = None) -> Any:
        """Loss and gradient."""
        batch, (xs, targets) = self.batch, sequence or self.batch.sequence
        cuts = (self._cuts | (self._steps == first)) & (self._steps > 0)  # the start may be learned
        changed: Any = dict(xs=xs, targets=targets, mask=mask, cuts=jnp.asarray(cuts))
        objective = dataclasses.replace(batch.trial.objective, **changed)
        return gradient_of(batch.model(arrays), objective, "sum")[:2]


Way = Online | Reverse


def parts_of(way: Way, mask: Array, lasts: Sequence[int]) -> list[np.ndarray]:
    """The gradient of the losses of some windows, all parameters as one vector, in parts: what reaches back over the
    first of `batch.reaches`, and what each further reach adds."""
    leaves, wanted = way.batch.trial.leaves, dict[Reach, list[int]]()
    for n, reach in enumerate(way.batch.reaches):
        for last in lasts:
            wanted.setdefault((max(0, last - reach + 1), last), []).append(n)
    reaches = sorted(wanted)
    totals: list[Any] = [0.0] * len(way.batch.reaches)
    for reach, tree in zip(reaches, way.reaching(mask, reaches), strict=True):
        vector = whole(flat_gradients(leaves, tree))
        for n in wanted[reach]:
            totals[n] = totals[n] + vector
    return [totals[0], *(more - less for less, more in pairwise(totals))]


class Measurement:
    """The gradient of one way as a vector; another can be compared with it where it is `finite` and not zero."""

    @np.errstate(all="ignore")
    def __init__(self, way: Way):
        self.way, self.whole = way, whole(flat_gradients(way.batch.trial.leaves, way.gradient()))
        self.finite = bool(np.isfinite(self.whole).all())
        self.comparable = self.finite and bool(self.whole.any())

    @cached_property
    def by_lag(self) -> list[np.ndarray]:
        """The parts of the gradient of the last window that reach back beyond it, where the way is now."""
        return parts_of(self.way, self.way.batch.late, [self.way.batch.count - 1])[1:]

    @np.errstate(all="ignore")
    def cosine(self, reference: "Measurement") -> float:
        """That with another gradient."""
        return cosine(self.whole, reference.whole) if self.whole.any() else 0.0

    @np.errstate(all="ignore")
    def lags(self, reference: "Measurement") -> tuple[float, ...]:
        """The cosines with another gradient by lag; `nan` where the other has hardly any such part."""
        tiny = 1e-5 * float(np.linalg.norm(reference.whole))
        near = lambda a, b: float(np.nan_to_num(cosine(a, b))) if a.any() else 0.0
        return tuple(
            near(a, b) if np.linalg.norm(b) > tiny else math.nan
            for a, b in zip(self.by_lag, reference.by_lag, strict=True)
        )


def cosines_by_lag(
    trial: Trial, gradients: Iterable[tuple[Algorithm | None, Program | None, np.ndarray]]
) -> Iterator[Mapping[Lag, float]]:
    """The cosines of gradients of a trial with BPTT by how far back they reach, in an eighth of its steps; see
    [`etpc.Comparison.by_lag`][].

    - `gradients`: the algorithm and program of each, as of a result; no algorithm where it is known as a whole alone.
    """
    window = max(1, trial.steps // WINDOWS)
    batch = Batch(trial, window, trial.steps - trial.steps % window)
    lags = [(a * window, b * window) for a, b in pairwise([0, *batch.reaches])]
    parts = lambda way: parts_of(way, batch.mask, range(batch.count))
    of_bptt = parts(Reverse(batch))
    for algorithm, program, gradient in gradients:
        if algorithm is None:
            values = _partial_cosines(gradient, of_bptt)
        else:
            way = Online(batch, program) if program else Reverse(batch, algorithm.lookback)
            values = [cosine(a, b) for a, b in zip(parts(way), of_bptt, strict=True)]
        yield dict(zip(lags, values, strict=True))


def step_ms(way: Way) -> float:
    """The shortest time of the gradient, of one step of the batch, in ms."""
    shortest, end = math.inf, time.monotonic() + 0.5
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(way.gradient())
        shortest = min(shortest, time.perf_counter() - start)
        if time.monotonic() > end:
            break
    return 1e3 * shortest / way.batch.steps


def _partial_cosines(total: np.ndarray, of_bptt: list[np.ndarray]) -> list[float]:
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
