"""Windows with look-back: credit of the newest window goes back exactly through the last steps before it.

The input of each of these steps and the states before it are kept as they were; the steps are linearised
there, with the current weights. The traces stand at the first of them. A window of W steps with K - W
steps behind it runs as follows:

    steps        1 ... W | W+1 ... K | K+1 ... K+W        kept before it: 1 to K, the window: K+1 to K+W
    credit goes back from the outputs of K+1 ... K+W to the state before step 1, and meets the traces
    traces are moved through 1 ... W, which leave; kept after it: W+1 to K+W
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..traces import Carry, Traces
from ._arrays import leading
from ._forward import Rollout, Stored, enter
from ._move import Moves
from ._records import Arrays, Span, Weights
from ._reverse import Reverse, UncutWindow
from ._window import Course


class LookBack(Reverse):
    """Windows in reverse mode, together with the steps behind them."""

    def forward(
        self, weights: Weights, span: Span, traces: Traces, moving: Sequence[int] = ()
    ) -> Course[UncutWindow]:
        behind, count = _recent(traces.past, span), span.xs[0].shape[0]
        # Nothing passes back where no step of the stream is known to be before the window.
        span = span._replace(fresh=span.fresh | ~behind.valid[-1])

        def run(weights: Weights, begin: Span, shifts: Arrays) -> Rollout:
            past = self.step.run(weights, behind.xs, begin.state, False, stored=behind.stored)
            ends = zip(span.state, past.last, strict=True)
            state = [enter(entered, end, span.fresh) for entered, end in ends]
            return self.step.run(weights, begin.xs, state, True)

        begin = Span(span.xs, behind.start, span.fresh)
        rollout, pull = self.differentiated(run, weights, begin, moving)
        steps = behind.then(_of_window(span, rollout))
        leaving, past = steps.part(None, count), steps.part(count, None)
        fresh, followed = leaving.first[0] | ~leaving.valid[0], None
        first = Span(leaving.xs, leaving.start, fresh)
        if self.program.directions is None:
            old = self.step.run(weights, first.xs, first.state, False, stored=leaving.stored)
        else:
            old, old_pull = self.steps(weights, first, stored=leaving.stored)
            followed = self.along(old, old_pull, traces, fresh, leaving.valid)
        jacobians = self.cut.jacobians(weights, old.taken, fresh)
        jacobians = jacobians.within(leaving.first, leaving.valid)
        counted = leaving.valid.astype(self.step.dtype)
        of_all = self.cut.factors(jacobians, self.cut.data(weights, old))
        factors = [[of_feed.counting(counted) for of_feed in feeds] for feeds in of_all]
        moves = Moves(factors, self.mover.follow(factors, traces), followed, past.carried)
        return Course(rollout.outputs, rollout.last, moves, UncutWindow(pull, [], fresh))

    def none_yet(self, state: Arrays) -> Carry:
        batch, count = state[0].shape[0], self.program.window.behind
        avals = [v.aval for v in self.program.analysis.step.inputs]
        xs = [jnp.zeros((batch, count, *a.shape), a.dtype) for a in avals]
        states = [jnp.repeat(s[:, None], count, 1) for s in state]
        return (*xs, *states, *jnp.zeros((2, batch, count), bool))


class Steps(NamedTuple):
    """Steps that were taken, in order, with axes [n, B, ...]."""

    xs: list[Array]
    states: list[Array]
    """All array leaves of the state before each step."""
    first: Array
    """Whether the stream begins with the step."""
    valid: Array
    """Whether the step is part of the stream; the slots from before a stream began are not."""

    @property
    def start(self) -> list[Array]:
        """The state before the first step."""
        return [s[0] for s in self.states]

    @property
    def stored(self) -> Stored:
        return Stored(self.states, self.first)

    @property
    def carried(self) -> Carry:
        """The steps as they are carried, [B, n, ...]."""
        flat = (*self.xs, *self.states, self.first, self.valid)
        return tuple(jnp.moveaxis(a, 0, 1) for a in flat)

    def part(self, start: int | None, stop: int | None) -> "Steps":
        return jax.tree.map(lambda a: a[start:stop], self)

    def then(self, other: "Steps") -> "Steps":
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self, other)


def _recent(past: Carry, span: Span) -> Steps:
    """The steps that are carried.

    Slots from before the stream hold copies of the next step, so that derivatives there are finite
    wherever those of backpropagation are.
    """
    *stored, first, valid = (jnp.moveaxis(a, 1, 0) for a in past)
    coming = [*(x[0] for x in span.xs), *span.state]

    full = [
        jnp.where(leading(valid, old), old, new[None])
        for old, new in zip(stored, coming, strict=True)
    ]
    return Steps(full[: len(span.xs)], full[len(span.xs) :], first, valid)


def _of_window(span: Span, rollout: Rollout) -> Steps:
    """The steps of a window that was run."""
    first = (np.arange(span.xs[0].shape[0]) == 0)[:, None] & span.fresh[None]
    return Steps(list(span.xs), list(rollout.taken.state), first, jnp.ones_like(first))
