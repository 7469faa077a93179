"""The records that the parts of a window hand to each other.

Arrays of all steps of a window have axes [W, B, ...], steps and examples, and arrays of one time [B, ...]. The
states of an example are S real numbers. They come in parts [..., n]: one for each float leaf, and two for
one that is complex.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Bool

from ..analyse import WeightOp
from ..ir import TraceNode
from ..traces import Carry, Rows

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


class Span(NamedTuple):
    """The inputs of a window, and where it begins."""

    xs: Sequence[Any]
    """[W, B, ...] each."""
    state: Arrays
    """All array leaves of the state, [B, ...] each."""
    fresh: Bool[Array, " B"]
    """Whether the stream of an example begins with the window."""


class Taken(NamedTuple):
    """Steps as the forward pass took them: [W, B, ...], or one step of one example."""

    xs: Arrays
    state: Arrays
    """All array leaves of the state before the step."""
    saved: Arrays
    """The outputs of the operations whose data is cut."""


class OpCredit(NamedTuple):
    """What the gradient through a weight operation is made of in a window."""

    op: WeightOp
    terms: Sequence[tuple[Array | None, Array] | Rows]
    """Data and credit, [n, B, ...] each; the products are summed. There is no data where the operation is
    element-wise."""
    of_trace: Array | None
    """The gradient of the weight from a trace, if that gives one."""


class Bars(NamedTuple):
    """The derivatives of the loss of a window: its cotangents."""

    weights: list[Array]
    """By the effective weights, without what `ops` add; at least float32."""
    inputs: list[Array | None]
    """By each input; `None` where it was not asked for."""
    ops: list[OpCredit]
    starts: Mapping[TraceNode, Array]
    """The credit of the traces at the start of the window, as their forms take it."""
    moved: Mapping[TraceNode, Carry]
    """The traces that were read at the end of the window, there."""
    states: Array | None = None
    """By the states at the start of the window, [B, S], where directions are followed."""
