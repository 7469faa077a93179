"""How a window moves the traces to its end."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import is_float, result_type
from ..analyse import trace_dtype
from ..forms import (
    Carry,
    Factors,
    MovesAndReads,
    Passage,
    ReadsEnd,
    Site,
    Traces,
    Uncut,
    suffix_products,
)
from ..ir import Layout, TraceNode, TraceProgram
from ._arrays import where_over
from ._records import Bars, block_of
from ._returned import checked_gradient, wrong_return

Products = tuple[Callable[[Array], Array], Array]
"""The product of all transitions after each step of a window, as a function of what is added there, and the
product of all transitions of the window."""


@dataclasses.dataclass(frozen=True, eq=False)
class Moves:
    """What moves the traces through a window."""

    factors: list[list[Factors]]
    """What the window says of each feed of each trace."""
    paths: list[Any]
    """How each trace followed the window, as its form returned it."""
    restarts: Array | None
    """Whether a stream begins with each step, [W, B]; `None` where none begins after the carry did."""
    uncut: Uncut | None
    """The window with nothing cut, where an extension asks for it."""
    lookback: Carry | None
    """The steps that are kept for look-back at the end of the window, if some are."""

    def of_last_streams(self) -> list[list[Factors]]:
        """The factors without the steps of streams that end in the window, also where those are not finite."""
        if self.restarts is None or len(self.restarts) == 1:
            return self.factors
        later = jnp.cumsum(self.restarts[::-1], 0)[::-1]  # how many begin with the step or later
        goes_on = jnp.pad(later[1:], ((0, 1), (0, 0))) == 0
        return restricted(self.factors, goes_on)

    def going_on(self, node: TraceNode, carry: Carry) -> Carry:
        """A carry without what it holds of streams that end in the window, where its form reduces it."""
        # Of a whole trace nothing is left anyway, as D is zero: a pass over it took a third of the time of a window.
        if self.restarts is None or not node.form.reduces:
            return carry
        goes_on = ~self.restarts.any(0)
        return tuple(where_over(goes_on, a) if is_float(a.dtype) else a for a in carry)


def restricted(factors: list[list[Factors]], where: Array) -> list[list[Factors]]:
    """Factors by which nothing enters a trace but at some steps, [W, B]."""
    kept = lambda a: None if a is None else where_over(where, a)
    of_feed = lambda f: dataclasses.replace(f, x=kept(f.x), immediate=kept(f.immediate))
    return [[of_feed(f) for f in feeds] for feeds in factors]


class Mover:
    """Moves the traces of a program."""

    def __init__(self, program: TraceProgram):
        self.program = program
        self._place = {node: place for place, node in enumerate(program.traces)}
        self._entered = _entered(program)

    def moves(
        self,
        factors: list[list[Factors]],
        traces: Traces,
        restarts: Array | None,
        uncut: Uncut | None = None,
        lookback: Carry | None = None,
    ) -> Moves:
        """What moves the traces through a window, from what it says of each feed of each trace."""
        paths = list[Any]()
        for node, feeds, kept in zip(self.program.traces, factors, traces.carries, strict=True):
            site, carry = computed(self.program, node, kept)
            paths.append(node.form.follow(site, feeds[0], carry))
        return Moves(factors, paths, restarts, uncut, lookback)

    def move(
        self, moves: Moves, traces: Traces, bars: Bars | None = None, after: Array | None = None
    ) -> Traces:
        """The traces at the end of a window.

        - `bars`: the derivatives of the window's loss, where they are known.
        - `after`: zero, known once the traces have been read for the last time, so that they may be overwritten;
            `None` where they are kept.
        """
        extension, shared, each = self.program.extends, traces.shared, traces.each
        extended: Any = None
        if extension is not None and moves.uncut is not None:
            of_states = None if bars is None else bars.states
            shared, each, extended = extension.move(shared, each, moves.uncut, of_states)
        passage_of, carries = self._passages(moves.of_last_streams(), after), list[Carry]()
        moved = {} if bars is None else bars.moved
        types = lambda carry: [(a.shape, a.dtype) for a in carry]
        nodes = self.program.traces
        for node, kept, path in zip(nodes, traces.carries, moves.paths, strict=True):
            passage = passage_of(node)
            if node.virtual and extension is not None:
                passage = extension.passage(block_of(self.program, node), passage, extended)
            start = None if bars is None else bars.starts.get(node)
            site, carry = computed(self.program, node, moves.going_on(node, kept))
            new, move = moved.get(node), jax.named_scope(f"trace {node.op.path}")(node.form.move)
            new = move(site, passage, path, carry, start) if new is None else new
            if types(carry) != types(new):
                wanted = f"a carry of the shapes and dtypes of `init`, {eqx.tree_pformat(carry)}"
                raise wrong_return(node, "move", new, wanted)
            carries.append(tuple(a.astype(b.dtype) for a, b in zip(new, kept, strict=True)))
        lookback = traces.lookback if moves.lookback is None else moves.lookback
        return Traces(carries, shared, each, lookback)

    def read_end(
        self, moves: Moves, traces: Traces, node: TraceNode, credit: Array
    ) -> tuple[Carry, Array]:
        """A trace at the end of a window of one step, and the gradient of the weight; `credit` is that of its block,
        [1, B, m, GO]. There is no extension where windows are cut."""
        place = self._place[node]
        site, carry = computed(self.program, node, moves.going_on(node, traces.carries[place]))
        factors = list(moves.factors)
        hidden = functools.partial(self.program.schedule.varying, like=credit)
        factors[place] = [
            dataclasses.replace(f, immediate=hidden(f.immediate)) for f in factors[place]
        ]
        passage, path = self._passages(factors, None)(node), moves.paths[place]
        if isinstance(node.form, MovesAndReads):
            new, found = node.form.move_and_read(site, passage, path, carry, credit[0])
            return new, checked_gradient(node, "move_and_read", found)
        move = jax.named_scope(f"trace {node.op.path}")(node.form.move)
        new = move(site, passage, path, carry, None)
        return new, _read_end(node, site, credit, new)

    def read_moved(self, last: Traces, node: TraceNode, credit: Array) -> tuple[Carry, Array]:
        """The same of traces that were moved."""
        site, new = computed(self.program, node, last.carries[self._place[node]])
        return new, _read_end(node, site, credit, new)

    def _passages(
        self, factors: list[list[Factors]], after: Array | None
    ) -> Callable[[TraceNode], Passage]:
        """The window as it moves each trace by the transitions of the cut steps."""

        @functools.cache  # traces with the same blocks share the products
        def products(layout: Layout) -> Products:
            node = next(n for n in self.program.traces if self._layout(n) is layout)
            transition = factors[self._place[node]][0].transition
            entered, schedule = self._entered[layout], self.program.schedule
            return suffix_products(layout.pairs, transition, entered, schedule)

        def passage(node: TraceNode) -> Passage:
            feeds, layout = factors[self._place[node]], self._layout(node)

            def moved() -> list[list[Array]]:
                move = products(layout)[0]
                return [[move(of_feed.immediate)] for of_feed in feeds]

            return Passage(feeds, moved, lambda: products(layout)[1], after)

        return passage

    def _layout(self, node: TraceNode) -> Layout:
        return self.program.compression.layout(node.blocks)


def _read_end(node: TraceNode, site: Site, credit: Array, carry: Carry) -> Array:
    assert isinstance(node.form, ReadsEnd)
    return checked_gradient(node, "read_end", node.form.read_end(site, credit[0], carry))


def computed(program: TraceProgram, node: TraceNode, carry: Carry) -> tuple[Site, Carry]:
    """The site and the carry of a trace in the dtype that it is computed in: that of its operations at least. It is
    carried in that of the node, which a pass may replace."""
    site = program.site(node)
    dtype = result_type(node.dtype, trace_dtype(program.analysis, node.op))
    if dtype == node.dtype:
        return site, carry
    site = dataclasses.replace(site, dtype=dtype)
    like = jax.eval_shape(lambda: node.form.init(site, 1))
    return site, tuple(a.astype(b.dtype) for a, b in zip(carry, like, strict=True))


def _entered(program: TraceProgram) -> dict[Layout, list[int]]:
    """The places of each layout's blocks that `F` of any operation enters."""
    entered: dict[Layout, set[int]] = {}
    compression = program.compression
    for node in program.traces:
        for op in node.ops:
            mask = compression.immediate(op, node.blocks).mask
            places = range(node.block) if mask is None else np.flatnonzero(mask.any(1)).tolist()
            entered.setdefault(compression.layout(node.blocks), set()).update(places)
    return {layout: sorted(places) or [0] for layout, places in entered.items()}
