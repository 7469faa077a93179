"""Windows that are cut as the traces are: learning signals, and the Jacobians of the cut steps."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array

from ..traces import Factors, Traces
from ._arrays import over_steps, widened, without_past
from ._cut import Jacobians, ReadPull, into_op
from ._forward import Rollout
from ._move import Moves
from ._records import Arrays, Bars, OpCredit, Past, Span, Weights
from ._signals import OpSignals, WindowSignals
from ._window import Course, Window


class CutWindow(NamedTuple):
    """What the backward pass of a truncated window needs."""

    read_pull: ReadPull
    input_pull: Callable[[Arrays], tuple[list[Array]]] | None
    """From the derivatives by outputs to those by the float inputs; `None` if these are not asked for."""
    jacobians: Jacobians
    data: list[Array]
    paths: list[Any]
    """What the credit of each carried trace needs of how its form followed the window."""
    blocks: list[Factors | None]
    """The factors of each live operation whose blocks are not closed."""
    fresh: Array


class Truncated(Window[CutWindow]):
    """Windows in which the data of cut operations is held constant, so that their length does not matter."""

    copies_weights = True
    holds_steps = True

    def forward(
        self, weights: Weights, span: Span, traces: Traces, moving: Sequence[int] = ()
    ) -> Course[CutWindow]:
        rollout = self.step.run(weights, span.xs, span.state, outputs=False)
        jacobians = self.cut.jacobians(weights, rollout.taken, span.fresh)
        outputs, read_pull, data = self.cut.read(weights, rollout)
        factors = self.cut.factors(jacobians, data)
        followed, paths = self.mover.follow(factors, traces)
        blocks = [
            None if p.trace is None or p.trace.closed else f
            for p, f in zip(self.cut.live, factors, strict=True)
        ]
        pull = self._input_pull(weights, rollout, moving) if moving else None
        saved = CutWindow(read_pull, pull, jacobians, data, paths, blocks, span.fresh)
        return Course(outputs, rollout.last, Moves(factors, followed), saved)

    def _input_pull(self, weights: Weights, rollout: Rollout, moving: Sequence[int]):
        """How the output of each step depends on the input of that step, with the old state held constant."""
        taken = rollout.taken

        def outputs(values: Arrays) -> list[Array]:
            xs = list(taken.xs)
            for i, value in zip(moving, values, strict=True):
                xs[i] = value
            return over_steps(functools.partial(self.step.outputs, weights))(xs, taken.state)

        return jax.vjp(outputs, [taken.xs[i] for i in moving])[1]

    def backward(self, saved: CutWindow, traces: Traces, outputs: Arrays) -> Bars:
        (by,) = saved.read_pull(outputs)
        inputs: list[Array | None] = [None] * len(self.plan.analysis.step.inputs)
        if saved.input_pull is not None:
            inputs = self._by_input(self.float_inputs, saved.input_pull(outputs)[0])
        old = [without_past(part, saved.fresh) for part in by.old] if self.cut.reads_old else None
        window = WindowSignals(self.plan, saved.jacobians.transition, old, by.new)
        xs = self.cut.canonical(saved.data)
        carried = iter(zip(traces.carries, saved.paths, strict=True))
        ops: list[OpCredit] = []
        for place, p in enumerate(self.cut.live):
            immediate, trace, past = saved.jacobians.immediate[place], p.trace, None
            pairs = []
            if trace is None:
                credit = into_op(self.plan, p.op, immediate, by.new)
            else:
                signals = OpSignals(window, trace, immediate, saved.blocks[place])
                carry, path = next(carried) if trace.shares is None else (None, ())
                credit, start = trace.form.credit(trace.site, signals, path)
                if carry is not None:
                    past = Past(trace, carry, start)
                    pairs = trace.form.rows(trace.site, start, carry)
            delta = by.deltas[place]
            delta = delta + credit.reshape(delta.shape)
            ops.append(OpCredit(p.op, [(xs[place], delta), *pairs], past))
        return Bars(widened(by.weights), inputs, ops)


__all__ = ["Truncated"]
