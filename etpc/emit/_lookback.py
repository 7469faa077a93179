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
from jax import Array

from .._jax import leading
from ..forms import Carry, Traces
from ..ir import TraceProgram
from ._credit_of_window import UncutWindow, differentiated, steps, uncut_by
from ._forward import Rollout, Stored, enter
from ._move import restricted
from ._records import Arrays, Begins, Span, Weights
from ._window import ForwardWindow, Window


def forward(
    window: Window[UncutWindow],
    weights: Weights,
    span: Span,
    traces: Traces,
    wanted: Sequence[int] = (),
) -> ForwardWindow[UncutWindow]:
    """Run a window, as a function of the state before the steps behind it."""
    behind, count = _recent(traces.lookback, span), span.xs[0].shape[0]
    # Nothing passes back where no step of the stream is known to be before the window.
    fresh = span.begins.fresh | ~behind.valid[-1]
    span = span._replace(begins=span.begins._replace(fresh=fresh))
    entering = span.first[0]

    def run(weights: Weights, begin: Span, shifts: Arrays) -> Rollout:
        past = window.step.forward(weights, behind.xs, begin.state, False, stored=behind.stored)
        ends = zip(span.state, past.last, strict=True)
        state = [enter(entered, end, entering) for entered, end in ends]
        return window.step.forward(weights, begin.xs, state, True, begins=begin.begins)

    begin = Span(span.xs, behind.start, span.begins)
    rollout, pull = differentiated(window, run, weights, begin, wanted)
    whole = jnp.ones_like(span.first)
    taken = behind.then(PastSteps(list(span.xs), list(rollout.taken.state), span.first, whole))
    leaving, past = taken.part(None, count), taken.part(count, None)
    fresh, uncut = leaving.first[0] | ~leaving.valid[0], None
    first = Span(leaving.xs, leaving.start, Begins(fresh))
    if window.program.extends is None:
        old = window.step.forward(weights, first.xs, first.state, False, stored=leaving.stored)
    else:
        old, old_pull = steps(window, weights, first, stored=leaving.stored)
        uncut = uncut_by(window, old, old_pull, fresh, leaving.valid)
    begins = leaving.first | first.first
    jacobians = window.cut.jacobians(weights, old.taken, begins)
    factors = window.cut.factors(jacobians, window.cut.data(weights, old), begins)
    factors = restricted(factors, leaving.valid)
    restarts = None if span.restarts is None else begins
    moves = window.mover.moves(factors, traces, restarts, uncut, past.carried)
    return ForwardWindow(rollout.outputs, rollout.last, moves, UncutWindow(pull, [], fresh))


def none_yet(program: TraceProgram, state: Arrays) -> Carry:
    """The steps that are kept when a stream begins with a state [B, ...]."""
    batch, count = state[0].shape[0], program.window.behind
    if not count:
        return ()
    avals = [v.aval for v in program.analysis.step.inputs]
    xs = [jnp.zeros((batch, count, *a.shape), a.dtype) for a in avals]
    states = [jnp.repeat(s[:, None], count, 1) for s in state]
    return (*xs, *states, *jnp.zeros((2, batch, count), bool))


class PastSteps(NamedTuple):
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

    def part(self, start: int | None, stop: int | None) -> "PastSteps":
        return jax.tree.map(lambda a: a[start:stop], self)

    def then(self, other: "PastSteps") -> "PastSteps":
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self, other)


def _recent(past: Carry, span: Span) -> PastSteps:
    """The steps that are carried."""
    *stored, first, valid = (jnp.moveaxis(a, 1, 0) for a in past)
    coming = [*(x[0] for x in span.xs), *span.state]
    # Slots from before the stream hold copies of the next step, so that derivatives there are finite wherever those of
    # backpropagation are.
    full = [
        jnp.where(leading(valid, old), old, new[None])
        for old, new in zip(stored, coming, strict=True)
    ]
    return PastSteps(full[: len(span.xs)], full[len(span.xs) :], first, valid)
