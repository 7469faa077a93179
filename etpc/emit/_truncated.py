"""Windows that are cut as the traces are: learning signals, and the Jacobians of the cut steps."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..plan import Change, Plan, TracePlan
from ..traces import Rows, Trace, Traces, apply_back
from ._arrays import (
    by_step,
    columns,
    over_steps,
    replaced,
    rows_of,
    take,
    take_rows,
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


TEXTS = {
    "read_after": "the gradient of a window of one step is read after the step",
    "join_past": "one product for the first step of a window and what was before it",
}
"""What the passes over windows do to a trace."""


class CutWindow(NamedTuple):
    """What the backward pass of a truncated window needs."""

    read_pull: ReadPull
    input_pull: InputPull | None
    """`None` if derivatives by inputs are not asked for."""
    jacobians: Jacobians
    data: list[Array]
    paths: list[Any]
    """What the credit of each carried trace needs of how its form followed the window."""
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
        pull = self._input_pull(weights, rollout, moving) if moving else None
        residuals = CutWindow(read_pull, pull, jacobians, data, paths, span.fresh)
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
        added = self._first_data(traces)
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
                signals = OpSignals(window, trace, immediate)
                found: Any = trace.form.credit(trace.site, signals, path)
                shape = (*by.new[0].shape[:2], trace.site.count)
                if not isinstance(found, tuple) or len(found) != 2 or found[0].shape != shape:
                    wanted = f"the credit of the output, {list(shape)}, and that of the carry at the start"
                    raise wrong_return(trace, "credit", found, wanted)
                credit, start = found
                if carry is not None:
                    past = Past(trace, carry, start)
                    joins = p.op.number in added
                    of_trace = [] if joins else trace.form.rows(trace.site, start, carry)
                    rows = iter(rows_by_op(trace, of_trace))
                    of_past = next(rows)
                    held[p.op.number] = credit, rows
            delta, x = by.deltas[place] + credit.reshape(by.deltas[place].shape), xs[place]
            if x is not None and p.op.number in added:
                x = jnp.concatenate([x[:1] + added[p.op.number][None], x[1:]])
            ops.append(OpCredit(p.op, [(x, delta), *of_past], past))
        return Bars(widened(by.weights), self.by_input(inputs), ops)

    def _read_after(self, moves: Moves, traces: Traces, new: Arrays) -> dict[int, Past]:
        """The traces that are read at the end of a window, by the number of their operation; `new` is the credit of the
        new states."""
        if len(new[0]) > 1:
            return {}
        credit = {t.op.number: take(new, t.layout.states) for t in self._of_pass["read_after"]}
        return self.mover.read_after(moves, traces, credit)

    def _first_data(self, traces: Traces) -> dict[int, Array]:
        """What traces add to the data of the first step, by the number of the operation: see `Trace.first_data`."""
        added: dict[int, Array] = {}
        for trace, carry in zip(self.plan.carried, traces.carries, strict=True):
            if trace in self._of_pass["join_past"]:
                ops = [trace.op, *self.plan.beside(trace)]
                parts = data_by_op(trace, trace.form.first_data(trace.site, carry))
                added |= {op.number: part for op, part in zip(ops, parts, strict=True)}
        return added

    @cached_property
    def _of_pass(self) -> dict[str, list[TracePlan]]:
        """The traces that each pass over windows changes: those of forms with a method of their own for it."""
        methods = {"read_after": Trace.read_after, "join_past": Trace.first_data}
        has = lambda t, method: getattr(type(t.form), method.__name__) is not method
        return {
            name: [t for t in self._credited if name in self.plan.passes and has(t, method)]
            for name, method in methods.items()
        }

    @property
    def changes(self) -> dict[str, tuple[Change, ...]]:
        return super().changes | {
            name: tuple(Change(t.op.path, TEXTS[name]) for t in traces)
            for name, traces in self._of_pass.items()
        }

    @cached_property
    def _credited(self) -> list[TracePlan]:
        """The carried traces to which all credit comes by way of new states: no path leads past these to the output,
        neither from old states nor from the operations, and the trace has all states at which credit is taken."""
        if self.cut.reads_old:
            return []
        a, sources = self.plan.analysis, self.cut.reading.sources
        sizes = np.diff(a.hidden.offsets)
        at_source = np.repeat([n in sources for n in range(len(sizes))], sizes)
        lacks = lambda t: a.reach[t.op.number].block.multiply(at_source[None]) > t.members
        others = {
            _owner(t) for t in self.plan.traces if t.op.number in self.cut.reads_ops or lacks(t).nnz
        }
        return [t for t in self.plan.carried if t.op.number not in others]


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

    def new(self) -> Array:
        return take(self.window.new, self.trace.layout.states)

    def old(self) -> Array | None:
        old = self.window.old
        return None if old is None else take(old, self.trace.layout.states)

    def through(self) -> tuple[Array, Array]:
        window, layout = self.window, self.trace.layout
        credit, start = window.passed_back
        by_output = into_op(window.plan, self.trace.op, self.immediate, credit)
        if self.trace.closed:
            return by_output, take(start, layout.states)
        # A window of one step: what other new states pass back to a block is no credit of its trace.
        transition, old = take_rows(rows_of(window.transition), layout.transition), self.old()
        (of_block,) = apply_back(layout.pairs, transition, self.new())
        return by_output, of_block if old is None else of_block + old[0]


__all__ = ["Truncated"]
