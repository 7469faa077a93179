"""Gradients of one batch, by BPTT and by rules: their time, how near they are by lag, and what they train."""

import dataclasses
import math
import time
from functools import partial
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import InputError, InputTypeError, checked_count, raise_together
from ..gradient.agreement import cosine, flat_gradients, whole
from ..gradient.bptt import gradient_of
from ..gradient.data import check_lead
from ..run import Program, moved, no_optimizer, strong, without_past
from ..trace import Leaves
from ._trial import Trial

SETTLING = 20
"""So many passes let directions of credit follow the weights at which they are compared."""


class Batch:
    """The data of a trial, cut into N windows of W steps.

    - `firsts`: the windows at which parts of the past begin: all of it, then half, down to the last window alone.
    - `lags`: the ranges of steps before the last window that lie between two of these, the nearest first.
    - `mask`, `late`, `mean`: weights of losses [N W, B]: as given; in the last window alone; and those of which a sum
        over time is the mean over the steps that one update sees.
    """

    def __init__(self, trial: Trial, every: int | None = None, optimiser: Any = None):
        check_lead(trial.xs, trial.targets, trial.batch_size)
        self.trial, self.size, self.optimiser = trial, trial.batch_size, optimiser
        self.every = None if every is None else checked_count("every", every)
        wrong = [] if optimiser is None else no_optimizer("optimiser", optimiser)
        raise_together(wrong, InputTypeError)
        lead = trial.lead
        weights = np.asarray(np.ones(lead) if trial.mask is None else trial.mask, np.float32)
        counting = np.flatnonzero(weights.reshape(lead[0], -1).any(1))
        if not counting.size:
            raise InputError("mask is zero everywhere, so there is no loss to take a gradient of.")
        self.steps = int(counting[-1]) + 1
        self.window = self.every or _window(self.steps)
        self.count = -(-self.steps // self.window)
        taken = np.minimum(np.arange(self.count * self.window), self.steps - 1)
        padded = lambda a: jnp.asarray(a if hasattr(a, "dtype") else np.asarray(a))[taken]
        self.xs, self.targets = jax.tree.map(padded, (trial.xs, trial.targets))
        ones = (1,) * (len(lead) - 1)
        column = np.arange(len(taken)).reshape(-1, *ones)
        self.mask = jnp.asarray(weights[taken] * (column < self.steps))
        self.late = self.mask * (column >= (self.count - 1) * self.window)
        by_update = self.mask.reshape(self.count if self.every else 1, -1)
        totals = by_update.sum(1, keepdims=True)
        self.updates = int((totals != 0).sum())
        scaled = by_update * ((self.size or 1) / jnp.where(totals == 0, 1, totals))
        self.mean = scaled.reshape(self.mask.shape)
        back = [self.count - 2**n for n in range(self.count.bit_length())]
        self.firsts = sorted({0, *(n for n in back if n > 0)})
        bounds = [(self.count - 1 - n) * self.window for n in self.firsts[::-1]]
        self.lags = [*pairwise(bounds)]

        arrays, self.static = eqx.partition(trial.model, eqx.is_inexact_array)
        self.arrays = jax.tree.map(lambda a: jnp.asarray(a, a.dtype), arrays)
        opt_state = None if optimiser is None else optimiser.init(self.arrays)
        self.start = self.arrays, strong(jax.tree.map(jnp.asarray, opt_state))
        self.moved = jax.jit(partial(moved, optimiser))
        if optimiser is not None:  # what it asks for is known before anything is measured
            jax.eval_shape(self.moved, jnp.zeros(()), self.arrays, *self.start)

    def model(self, arrays: Any) -> Any:
        return eqx.combine(arrays, self.static)


def _window(steps: int) -> int:
    """About 16 steps, fewer so that there are eight windows; a divisor of all steps where one is near."""
    wanted = max(1, min(16, steps // 8))
    near = [w for w in range(-(-wanted // 2), 2 * wanted + 1) if steps % w == 0]
    return min(near, key=lambda w: abs(math.log(w / wanted)), default=wanted)


class Online:
    """A rule. Each pass through the data is one compiled function, of its first window and the one after its last.

    Gradients are those `at` some weights, first those of the model; `trained` are its own.

    - `passes`: how many a measurement at other weights takes, at most.
    """

    def __init__(self, batch: Batch, program: Program):
        self.batch, self.program, self.at, self.trained = batch, program, batch.start, batch.start
        self.carry = program.init(batch.size)
        self._state = self.carry.state
        self._settling = SETTLING if program.ir.extends is not None else 0
        self.passes = self._settling + 2 + len(batch.firsts)
        self._jit_pass = jax.jit(self._pass)

    def move_to(self, at: Any) -> None:
        """Other weights, and directions that have followed the credit there."""
        self.at = at
        for _ in range(self._settling):
            self.carry = self._restarted(self._run(self.batch.mask, self.carry)[2])

    def seconds(self, windows: int) -> float:
        """How long the first so many windows take; with none of them all is compiled."""
        begun = time.monotonic()
        jax.block_until_ready(self._run(self.batch.mask, self.carry, 0, windows))
        return time.monotonic() - begun

    def gradient(self) -> Any:
        """That of the sequence."""
        return self._run(self.batch.mask, self.carry)[4]

    def gradients_by_reach(self) -> list[Any]:
        """Those of the losses in the last window, which reach back to each of `batch.firsts`."""
        batch, carry, at, found = self.batch, self.carry, 0, []
        for first in batch.firsts:
            carry, at = self._run(batch.late, carry, at, first)[2], first
            found.append(self._run(batch.late, without_past(self.program, carry), first)[4])
        return found

    def update(self) -> float:
        """The loss of a pass through the data, in or after which the weights have moved."""
        batch = self.batch
        data = batch.xs, batch.targets, batch.mean
        *moved, carry, loss, grads = self._jit_pass(
            *self.trained, self.carry, data, 0, batch.count, True
        )
        self.carry = self._restarted(carry)
        self.trained = tuple(moved) if batch.every else batch.moved(loss, grads, *self.trained)
        return float(loss) / batch.updates

    def _restarted(self, carry: Any) -> Any:
        """A carry with which the sequence begins anew, with the same noise, and the directions of credit."""
        fresh = self.program.reset(carry, jnp.ones(jnp.shape(carry.fresh), bool))
        return dataclasses.replace(fresh, state=self._state)

    def _run(self, mask: Array, carry: Any, start: int = 0, stop: int | None = None) -> Any:
        batch = self.batch
        stop = batch.count if stop is None else stop
        data = batch.xs, batch.targets, mask
        return self._jit_pass(*self.at, carry, data, start, stop, False)

    def _pass(
        self, arrays: Any, opt_state: Any, carry: Any, data: Any, start: Any, stop: Any, train: Any
    ) -> Any:
        """Parameters, state of the optimiser, carry, and the sums of loss and gradient over windows."""
        batch, gradient = self.batch, self.program.value_and_grad(self.batch.trial.loss_fn, "sum")
        shape = batch.count, batch.window
        data = jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), data)

        def learn(arrays: Any, carry: Any, piece: Any) -> Any:
            xs, targets, mask = piece
            return gradient(batch.model(arrays), xs, targets, carry, mask=mask)

        def window(n: Any, before: Any) -> Any:
            arrays, opt_state, carry, total, sums = before
            piece = jax.tree.map(lambda a: a[n], data)
            (value, carry), grads = learn(arrays, carry, piece)
            if batch.every and batch.optimiser is not None:
                stay = lambda loss, grads, *weights: weights
                moves = train & (piece[2] != 0).any()
                arguments = value, grads, arrays, opt_state
                arrays, opt_state = jax.lax.cond(moves, batch.moved, stay, *arguments)
            return arrays, opt_state, carry, total + value, jax.tree.map(jnp.add, sums, grads)

        first = jax.tree.map(lambda a: a[0], data)
        (value, _), grads = jax.eval_shape(learn, arrays, carry, first)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (value, grads))
        return jax.lax.fori_loop(start, stop, window, (arrays, opt_state, carry, *zeros))


class Reverse:
    """BPTT. At which step the state is passed on without its derivative is data, so that it is compiled once."""

    def __init__(self, batch: Batch):
        self.batch, self.at, self.trained = batch, batch.start, batch.start
        self.passes = 1 + len(batch.firsts)
        whole = batch.trial.objective
        self._objective = dataclasses.replace(whole, xs=batch.xs, targets=batch.targets)

    def move_to(self, at: Any) -> None:
        self.at = at

    def gradient(self) -> Any:
        return self._run(self.at[0], self.batch.mask)[1]

    def gradients_by_reach(self) -> list[Any]:
        batch = self.batch
        firsts = [first * batch.window if first else -1 for first in batch.firsts]
        return [self._run(self.at[0], batch.late, first)[1] for first in firsts]

    def update(self) -> float:
        loss, grads = self._run(self.trained[0], self.batch.mean)
        self.trained = self.batch.moved(loss, grads, *self.trained)
        return float(loss)

    def _run(self, arrays: Any, mask: Array, first: int = -1) -> tuple[Array, Any]:
        cuts = jnp.arange(len(mask)) == first
        objective = dataclasses.replace(self._objective, mask=mask, cuts=cuts)
        return gradient_of(self.batch.model(arrays), objective, "sum")[:2]


Way = Online | Reverse


class Measurement:
    """The gradient of one way as vectors; another can be compared with it where it is `finite` and not zero."""

    @np.errstate(all="ignore")
    def __init__(self, way: Way, leaves: Leaves):
        flat = lambda tree: whole(flat_gradients(leaves, tree))
        self.whole = flat(way.gradient())
        self.finite = bool(np.isfinite(self.whole).all())
        self.comparable = self.finite and bool(self.whole.any())
        by_reach = [flat(part) for part in way.gradients_by_reach()]
        self.by_lag = [far - near for far, near in pairwise(by_reach)][::-1]

    @np.errstate(all="ignore")
    def cosines(self, reference: "Measurement") -> tuple[float, tuple[float, ...]]:
        """Those with another gradient: of the whole, and by lag; `nan` where the other has hardly any such part."""
        tiny = 1e-5 * float(np.linalg.norm(reference.whole))
        near = lambda a, b: cosine(a, b) if a.any() else 0.0
        return near(self.whole, reference.whole), tuple(
            math.nan if np.linalg.norm(b) <= tiny else float(np.nan_to_num(near(a, b)))
            for a, b in zip(self.by_lag, reference.by_lag, strict=True)
        )


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
