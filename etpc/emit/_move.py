"""How a window moves the traces to its end."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..plan import Layout, Plan, TracePlan
from ..traces import Advance, Carry, Factors, Passage, Trace, Traces, suffix_products
from ._directions import Along, FollowedPassage, advanced
from ._records import Bars, Past
from ._returned import wrong_return

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
        carries, paths = list[Carry](), list[Any]()
        for held, carry in zip(self.held, traces.carries, strict=True):
            trace = held.trace
            found: Any = trace.form.follow(trace.site, _of_ops(held, factors)[0], carry)
            if not isinstance(found, tuple) or len(found) != 2:
                raise wrong_return(trace, "follow", found, "a carry and what `credit` gets")
            carries.append(found[0])
            paths.append(found[1])
        return carries, paths

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
        pasts: dict[int, Past] = {}
        if bars is not None:
            pasts = {op.op.number: op.past for op in bars.ops if op.past is not None}
        known: dict[int, Carry] = {}
        calls: dict[int, Advance] = {}
        passage_of = self._passages(moves.factors, after)
        for place, held in enumerate(self.held):
            trace, past = held.trace, pasts.get(held.trace.op.number)
            if past is not None and past.read_after is not None:
                known[place] = past.carry
                continue
            passage = passage_of(held)
            if trace.directions is not None and followed is not None:
                passage = FollowedPassage(trace, passage, held.ops, followed)
            carry, moved = traces.carries[place], moves.followed[place]
            credit = None if past is None else past.credit
            calls[place] = Advance(trace.site, passage, carry, moved, credit)
        for places in self._alike:
            of_form = [place for place in places if place in calls]
            if of_form:
                form = self.held[of_form[0]].trace.form
                together = form.advance_all([calls[place] for place in of_form])
                known.update(zip(of_form, together, strict=True))
        carries = [known[place] for place in range(len(self.held))]
        types = lambda carry: [(a.shape, a.dtype) for a in carry]
        for held, old, new in zip(self.held, traces.carries, carries, strict=True):
            if types(old) != types(new):
                wanted = f"a carry of the shapes and dtypes of `init`, {eqx.tree_pformat(old)}"
                method = "follow" if type(held.trace.form).advance is Trace.advance else "advance"
                raise wrong_return(held.trace, method, new, wanted)
        kept = traces.past if moves.past is None else moves.past
        return Traces(carries, shared, each, kept)

    def read_after(
        self, moves: Moves, traces: Traces, credit: Mapping[int, Array]
    ) -> dict[int, Past]:
        """The traces that are read at the end of a window of one step, by the number of their operation; `credit` is
        that of the blocks of some, [1, B, m, GO]. No directions are followed where windows are cut."""
        pasts: dict[int, Past] = {}
        for held, carry, followed in zip(self.held, traces.carries, moves.followed, strict=True):
            trace, factors = held.trace, list(moves.factors)
            if trace.op.number not in credit:
                continue
            of_block = credit[trace.op.number]
            for place, of_op in zip(held.ops, _of_ops(held, factors), strict=True):
                factors[place] = _unknown(of_op, of_block)
            passage = self._passages(factors, None)(held)
            new = trace.form.advance(trace.site, passage, carry, followed, None)
            entries = trace.form.read_after(trace.site, of_block[0], new)
            if entries is not None:
                pasts[trace.op.number] = Past(trace, new, of_block[0], entries)
        return pasts

    def _passages(
        self, factors: Sequence[Factors | None], after: Array | None
    ) -> Callable[[Held], Passage]:
        """The window as it moves each trace by the transitions of the cut steps."""

        @functools.cache  # traces with the same blocks share the products
        def products(layout: Layout) -> Products:
            held = next(held for held in self.held if held.trace.layout is layout)
            transition = _of_ops(held, factors)[0].transition
            return suffix_products(layout.pairs, transition, self._entered[layout])

        return lambda held: CutPassage(
            _of_ops(held, factors), functools.partial(products, held.trace.layout), after
        )


def _unknown(factors: Factors, credit: Array) -> Factors:
    """The same, where XLA does not know that F is constant.

    If what is added to a trace does not vary, XLA computes the trace a second time in the loop that reads it, and
    copies the old one for that. The zero here is computed from the credit of each example, in a way that XLA does not
    see through.
    """
    immediate = factors.immediate
    zero = jnp.minimum(jnp.isnan(credit[..., :1]).astype(jnp.int32), 0)
    return dataclasses.replace(factors, immediate=immediate + zero.astype(immediate.dtype))


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
