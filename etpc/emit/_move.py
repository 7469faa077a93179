"""How a window moves the traces to its end."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from ..plan import Layout, Plan, TracePlan
from ..traces import Advance, Carry, Factors, Passage, Trace, Traces, suffix_products
from ._directions import Along, FollowedPassage, advanced
from ._records import Bars

Products = tuple[Callable[[Array], Array], Array]
"""The product of all transitions after each step of a window, as a function of what is added there, and the
product of all."""


@dataclasses.dataclass(frozen=True, eq=False)
class CutPassage:
    """A window as it moves a trace by the transitions of the cut steps among the states of a block."""

    factors: Sequence[Factors]
    """Of each operation that the trace is for, its own first."""
    products: Callable[[], Products]
    """Of the transitions; called only if they are needed."""
    after: Array | None
    """Zero, known once the trace has been read; `None` where the trace is kept."""

    @property
    def xs(self) -> list[Array]:
        return [factors.x for factors in self.factors if factors.x is not None]

    def moved(self) -> list[list[Array]]:
        move = self.products()[0]
        return [[move(factors.immediate)] for factors in self.factors]

    def whole(self) -> Array:
        return self.products()[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Moves:
    """What moves the traces through a window."""

    factors: Sequence[Factors | None]
    """What the window says of each live operation; `None` where it has no trace."""
    followed: list[Carry]
    """Each carried trace, as its form followed the window."""
    along: Along | None = None
    """What the window does along the directions that are followed, if some are."""
    past: Carry | None = None
    """The steps that are kept for look-back at the end of the window, if some are."""


class Held(NamedTuple):
    """A carried trace, and the places of the live operations that it is for, its own first."""

    trace: TracePlan
    ops: list[int]


class Mover:
    """Moves the traces of a plan. `live` are the numbers of the live operations."""

    def __init__(self, plan: Plan, live: Sequence[int]):
        self.plan = plan
        self.held: list[Held] = []
        for trace in plan.carried:
            number = trace.op.number
            summed = [t for t in plan.traces if t.summed and t.shares == number]
            ops = [number, *(t.op.number for t in summed)]
            self.held.append(Held(trace, [live.index(n) for n in ops]))
        self._entered = _entered(plan.traces)
        self._alike = _alike([held.trace.form for held in self.held])

    def follow(
        self, factors: Sequence[Factors | None], traces: Traces
    ) -> tuple[list[Carry], list[Any]]:
        """Each carried trace as its form follows the window, and what its credit needs of that."""
        results = [
            held.trace.form.follow(held.trace.site, _of_ops(held, factors)[0], carry)
            for held, carry in zip(self.held, traces.carries, strict=True)
        ]
        return [followed for followed, _ in results], [path for _, path in results]

    def advance(
        self, moves: Moves, traces: Traces, bars: Bars | None = None, after: Array | None = None
    ) -> Traces:
        """The traces at the end of a window.

        - `bars`: the derivatives of the window's loss, where they are known.
        - `after`: zero, known once the traces have been read for the last time, so that they may be overwritten;
            `None` where they are kept.
        """
        directions, along = self.plan.directions, moves.along
        shared, each, followed = traces.shared, traces.each, None
        if directions is not None and along is not None:
            credit = None if bars is None else bars.states
            followed, shared, each = advanced(directions, traces, along, credit)
        credits: list[Array | None] = [None] * len(self.held)
        if bars is not None:
            credits = [op.past.credit for op in bars.ops if op.past is not None]

        @functools.cache  # traces with the same blocks share the products
        def products(layout: Layout) -> Products:
            held = next(held for held in self.held if held.trace.layout is layout)
            transition = _of_ops(held, moves.factors)[0].transition
            return suffix_products(layout.pairs, transition, self._entered[layout])

        calls: list[Advance] = []
        for held, carry, moved, credit in zip(
            self.held, traces.carries, moves.followed, credits, strict=True
        ):
            trace = held.trace
            of_layout = functools.partial(products, trace.layout)
            passage: Passage = CutPassage(_of_ops(held, moves.factors), of_layout, after)
            if trace.directions is not None and followed is not None:
                passage = FollowedPassage(trace, passage, held.ops, followed)
            calls.append(Advance(trace.site, passage, carry, moved, credit))
        results: dict[int, Carry] = {}
        for places in self._alike:
            form = self.held[places[0]].trace.form
            advanced_together = form.advance_all([calls[place] for place in places])
            results.update(zip(places, advanced_together, strict=True))
        carries = [results[place] for place in range(len(calls))]
        past = traces.past if moves.past is None else moves.past
        return Traces(carries, shared, each, past)


def _of_ops(held: Held, factors: Sequence[Factors | None]) -> list[Factors]:
    """The factors of the operations that a trace is for."""
    return [f for f in (factors[place] for place in held.ops) if f is not None]


def _alike(forms: Sequence[Trace]) -> list[list[int]]:
    """The places of forms that are equal, together."""
    groups: list[list[int]] = []
    for place, form in enumerate(forms):
        group = next((g for g in groups if forms[g[0]] == form), None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    return groups


def _entered(traces: Sequence[TracePlan]) -> dict[Layout, list[int]]:
    """The places of each layout's blocks that `F` of any of its operations enters."""
    entered: dict[Layout, set[int]] = {}
    for trace in traces:
        mask = trace.immediate.mask
        places = range(trace.block) if mask is None else np.flatnonzero(mask.any(1)).tolist()
        entered.setdefault(trace.layout, set()).update(places)
    return {layout: sorted(places) or [0] for layout, places in entered.items()}
