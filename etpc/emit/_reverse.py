"""Windows in which nothing is cut: reverse mode, and credit of the states at the start for the traces."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..ir import TraceNode, TraceProgram
from ..traces import Traces
from ._arrays import finite_where, replaced, take, widened, without_past, zeros_over
from ._directions import Along, VirtualCredit, along
from ._forward import Rollout, Stored
from ._gradient import Credit, StartSignals
from ._move import Moves
from ._records import Arrays, Bars, Cotangents, Span, Weights
from ._step import StepFunctions
from ._window import Course, Window


class Sources(NamedTuple):
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


Pull = Callable[[Ends], tuple[Sources]]
Run = Callable[[Weights, Span, Arrays], Rollout]
"""A window as a function of weights, inputs, the state that it begins with, and shifts."""


class UncutWindow(NamedTuple):
    """What the backward pass of a window needs where nothing is cut."""

    pull: Pull
    ends: Arrays
    """Cotangents of zero of the states at the end, if `pull` takes some."""
    fresh: Array
    """Whether the stream of each example begins where the traces are, [B]."""


class Reverse(Window[UncutWindow]):
    """Windows that are differentiated in reverse mode; what lies before them is in the traces."""

    def __init__(self, program: TraceProgram, step: StepFunctions):
        super().__init__(program, step)
        self.holds_steps = program.window.behind > 0 or program.directions is not None

    def forward(
        self, weights: Weights, span: Span, traces: Traces, moving: Sequence[int] = ()
    ) -> Course[UncutWindow]:
        rollout, pull = self.steps(weights, span, moving)
        followed = self.along(rollout, pull, traces, span.fresh)
        jacobians = self.cut.jacobians(weights, rollout.taken, span.fresh)
        factors = self.cut.factors(jacobians, self.cut.data(weights, rollout))
        moves = Moves(factors, self.mover.follow(factors, traces), followed)
        ends: list[Array] = []
        if followed is not None:  # else a zero would meet derivatives that may be infinite
            size = self.program.analysis.hidden.size
            ends = self._split(zeros_over(span.fresh, (size,), self.step.dtype))
        residuals = UncutWindow(pull, ends, span.fresh)
        return Course(rollout.outputs, rollout.last, moves, residuals)

    def backward(
        self,
        residuals: UncutWindow,
        traces: Traces,
        outputs: Cotangents,
        moves: Moves | None = None,
    ) -> Bars:
        (by,) = residuals.pull(Ends(outputs, residuals.ends))
        by_state, directions = self._parts_of_bars(by.state), self.program.directions
        credit = virtual = None
        if directions is not None:
            credit = jnp.concatenate([finite_where(s, residuals.fresh) for s in by_state], -1)
            virtual = VirtualCredit.of(directions, traces, credit)
        signals = [without_past(part[None], residuals.fresh)[0] for part in by_state]
        of_window = WindowCredit(self.program, traces, signals, virtual)
        ops = of_window.of_ops(self.program.grads)
        inputs = self.by_input(by.inputs)
        return Bars(widened(by.weights), inputs, ops, of_window.starts, {}, credit)

    # --- reverse mode ---

    def steps(
        self,
        weights: Weights,
        span: Span,
        moving: Sequence[int] = (),
        stored: Stored | None = None,
    ) -> tuple[Rollout, Pull]:
        """Run a window, and how it is differentiated; also by the outputs of operations, if directions are
        followed. `stored` are the states before each step, where they are known."""

        def run(weights: Weights, span: Span, shifts: Arrays) -> Rollout:
            return self.step.run(weights, span.xs, span.state, True, shifts, stored)

        shifts: list[Array] = []
        if self.program.directions is not None:
            steps = span.xs[0].shape[0]
            parts = self._parts(span.state)
            shifts = self.cut.deltas([jnp.broadcast_to(p[None], (steps, *p.shape)) for p in parts])
        return self.differentiated(run, weights, span, moving, shifts)

    def differentiated(
        self, run: Run, weights: Weights, span: Span, moving: Sequence[int], shifts: Arrays = ()
    ) -> tuple[Rollout, Pull]:
        """Run a window, and how it depends on its sources; `moving` are the inputs among them."""
        leaves = self.program.analysis.hidden.leaves

        def window(sources: Sources) -> tuple[Ends, Rollout]:
            xs = replaced(span.xs, moving, sources.inputs)
            state = replaced(span.state, leaves, sources.state)
            wide = weights._replace(effective=sources.weights)
            rollout = run(wide, Span(xs, state, span.fresh), sources.shifts)
            return Ends(rollout.outputs, self._parts(rollout.last) if shifts else []), rollout

        inputs, hidden = [span.xs[i] for i in moving], [span.state[i] for i in leaves]
        sources = Sources(widened(weights.effective), inputs, hidden, shifts)
        _, pull, rollout = jax.vjp(window, sources, has_aux=True)
        return rollout, pull

    def along(
        self,
        rollout: Rollout,
        pull: Pull,
        traces: Traces,
        fresh: Array,
        valid: Array | None = None,
    ) -> Along | None:
        """What a window does along the directions, if some are followed; `valid` are the steps that count."""
        if self.program.directions is None:
            return None
        no_outputs = [jnp.zeros_like(y) for y in rollout.outputs]

        def back(end: Array) -> tuple[list[Array], list[Array]]:
            (by,) = pull(Ends(no_outputs, self._split(end)))
            return self._parts_of_bars(by.state), list(by.shifts)

        last = jnp.concatenate(self._parts(rollout.last), -1)
        return along(self.program, self.program.directions, traces, last, back, fresh, valid)

    # --- parts of states ---

    def _parts(self, state: Arrays) -> list[Array]:
        """The parts [B, n] of the states at one time."""
        return jax.vmap(self.step.parts)(list(state))

    def _parts_of_bars(self, bars: Arrays) -> list[Array]:
        """Derivatives by hidden states, as those by their parts [B, n].

        That by a complex leaf is the derivative by its real part minus i times that by the other.
        """
        parts = self.program.analysis.hidden.split([bar.conj() for bar in bars])
        return [part.reshape(part.shape[0], -1).astype(self.step.dtype) for part in parts]

    def _split(self, states: Array) -> list[Array]:
        """A vector of all states, [B, S], in parts."""
        sizes = [math.prod(a.shape) for a in self.program.analysis.hidden.parts]
        parts = jnp.split(states, np.cumsum(sizes)[:-1], -1)
        return [part.astype(self.step.dtype) for part in parts]


class WindowCredit(Credit):
    """Credit that passed back through a window uncut: that of the states at its start."""

    def __init__(
        self,
        program: TraceProgram,
        traces: Traces,
        states: Arrays,
        virtual: VirtualCredit | None,
    ):
        super().__init__(program, traces.carries)
        self.states, self.virtual = states, virtual
        self.starts: dict[TraceNode, Array] = {}

    def start(self, node: TraceNode) -> Array:
        if node not in self.starts:
            layout = self.program.reads.layout(node.blocks)
            of_block = take(self.states, layout.states)
            if node.virtual and self.virtual is not None:
                of_block = self.virtual.beside(layout, of_block)
            signals = StartSignals(node, of_block)
            self.starts[node] = self.read(node, self.program.site(node), signals, (), None)[1]
        return self.starts[node]
