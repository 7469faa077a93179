"""Windows that are cut as the traces are: learning signals, and the Jacobians of the cut steps."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..plan import Pairs, Plan, TracePlan
from ..traces import Factors, Rows, Trace, Traces, apply_back, paired
from ._arrays import (
    by_step,
    columns,
    over_steps,
    replaced,
    take,
    weighted,
    widened,
    without_past,
)
from ._cut import Jacobians, ReadPull, into_op
from ._forward import Rollout
from ._gradient import data_by_op, rows_by_op
from ._move import Moves
from ._records import Arrays, Bars, Cotangents, OpCredit, Past, Span, Weights
from ._returned import wrong_return
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
    """What the credit of each carried trace needs of how its form followed the window."""
    blocks: list[Factors | None]
    """The factors of each live operation whose blocks are not closed."""
    fresh: Array


class Truncated(Window[CutWindow]):
    """Windows in which the data of cut operations is held constant, so that their length does not matter."""

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
        residuals = CutWindow(read_pull, pull, jacobians, data, paths, blocks, span.fresh)
        return Course(outputs, rollout.last, Moves(factors, followed), residuals)

    def _input_pull(self, weights: Weights, rollout: Rollout, moving: Sequence[int]) -> InputPull:
        """How the output of each step depends on the input of that step, with the old state held constant."""
        taken = rollout.taken

        def outputs(values: Arrays) -> list[Array]:
            xs = replaced(taken.xs, moving, values)
            return over_steps(functools.partial(self.step.outputs, weights))(xs, taken.state)

        return jax.vjp(outputs, [taken.xs[i] for i in moving])[1]

    def backward(
        self, residuals: CutWindow, traces: Traces, outputs: Cotangents, moves: Moves | None = None
    ) -> Bars:
        (by,) = residuals.read_pull(outputs)
        inputs = [] if residuals.input_pull is None else residuals.input_pull(outputs)[0]
        old = None
        if self.cut.reads_old:
            old = [without_past(part, residuals.fresh) for part in by.old]
        window = WindowSignals(self.plan, residuals.jacobians.transition, old, by.new)
        xs = self.cut.canonical(residuals.data)
        numbers = [t.op.number for t in self.plan.carried]
        carried = dict(zip(numbers, zip(traces.carries, residuals.paths, strict=True), strict=True))
        ops: list[OpCredit] = []
        held: dict[int | None, tuple[Array, Iterator[list[Rows]]]] = {}
        after = {} if moves is None else self._read_after(moves, traces, by.new)
        added = self._first_data(traces, after)
        for place, p in enumerate(self.cut.live):
            immediate, trace, past = residuals.jacobians.immediate[place], p.trace, None
            of_past: list[Rows] = []
            if (
                trace is not None and _owner(trace) in after
            ):  # no path leads past it: `delta` is zero
                ops.append(OpCredit(p.op, [], after.get(p.op.number)))
                continue
            if trace is None:
                credit = into_op(self.plan, p.op, immediate, by.new)
            elif trace.beside:
                credit, rows = held[trace.shares]
                of_past = next(rows)
            else:
                carry, path = carried.get(p.op.number, (None, ()))
                signals = OpSignals(window, trace, immediate, residuals.blocks[place])
                found: Any = trace.form.credit(trace.site, signals, path)
                shape = (*by.new[0].shape[:2], trace.site.count)
                if not isinstance(found, tuple) or len(found) != 2 or found[0].shape != shape:
                    wanted = f"the credit of the output, {list(shape)}, and that of the carry at the start"
                    raise wrong_return(trace, "credit", found, wanted)
                credit, start = found
                if carry is not None:
                    past = Past(trace, carry, start)
                    given = (
                        [] if p.op.number in added else trace.form.rows(trace.site, start, carry)
                    )
                    rows = iter(rows_by_op(trace, given))
                    of_past = next(rows)
                    held[p.op.number] = credit, rows
            delta, x = by.deltas[place], xs[place]
            delta = delta + credit.reshape(delta.shape)
            if x is not None and p.op.number in added:
                x = jnp.concatenate([x[:1] + added[p.op.number][None], x[1:]])
            ops.append(OpCredit(p.op, [(x, delta), *of_past], past))
        return Bars(widened(by.weights), self.by_input(inputs), ops)

    def _read_after(self, moves: Moves, traces: Traces, new: Arrays) -> dict[int, Past]:
        """The traces that are read at the end of a window, by the number of their operation; `new` is the credit of the
        new states."""
        if len(new[0]) > 1:
            return {}
        credit = {t.op.number: take(new, t.layout.states) for t in self.read_at_end}
        return self.mover.read_after(moves, traces, credit)

    def _first_data(self, traces: Traces, after: Collection[int]) -> dict[int, Array]:
        """What traces add to the data of the first step, by the number of the operation: see `Trace.first_data`."""
        added: dict[int, Array] = {}
        for trace, carry in zip(self.plan.carried, traces.carries, strict=True):
            if trace not in self._credited or trace.op.number in after:
                continue
            x = trace.form.first_data(trace.site, carry)
            if x is not None:
                ops = [trace.op, *self.plan.beside(trace)]
                parts = data_by_op(trace, x)
                added |= {op.number: part for op, part in zip(ops, parts, strict=True)}
        return added

    @property
    def read_at_end(self) -> Sequence[TracePlan]:
        if "read_after" not in self.plan.passes:
            return ()
        complete = [t for t in self._credited if t.op.number not in self._incomplete]
        return [t for t in complete if type(t.form).read_after is not Trace.read_after]

    @cached_property
    def _credited(self) -> list[TracePlan]:
        """The carried traces to which all credit comes by way of new states: no path leads past these to the output,
        neither from old states nor from the operations."""
        if self.cut.reads_old:
            return []
        read = {_owner(t) for t in self.plan.traces if t.op.number in self.cut.reads_ops}
        return [t for t in self.plan.carried if t.op.number not in read]

    @cached_property
    def _incomplete(self) -> set[int]:
        """The carried traces that lack a state at which credit is taken, by the number of their operation."""
        a, sources = self.plan.analysis, self.cut.reading.sources
        sizes = np.diff(a.hidden.offsets)
        at_source = np.repeat([n in sources for n in range(len(sizes))], sizes)
        lacks = lambda t: a.reach[t.op.number].block.multiply(at_source[None]) > t.members
        return {_owner(t) for t in self.plan.traces if lacks(t).nnz}


def _owner(trace: TracePlan) -> int:
    """The number of the operation that the trace is carried for."""
    return trace.op.number if trace.shares is None else trace.shares


@dataclasses.dataclass(frozen=True, eq=False)
class WindowSignals:
    """The derivatives of a window's loss by old and new states, each step apart; [W, B, n] for each part."""

    plan: Plan
    transition: Arrays
    """The compressed D, [C, W, B, n] for each part of the states."""
    old: Arrays | None
    """`None` if no output reads old states past the new ones."""
    new: Arrays

    @cached_property
    def passed_back(self) -> tuple[list[Array], list[Array]]:
        """The credit of each new state, which all later steps add to, and that of the state at the start."""
        owners = columns(self.plan.colours.transition, self.new)

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
    """The learning signals of a window as one operation sees them: an `etpc.traces.Signals`."""

    window: WindowSignals
    trace: TracePlan
    immediate: Arrays
    """The compressed F of the operation."""
    factors: Factors | None
    """`None` if its blocks are closed."""

    def new(self) -> Array:
        return take(self.window.new, self.trace.layout.states)

    def old(self) -> Array | None:
        old = self.window.old
        return None if old is None else take(old, self.trace.layout.states)

    def through(self) -> tuple[Array, Array]:
        window, trace = self.window, self.trace
        if self.factors is None:
            credit, start = window.passed_back
            by_output = into_op(window.plan, trace.op, self.immediate, credit)
            return by_output, take(start, trace.layout.states)
        pairs, transition = trace.layout.pairs, self.factors.transition
        credit, start = _within_blocks(pairs, transition, self.old(), self.new())
        return paired(credit, self.factors.immediate), start


def _within_blocks(
    pairs: Pairs, transition: Array, old: Array | None, new: Array
) -> tuple[Array, Array]:
    """The credit of each new state and that of the start, of blocks that are not closed.

    Each output has credit of its own [W, B, m, O], which does not leave its block.
    """

    def back(later: Array, step: tuple[Array, Array | None, Array]):
        jacobian, by_old, by_new = step
        total = by_new + later
        earlier = apply_back(pairs, jacobian, total)
        return earlier if by_old is None else by_old + earlier, total

    start, credit = lax.scan(back, jnp.zeros_like(new[0]), (transition, old, new), reverse=True)
    return credit, start


__all__ = ["Truncated"]
