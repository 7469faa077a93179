"""The records that the parts of a window hand to each other.

Arrays of all steps of a window have axes [W, B, ...], steps and examples, and arrays of one time [B, ...]. The
states of an example are S real numbers. They come in parts [..., n]: one for each float leaf, and two for
one that is complex.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Bool

from ..analyse import WeightOp
from ..plan import TracePlan
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


class Past(NamedTuple):
    """A trace as a window finds it, and its credit; or as it leaves the trace, where that is read after it."""

    trace: TracePlan
    carry: Carry
    credit: Array
    read_after: Array | None = None
    """What the trace at the end of the window gives, entry by entry; then `carry` and `credit` are those at the end."""

    def entries(self) -> Array | None:
        """What the trace gives to the gradient entry by entry; `None` if it gives nothing so."""
        if self.read_after is not None:
            return self.read_after
        return self.trace.form.entries(self.trace.site, self.credit, self.carry)


class OpCredit(NamedTuple):
    """The credit of a weight operation in a window, with what it is multiplied with."""

    op: WeightOp
    terms: Sequence[tuple[Array | None, Array] | Rows]
    """Data and credit, [n, B, ...] each; the products are summed. There is no data where the operation is
    element-wise."""
    past: Past | None
    """`None` where no trace is carried for the operation."""


class Bars(NamedTuple):
    """The derivatives of the loss of a window: its cotangents."""

    weights: list[Array]
    """By the effective weights, without what `ops` add; at least float32."""
    inputs: list[Array | None]
    """By each input; `None` where it was not asked for."""
    ops: list[OpCredit]
    states: Array | None = None
    """By the states at the start of the window, [B, S], where directions are followed."""
