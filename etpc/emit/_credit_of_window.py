"""Windows in which nothing is cut: reverse mode, and credit of the states at the start for the traces."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import linear_transpose, real_parts, replaced
from ..forms import Traces, Uncut
from ..ir import TraceNode, TraceProgram
from ._arrays import (
    finite_where,
    take,
    unless,
    where_over,
    widened,
    zeros_over,
)
from ._forward import Rollout, Stored
from ._gradient import Credits, StartSignals
from ._records import Arrays, Bars, Cotangents, Span, Weights, block_of
from ._window import ForwardWindow, ReadEnd, Window


class WindowSources(NamedTuple):
    """What a window is differentiated by; and its derivatives, as cotangents."""

    weights: Arrays
    inputs: Arrays
    """Those that it is differentiated by."""
    state: Arrays
    """The hidden states at its start."""
    shifts: Arrays
    """What is added where live operations act, [W, B, ...]; empty if nothing is."""


class Ends(NamedTuple):
    """What of a window is differentiated; and cotangents of it."""

    outputs: Cotangents
    last: Arrays
    """The parts of the states at the end, where shifts are given; else empty."""


Pull = Callable[[Ends], tuple[WindowSources]]
Run = Callable[[Weights, Span, Arrays], Rollout]
"""A window as a function of weights, inputs, the state that it begins with, and shifts."""


class UncutWindow(NamedTuple):
    """What the backward pass of a window needs where nothing is cut."""

    pull: Pull
    ends: Arrays
    """Cotangents of zero of the states at the end, if `pull` takes some."""
    fresh: Array
    """Whether the stream of each example begins where the traces are, [B]."""


def forward(
    window: Window[UncutWindow],
    weights: Weights,
    span: Span,
    traces: Traces,
    wanted: Sequence[int] = (),
) -> ForwardWindow[UncutWindow]:
    """Run a window, as a function of its weights, inputs and the state that it begins with."""
    rollout, pull = steps(window, weights, span, wanted)
    first, restarts = span.first, span.restarts
    uncut = uncut_by(window, rollout, pull, first[0], None)
    jacobians = window.cut.jacobians(weights, rollout.taken, first)
    factors = window.cut.factors(jacobians, window.cut.data(weights, rollout), restarts)
    moves = window.mover.moves(factors, traces, restarts, uncut)
    ends: list[Array] = []
    if uncut is not None:  # else a zero would meet derivatives that may be infinite
        ends = _split(window, jnp.zeros_like(uncut.last))
    residuals = UncutWindow(pull, ends, first[0])
    return ForwardWindow(rollout.outputs, rollout.last, moves, residuals)


def backward(
    window: Window[UncutWindow],
    residuals: UncutWindow,
    traces: Traces,
    outputs: Cotangents,
    read_end: ReadEnd,
) -> Bars:
    """The derivatives of the loss of a window, nothing cut."""
    (by,) = residuals.pull(Ends(outputs, residuals.ends))
    by_state, of_states = _parts_of_bars(window, by.state), None
    if window.program.extends is not None:
        of_states = jnp.concatenate([finite_where(s, residuals.fresh) for s in by_state], -1)
    signals = [unless(residuals.fresh, part) for part in by_state]
    credit = WindowCredit(window.program, traces, signals, of_states)
    grads = credit.added_to(widened(by.weights), window.program.grads)
    return Bars(grads, window.by_input(by.inputs), credit.starts, {}, of_states)


def steps(
    window: Window[UncutWindow],
    weights: Weights,
    span: Span,
    wanted: Sequence[int] = (),
    stored: Stored | None = None,
) -> tuple[Rollout, Pull]:
    """Run a window, and how it is differentiated; also by the outputs of operations, if an extension
    asks for it. `stored` are the states before each step, where they are known."""

    def run(weights: Weights, span: Span, shifts: Arrays) -> Rollout:
        forward = window.step.forward
        return forward(weights, span.xs, span.state, True, shifts, stored, span.begins)

    shifts: list[Array] = []
    if window.program.extends is not None:
        steps = span.xs[0].shape[0]
        parts = _parts(window, span.state)
        shifts = window.cut.deltas([jnp.broadcast_to(p[None], (steps, *p.shape)) for p in parts])
    return differentiated(window, run, weights, span, wanted, shifts)


def differentiated(
    window: Window[UncutWindow],
    run: Run,
    weights: Weights,
    span: Span,
    wanted: Sequence[int],
    shifts: Arrays = (),
) -> tuple[Rollout, Pull]:
    """Run a window, and how it depends on its sources; `wanted` are the inputs among them."""
    leaves = window.program.analysis.hidden.leaves

    def of_sources(sources: WindowSources) -> tuple[Ends, Rollout]:
        xs = replaced(span.xs, wanted, sources.inputs)
        state = replaced(span.state, leaves, sources.state)
        wide = weights._replace(effective=sources.weights)
        rollout = run(wide, Span(xs, state, span.begins), sources.shifts)
        return Ends(rollout.outputs, _parts(window, rollout.last) if shifts else []), rollout

    inputs, hidden = [span.xs[i] for i in wanted], [span.state[i] for i in leaves]
    sources = WindowSources(widened(weights.effective), inputs, hidden, shifts)
    _, pull, rollout = jax.vjp(of_sources, sources, has_aux=True)
    return rollout, pull


def uncut_by(
    window: Window[UncutWindow], rollout: Rollout, pull: Pull, fresh: Array, valid: Array | None
) -> Uncut | None:
    """A window as the extension of a rule sees it, if there is one; `fresh` says whether a stream begins with it, and
    `valid` which of its steps are part of the stream, [W, B]."""
    program, no_outputs = window.program, [jnp.zeros_like(y) for y in rollout.outputs]
    if program.extends is None:
        return None
    extended = {op for node in program.traces if node.virtual for op in node.ops}
    last = jnp.concatenate(_parts(window, rollout.last), -1)

    def back(end: Array) -> tuple[list[Array], Arrays]:
        (by,) = pull(Ends(no_outputs, _split(window, end)))
        shifts = by.shifts if valid is None else [where_over(valid, s) for s in by.shifts]
        return _parts_of_bars(window, by.state), shifts

    def pull_all(ends: Array) -> tuple[Array, dict[int, Array]]:
        of_each = ends + zeros_over(fresh, ends.shape[1:], ends.dtype)  # the batch may share them
        starts, shifts = jax.vmap(back, in_axes=1)(of_each)
        starts = [finite_where(part.swapaxes(0, 1), fresh) for part in starts]
        if valid is not None:  # a window that begins before its stream has no past
            starts = [where_over(valid[0], part) for part in starts]
        by_ops = {
            op.number: jnp.moveaxis(shift.reshape(*shift.shape[:3], -1), 0, 2)
            for op, shift in zip(program.grads, shifts, strict=True)
            if op in extended
        }
        return jnp.concatenate(starts, -1), by_ops

    def push(ahead: Array) -> Array:
        by_start = lambda end: jnp.concatenate(back(end)[0], -1)
        forward = linear_transpose(by_start, jnp.zeros_like(last))
        return jax.vmap(lambda one: forward(one)[0], in_axes=1, out_axes=1)(ahead)

    return Uncut(last, pull_all, push)


def _parts(window: Window[UncutWindow], state: Arrays) -> list[Array]:
    """The parts [B, n] of the states at one time."""
    return jax.vmap(window.step.parts)(list(state))


def _parts_of_bars(window: Window[UncutWindow], bars: Arrays) -> list[Array]:
    """Derivatives by hidden states, as those by their parts [B, n].

    That by a complex leaf is the derivative by its real part minus i times that by the other.
    """
    parts = real_parts([bar.conj() for bar in bars])
    return [part.reshape(part.shape[0], -1).astype(window.step.dtype) for part in parts]


def _split(window: Window[UncutWindow], states: Array) -> list[Array]:
    """A vector of all states, [B, S], in parts."""
    sizes = [math.prod(a.shape) for a in window.program.analysis.hidden.parts]
    parts = jnp.split(states, np.cumsum(sizes)[:-1], -1)
    return [part.astype(window.step.dtype) for part in parts]


class WindowCredit(Credits):
    """Credit that passed back through a window uncut: that of the states at its start."""

    def __init__(
        self, program: TraceProgram, traces: Traces, parts: Arrays, of_states: Array | None
    ):
        super().__init__(program, traces)
        self.parts, self.of_states = parts, of_states

    def start(self, node: TraceNode) -> Array:
        if node not in self.starts:
            program, extension = self.program, self.program.extends
            of_block = take(self.parts, program.compression.layout(node.blocks).states)
            if node.virtual and extension is not None and self.of_states is not None:
                carried = self.traces.shared, self.traces.each
                block = block_of(program, node)
                of_block = extension.credit(block, of_block, *carried, self.of_states)
            signals = StartSignals(node, of_block)
            self.starts[node] = self.read(node, program.site(node), signals, (), None)[1]
        return self.starts[node]
