"""Windows that are cut as the traces are: learning signals, and the Jacobians of the cut steps."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .._jax import replaced
from ..analyse import WeightOp
from ..forms import Traces, apply_back, passed_back
from ..ir import Carried, Feed, Layout, TraceNode
from ._arrays import (
    by_step,
    columns,
    over_steps,
    rows_of,
    take,
    take_rows,
    unless,
    weighted,
    widened,
)
from ._cut import ByOp, Jacobians, OutputPull, into_op
from ._forward import Rollout
from ._gradient import Credits
from ._output import StepSources
from ._records import Arrays, Bars, Cotangents, Span, Weights
from ._step import StepFunctions
from ._window import ForwardWindow, ReadEnd, Window

InputPull = Callable[[Cotangents], tuple[list[Array]]]
"""From the derivatives by the outputs of a window to those by the float inputs, each within its own step."""


class CutWindow(NamedTuple):
    """What the backward pass of a truncated window needs."""

    output_pull: OutputPull
    input_pull: InputPull | None
    """`None` if derivatives by inputs are not asked for."""
    jacobians: Jacobians
    data: ByOp
    paths: list[Any]
    """How each trace followed the window."""
    first: Array
    """Whether a stream begins with each step, [W, B]."""
    restarts: Array | None
    """The same where one may begin after the carry did; else `None`."""


def forward(
    window: Window[CutWindow],
    weights: Weights,
    span: Span,
    traces: Traces,
    wanted: Sequence[int] = (),
) -> ForwardWindow[CutWindow]:
    """Run a window, and linearise its cut steps."""
    first, restarts = span.first, span.restarts
    rollout = window.step.forward(weights, span.xs, span.state, outputs=False, begins=span.begins)
    jacobians = window.cut.jacobians(weights, rollout.taken, first)
    outputs, output_pull, data = window.cut.differentiated(weights, rollout)
    factors = window.cut.factors(jacobians, data, restarts)
    moves = window.mover.moves(factors, traces, restarts)
    pull = _input_pull(window.step, weights, rollout, wanted) if wanted else None
    residuals = CutWindow(output_pull, pull, jacobians, data, moves.paths, first, restarts)
    return ForwardWindow(outputs, rollout.last, moves, residuals)


def _input_pull(
    step: StepFunctions, weights: Weights, rollout: Rollout, wanted: Sequence[int]
) -> InputPull:
    """How the output of each step depends on the input of that step, with the old state held constant."""
    taken = rollout.taken

    def outputs(values: Arrays) -> list[Array]:
        xs = replaced(taken.xs, wanted, values)
        return over_steps(functools.partial(step.outputs, weights))(xs, taken.state)

    return jax.vjp(outputs, [taken.xs[i] for i in wanted])[1]


def backward(
    window: Window[CutWindow],
    residuals: CutWindow,
    traces: Traces,
    outputs: Cotangents,
    read_end: ReadEnd,
) -> Bars:
    """The derivatives of the loss of a window, each step apart."""
    (by,) = residuals.output_pull(outputs)
    inputs = [] if residuals.input_pull is None else residuals.input_pull(outputs)[0]
    credit = StepCredit(window, residuals, traces, by, read_end)
    grads = credit.added_to(widened(by.weights), window.program.terms(*by.new[0].shape[:2]))
    return Bars(grads, window.by_input(inputs), credit.starts, credit.moved)


class StepCredit(Credits):
    """Credit of each step, cut as the traces are: the derivatives `by` of the loss, each step apart."""

    def __init__(
        self,
        window: Window[CutWindow],
        residuals: CutWindow,
        traces: Traces,
        by: StepSources,
        read_end: ReadEnd,
    ):
        super().__init__(window.program, traces)
        self.residuals, self.read_end, self.by = residuals, read_end, by
        self.old = None
        """By old states; `None` if no output reads them past the new ones."""
        if window.cut.reads_old:
            self.old = [unless(residuals.first, part) for part in by.old]
        self.place = {op: place for place, op in enumerate(window.step.live)}
        self.paths = dict(zip(window.program.traces, residuals.paths, strict=True))
        self._through: dict[Feed, Array] = {}

    def data(self, op: WeightOp) -> Array | None:
        return self.residuals.data[op.number]

    def direct(self, op: WeightOp) -> Array:
        return self.by.deltas[self.place[op]]

    def into(self, op: WeightOp, credit: Arrays) -> Array:
        """The credit of the output of an operation, from that of the new states."""
        immediate = self.residuals.jacobians.immediate[self.place[op]]
        return into_op(self.program.compression.colours, op, immediate, credit)

    def through(self, op: WeightOp, node: TraceNode | None) -> Array:
        if node is None:
            return self.into(op, self.by.new)
        feed = next(feed for feed in node.feeds if op in feed.ops)
        if feed not in self._through:
            site, signals = self.program.site(node, feed), StepSignals(self, node, feed.ops[0])
            shape = (*self.by.new[0].shape[:2], site.count)
            credit, start = self.read(node, site, signals, self.paths[node], shape)
            self._through[feed] = credit
            if feed is node.feeds[0]:
                self.starts[node] = start
        return self._through[feed]

    def first(self, past: Carried) -> Array:
        added, restarts = super().first(past), self.residuals.restarts
        return added if restarts is None else unless(restarts[0], added)

    def start(self, node: TraceNode) -> Array:
        self.through(node.op, node)
        return self.starts[node]

    def at_end(self, node: TraceNode) -> Array:
        credit = take(self.by.new, self.program.compression.layout(node.blocks).states)
        self.moved[node], gradient = self.read_end(node, credit)
        return gradient

    @cached_property
    def passed_back(self) -> tuple[list[Array], list[Array]]:
        """The credit of each new state, which all later steps add to, and that of the state at the start."""
        parallel = self._in_parallel()
        if parallel is not None:
            return parallel
        owners = columns(self.program.compression.colours.transition, self.by.new)

        def back(later: Arrays, step: tuple[Sequence[Arrays | Array], Arrays | None, Arrays]):
            jacobian, by_old, by_new = step
            total = [n + a for n, a in zip(by_new, later, strict=True)]
            earlier = [weighted(total, o, j) for j, o in zip(jacobian, owners, strict=True)]
            if by_old is not None:
                earlier = [o + e for o, e in zip(by_old, earlier, strict=True)]
            return earlier, total

        last = [jnp.zeros_like(part[0]) for part in self.by.new]  # spread over devices as these
        transition = [by_step(j) for j in self.residuals.jacobians.transition]
        steps, schedule = (transition, self.old, self.by.new), self.program.schedule
        start, credit = schedule.scan(back, last, steps, reverse=True)
        return credit, start

    def _in_parallel(self) -> tuple[list[Array], list[Array]] | None:
        """The same by associative scans, where each state depends on states at its own place; else `None`."""
        schedule, new = self.program.schedule, self.by.new
        if not schedule.abreast:
            return None
        transition, credit, start = self.residuals.jacobians.transition, list(new), list(new)
        found = self.program.compression.colours.aligned([part.shape[-1] for part in new])
        for parts, rows in found or ():
            steps, *shape = new[parts[0]].shape
            if not schedule.in_parallel(steps, len(parts), math.prod(shape)):
                return None
            zero = jnp.zeros_like(new[parts[0]])
            pairs = itertools.product(parts, parts)
            entries = [transition[j][rows[i, j]] if (i, j) in rows else zero for i, j in pairs]
            old = None if self.old is None else [self.old[i] for i in parts]
            ends = passed_back(entries, [new[i] for i in parts], old)
            for i, *of_part in zip(parts, *ends, strict=True):
                credit[i], start[i] = of_part
        return (credit, start) if found else None


@dataclasses.dataclass(frozen=True, eq=False)
class StepSignals:
    """The learning signals of a window as one operation of a trace sees them: an `etpc.forms.Signals`."""

    credit: StepCredit
    node: TraceNode
    op: WeightOp
    at_start: None = None

    @property
    def layout(self) -> Layout:
        return self.credit.program.compression.layout(self.node.blocks)

    def new(self) -> Array:
        return take(self.credit.by.new, self.layout.states)

    def old(self) -> Array | None:
        old = self.credit.old
        return None if old is None else take(old, self.layout.states)

    def through(self) -> tuple[Array, Array]:
        layout, (credit, start) = self.layout, self.credit.passed_back
        by_output = self.credit.into(self.op, credit)
        program = self.credit.program
        if program.window.length != "step" or program.closed(self.node):
            return by_output, take(start, layout.states)
        # What other new states pass back to a block that influence leaves is no credit of its trace.
        rows, old = rows_of(self.credit.residuals.jacobians.transition), self.old()
        (of_block,) = apply_back(layout.pairs, take_rows(rows, layout.transition), self.new())
        return by_output, of_block if old is None else of_block + old[0]
