"""The learning signals of a window, and their credit through the cut steps."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import jax.numpy as jnp
from jax import Array, lax

from ..analyse import WeightOp
from ..plan import Plan, TracePlan
from ..traces import Factors, apply_back, paired, times
from ._gather import by_step, columns, rows, take, weighted

Arrays = Sequence[Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Credit:
    """Learning signals by old and new states, in parts [W, B, n], and the Jacobians of the window."""

    plan: Plan
    transition: Arrays
    """The compressed D, [C, W, B, n] for each part of the states."""
    old: Arrays | None
    """`None` where no output reads old states past the new ones."""
    new: Arrays

    @cached_property
    def through(self) -> tuple[list[Array], list[Array]]:
        """Reverse mode through the cut steps: the credit of each new state, and of the start."""
        owners = columns(self.plan.colours.transition, self.new)

        def back(later, step):
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
    """The learning signals of a window, as one operation sees them."""

    credit: Credit
    trace: TracePlan
    immediate: Arrays
    """The compressed F of the operation."""
    factors: Factors | None
    """Where its blocks are not closed."""

    def new(self) -> Array:
        return take(self.credit.new, self.trace.layout.states)

    def old(self) -> Array | None:
        old = self.credit.old
        return None if old is None else take(old, self.trace.layout.states)

    def through(self) -> tuple[Array, Array]:
        credit, trace, places = self.credit, self.trace, self.trace.layout.states
        if self.factors is None:
            credits, start = credit.through
            return into_op(credit.plan, self.immediate, credits, trace.op), take(start, places)
        block_credit, start = _within(
            trace.layout.pairs, self.factors.transition, self.old(), self.new()
        )
        return paired(block_credit, self.factors.immediate), start


def into_op(plan: Plan, immediate: Arrays, signal: Arrays, op: WeightOp) -> Array:
    """`F^T` on a signal."""
    read_by_columns = plan.colours.columns.get(op.number)
    if read_by_columns is not None:
        parts = [times(s[None], j) for j, s in zip(immediate, signal, strict=True)]
        return take(rows(parts), read_by_columns.entries).sum(-1)
    (jacobian,) = immediate
    owner = plan.colours.immediate[op.number]
    if owner.at.shape[-1] == 0:
        return jnp.zeros(jacobian.shape[1:], jacobian.dtype)
    return weighted(signal, owner, jacobian)


def _within(pairs, transition: Array, old: Array | None, new: Array) -> tuple[Array, Array]:
    """The credit of the block of each output, of each new state and of the start.

    For blocks that are not closed, where each output keeps to transitions inside its own.
    """

    def back(later, step):
        jacobian, by_old, by_new = step
        total = by_new + later
        earlier = apply_back(pairs, jacobian, total)
        return earlier if by_old is None else by_old + earlier, total

    start, credit = lax.scan(back, jnp.zeros_like(new[0]), (transition, old, new), reverse=True)
    return credit, start


__all__ = ["Credit", "OpSignals", "into_op"]
