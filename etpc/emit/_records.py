"""The records that the parts of a window hand to each other.

Arrays of all steps of a window have axes [W, B, ...], steps and examples, and arrays of one time [B, ...]. The
states of an example are S real numbers. They come in parts [..., n]: one for each float leaf, and two for
one that is complex.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool

from .._jax import leading
from ..forms import Block, Carry
from ..ir import TraceNode, TraceProgram
from ._arrays import take

Arrays = Sequence[Array]
Cotangents = Sequence[Any]
"""The derivatives by the outputs of a window, [W, B, ...]: arrays; of dtype `float0`, in NumPy, for outputs that are
not floats."""


class Weights(NamedTuple):
    """What depends on parameters alone, computed once for a call."""

    effective: Sequence[Any]
    """The effective weights, by which the program is differentiated."""
    others: Sequence[Any] = ()
    """Other values that the steps read. No derivative passes through them."""


class Begins(NamedTuple):
    """Which examples begin a stream with which step of a window."""

    fresh: Bool[Array, " B"]
    """Those that begin with the first step."""
    reset: Bool[Array, "W B"] | None = None
    """Where a stream begins anew, with the state `initial`; `None` where none may."""
    initial: Arrays = ()
    """All array leaves of the state that a stream begins with, of one example."""

    def steps(self, count: int) -> Bool[Array, "W B"]:
        """Whether a stream begins with each step of a window of so many."""
        first = (np.arange(count) == 0)[:, None] & self.fresh[None]
        return first if self.reset is None else first | self.reset

    def entered(self, place: int, states: Array, where: Array) -> Array:
        """The states of one leaf, with the initial one where a stream begins anew; axes of `where` lead. PRNG keys go
        on, so that noise does not repeat."""
        if jnp.issubdtype(states.dtype, jax.dtypes.extended):
            return states
        return jnp.where(leading(where, states), self.initial[place], states)


class Span(NamedTuple):
    """The inputs of a window, and where it begins."""

    xs: Sequence[Any]
    """[W, B, ...] each."""
    state: Arrays
    """All array leaves of the state, [B, ...] each."""
    begins: Begins

    @property
    def first(self) -> Bool[Array, "W B"]:
        """Whether a stream begins with each step."""
        return self.begins.steps(self.xs[0].shape[0])

    @property
    def restarts(self) -> Bool[Array, "W B"] | None:
        """`first`, where a stream may begin after the carry did, so that traces hold what was before; else `None`."""
        return None if self.begins.reset is None else self.first


class Taken(NamedTuple):
    """Steps as the forward pass took them: [W, B, ...], or one step of one example."""

    xs: Arrays
    state: Arrays
    """All array leaves of the state before the step."""
    saved: Arrays
    """The outputs of the operations whose data is cut."""


class Bars(NamedTuple):
    """The derivatives of the loss of a window: its cotangents."""

    weights: list[Array]
    """By the effective weights, at least float32."""
    inputs: list[Array | None]
    """By each input; `None` where it was not asked for."""
    starts: Mapping[TraceNode, Array]
    """The credit of the traces at the start of the window, as their forms take it."""
    moved: Mapping[TraceNode, Carry]
    """The traces that were read at the end of the window, there."""
    states: Array | None = None
    """By the states at the start of the window, [B, S], where an extension asks for it."""


def block_of(program: TraceProgram, node: TraceNode) -> Block:
    """A trace, as the extension that has rows in it sees it."""
    states = program.compression.layout(node.blocks).states
    ops = tuple(feed.ops[0].number for feed in node.feeds)
    return Block(program.site(node), ops, lambda a: take([a], states))
