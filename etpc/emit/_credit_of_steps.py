"""Windows that are cut as the traces are: learning signals, and the Jacobians of the cut steps."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..analyse import WeightOp
from ..forms import Carry, Traces, apply_back
from ..ir import Feed, Layout, Past, TraceNode, TraceProgram
from ._arrays import (
    by_step,
    columns,
    over_steps,
    replaced,
    rows_of,
    take,
    take_rows,
    weighted,
    where_over,
    widened,
    without_past,
)
from ._cut import Jacobians, ReadPull, into_op
from ._forward import Rollout
from ._gradient import Credit
from ._move import Moves
from ._read import Sources
from ._records import Arrays, Bars, Cotangents, Span, Weights
from ._step import StepFunctions
from ._window import Course, Window

InputPull = Callable[[Cotangents], tuple[list[Array]]]
"""From the derivatives by the outputs of a window to those by the float inputs, each within its own step."""


class CutWindow(NamedTuple):
    """What the backward pass of a truncated window needs."""

    read_pull: ReadPull
    input_pull: InputPull | None
    """`None` if derivatives by inputs are not asked for."""
    jacobians: Jacobians
    data: list[Array]
    paths: list[Any]
    """How each trace followed the window."""
    first: Array
    """Whether a stream begins with each step, [W, B]."""
    begins: Array | None
    """The same where one may begin after the carry did, as traces hold what was before; else `None`."""


def forward(
    window: Window[CutWindow],
    weights: Weights,
    span: Span,
    traces: Traces,
    moving: Sequence[int] = (),
) -> Course[CutWindow]:
    """Run a window, and linearise its cut steps."""
    first, begins = span.first, span.begins
    rollout = window.step.run(weights, span.xs, span.state, outputs=False, begins=begins)
    jacobians = window.cut.jacobians(weights, rollout.taken, first)
    outputs, read_pull, data = window.cut.read(weights, rollout)
    reset = None if begins.reset is None else first
    factors = window.cut.factors(jacobians, data, reset)
    paths = window.mover.follow(factors, traces)
    pull = _input_pull(window.step, weights, rollout, moving) if moving else None
    residuals = CutWindow(read_pull, pull, jacobians, data, paths, first, reset)
    return Course(outputs, rollout.last, Moves(factors, paths, begins=reset), residuals)


def _input_pull(
    step: StepFunctions, weights: Weights, rollout: Rollout, moving: Sequence[int]
) -> InputPull:
    """How the output of each step depends on the input of that step, with the old state held constant."""
    taken = rollout.taken

    def outputs(values: Arrays) -> list[Array]:
        xs = replaced(taken.xs, moving, values)
        return over_steps(functools.partial(step.outputs, weights))(xs, taken.state)

    return jax.vjp(outputs, [taken.xs[i] for i in moving])[1]


def backward(
    window: Window[CutWindow],
    residuals: CutWindow,
    traces: Traces,
    outputs: Cotangents,
    moves: Moves | None = None,
) -> Bars:
    """The derivatives of the loss of a window, each step apart."""
    (by,) = residuals.read_pull(outputs)
    inputs = [] if residuals.input_pull is None else residuals.input_pull(outputs)[0]
    credit = StepCredit(window, residuals, traces, by, moves)
    at_end = moves is not None and len(by.new[0]) == 1
    ops = credit.of_ops(window.program.step_grads if at_end else window.program.grads)
    return Bars(
        *(widened(by.weights), window.by_input(inputs), ops),
        starts=credit.starts,
        moved=credit.moved,
    )


class StepCredit(Credit):
    """Credit of each step, cut as the traces are."""

    def __init__(
        self,
        window: Window[CutWindow],
        residuals: CutWindow,
        traces: Traces,
        by: Sources,
        moves: Moves | None,
    ):
        super().__init__(window.program, traces.carries)
        self.window, self.residuals, self.traces, self.by = window, residuals, traces, by
        self.moves = moves
        self.moved: dict[TraceNode, Carry] = {}
        """The traces that were read at the end of the window."""
        self.starts: dict[TraceNode, Array] = {}
        old = None
        if window.cut.reads_old:
            old = [without_past(part, residuals.first) for part in by.old]
        transition = residuals.jacobians.transition
        self.signals = WindowSignals(window.program, transition, old, by.new)
        live = window.cut.live
        self.place = {op: place for place, op in enumerate(live)}
        self.xs = dict(zip(live, window.cut.canonical(residuals.data), strict=True))
        self.paths = dict(zip(window.program.traces, residuals.paths, strict=True))
        self._through: dict[tuple[TraceNode, Feed], Array] = {}

    def data(self, op: WeightOp) -> Array | None:
        return self.xs[op]

    def direct(self, op: WeightOp) -> Array:
        return self.by.deltas[self.place[op]]

    def through(self, op: WeightOp, node: TraceNode | None) -> Array:
        if node is None:
            immediate = self.residuals.jacobians.immediate[self.place[op]]
            return into_op(self.program, op, immediate, self.by.new)
        feed = next(feed for feed in node.feeds if op in feed.ops)
        if (node, feed) not in self._through:
            self._through[node, feed] = self._of_feed(node, feed)
        return self._through[node, feed]

    def _of_feed(self, node: TraceNode, feed: Feed) -> Array:
        first, site = feed is node.feeds[0], self.program.site(node, feed)
        immediate = self.residuals.jacobians.immediate[self.place[feed.ops[0]]]
        signals = OpSignals(self.signals, node, feed.ops[0], immediate)
        shape = (*self.by.new[0].shape[:2], site.count)
        credit, start = self.read(node, site, signals, self.paths[node], shape)
        if first:
            self.starts[node] = start
        return credit

    def first(self, past: Past) -> Array:
        added, begins = super().first(past), self.residuals.begins
        return added if begins is None else where_over(~begins[0], added)

    def start(self, node: TraceNode) -> Array:
        self.through(node.op, node)
        return self.starts[node]

    def after(self, node: TraceNode) -> Array | None:
        assert self.moves is not None
        states = self.program.reads.layout(node.blocks).states
        mover, credit = self.window.mover, take(self.by.new, states)
        found = mover.read_end(node, self.moves, self.traces, credit)
        if found is None:
            return None
        self.moved[node], gradient = found
        return gradient


@dataclasses.dataclass(frozen=True, eq=False)
class WindowSignals:
    """The derivatives of a window's loss by old and new states, each step apart; [W, B, n] for each part."""

    program: TraceProgram
    transition: Arrays
    """The compressed D, [C, W, B, n] for each part of the states."""
    old: Arrays | None
    """`None` if no output reads old states past the new ones."""
    new: Arrays

    @cached_property
    def passed_back(self) -> tuple[list[Array], list[Array]]:
        """The credit of each new state, which all later steps add to, and that of the state at the start."""
        owners = columns(self.program.reads.colours.transition, self.new)

        def back(later: Arrays, step: tuple[Sequence[Arrays | Array], Arrays | None, Arrays]):
            jacobian, by_old, by_new = step
            total = [n + a for n, a in zip(by_new, later, strict=True)]
            earlier = [weighted(total, o, j) for j, o in zip(jacobian, owners, strict=True)]
            if by_old is not None:
                earlier = [o + e for o, e in zip(by_old, earlier, strict=True)]
            return earlier, total

        last = [jnp.zeros_like(part[0]) for part in self.new]
        steps = [by_step(j) for j in self.transition], self.old, self.new
        start, credit = lax.scan(back, last, steps, reverse=True)
        return credit, start


@dataclasses.dataclass(frozen=True, eq=False)
class OpSignals:
    """The learning signals of a window as one operation sees them: an `etpc.forms.Signals`."""

    window: WindowSignals
    node: TraceNode
    op: WeightOp
    immediate: Arrays
    """The compressed F of the operation."""
    at_start: None = None

    @property
    def layout(self) -> Layout:
        return self.window.program.reads.layout(self.node.blocks)

    def new(self) -> Array:
        return take(self.window.new, self.layout.states)

    def old(self) -> Array | None:
        old = self.window.old
        return None if old is None else take(old, self.layout.states)

    def through(self) -> tuple[Array, Array]:
        window, layout = self.window, self.layout
        credit, start = window.passed_back
        by_output = into_op(window.program, self.op, self.immediate, credit)
        if window.program.closed(self.node):
            return by_output, take(start, layout.states)
        # A window of one step: what other new states pass back to a block is no credit of its trace.
        transition, old = take_rows(rows_of(window.transition), layout.transition), self.old()
        (of_block,) = apply_back(layout.pairs, transition, self.new())
        return by_output, of_block if old is None else of_block + old[0]


__all__ = ["backward", "forward"]
