"""The learning signals of a window, and their credit through the cut steps."""

import dataclasses
from functools import cached_property

import jax.numpy as jnp
from jax import Array, lax

from ..plan import Pairs, Plan, TracePlan
from ..traces import Factors
from ..traces._transitions import apply_back, paired
from ._arrays import by_step, columns, take, weighted
from ._cut import into_op
from ._records import Arrays


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

        def back(later: Arrays, step: tuple[list[Arrays], Arrays | None, Arrays]):
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


__all__ = ["OpSignals", "WindowSignals"]
