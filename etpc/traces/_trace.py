"""What the compiler asks of a trace: one object, which answers for itself.

Axes: W steps, B examples, G groups, I inputs, m block states, O outputs of one group. In what a window
hands over, a block's outputs are flat, G * O.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Inexact

from .._jax import is_complex
from ..errors import AlgorithmError
from ..ops import Kind
from ._pairs import Pairs, every_pair

Carry = tuple[Array, ...]
"""What a trace carries from window to window: arrays with a leading batch axis."""
Rows = tuple[Inexact[Array, "n B ..."], Inexact[Array, "n B ..."]]
"""Data and credit. The gradient is the sum of their n products, as it is over n steps."""


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """What a trace knows of the weight operation that it follows."""

    kind: Kind
    block: int
    """m, the largest number of states that one output has a lasting influence on."""
    dtype: Any
    """Of the trace: at least float32, and complex where the operation is."""
    transitions: Pairs | None = None
    """The transitions that the step has among the places of a block, or `None` for any."""

    @cached_property
    def pairs(self) -> Pairs:
        """The transitions among the places of a block for which there are numbers."""
        return every_pair(self.block) if self.transitions is None else self.transitions

    @property
    def count(self) -> int:
        """The outputs of all groups, G * O."""
        return self.kind.groups * self.kind.outputs

    @property
    def factored(self) -> bool:
        """Whether the operation multiplies data with the weight, so that there is an `x`."""
        return self.kind.data is not None

    def data(self, x: Array) -> Array:
        """Data in the precision of the trace. That of a complex weight may be real."""
        return x.astype(self.dtype if is_complex(x) else jnp.finfo(self.dtype).dtype)

    @property
    def group(self) -> tuple[int, ...]:
        """The axis of groups, which is left out where there is one group.

        An axis of length one would leave the layout of an array open, and XLA may copy it from one layout to
        another.
        """
        return (self.kind.groups,) if self.kind.groups > 1 else ()

    @property
    def states(self) -> tuple[int, ...]:
        """The axis of block states, which is left out where there is one state."""
        return (self.block,) if self.block > 1 else ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """What a window says of one weight operation."""

    x: Inexact[Array, "W B G I"] | None
    """The data; real where a complex weight has real data."""
    immediate: Inexact[Array, "W B m GO"]
    """F."""
    transition: Inexact[Array, "W B P o"]
    """D, a number for each of the site's pairs and each output; o is 1 where all outputs have one block."""
    begins: Bool[Array, "W B"] | None = None
    """Whether a stream begins with the step. D is zero there; what a form carries besides, and D does not move, starts
    anew. `None` where the carry alone says it."""


@runtime_checkable
class Signals(Protocol):
    """The learning signals of a window, as one weight operation sees them."""

    def new(self) -> Inexact[Array, "W B m GO"]:
        """The learning signal L: the credit of the new states of the block of each output, at each step."""
        ...

    def old(self) -> Inexact[Array, "W B m GO"] | None:
        """The credit of the old states of each step on paths past the new ones, or `None` where there is no
        such path."""
        ...

    def through(self) -> tuple[Inexact[Array, "W B GO"], Inexact[Array, "B m GO"]]:
        """All signals of the window, passed back through the cut steps: the credit of the operation's
        output at each step, and of its block at the start of the window."""
        ...


@runtime_checkable
class Passage(Protocol):
    """A window, as it moves one trace, `eps_W = whole eps_0 + sum_t moved_t x_t`.

    A trace is moved by the first three alone. So a form with other transitions wraps the passage in one that
    gives its own.
    """

    @property
    def xs(self) -> Sequence[Inexact[Array, "W B G I"]]:
        """The data of each operation that the trace is for; none where the operations have no data."""
        ...

    def moved(self) -> Sequence[Sequence[Inexact[Array, "W B _ GO"]]]:
        """What each operation adds at each step, moved on to the end of the window, `(prod_{after t} D) F_t`.

        It is in one or two parts along the states of the block, as XLA is slow to join them.
        """
        ...

    def whole(self) -> Inexact[Array, "B P o"]:
        """The transition of the window, `prod D`."""
        ...

    @property
    def after(self) -> Array | None:
        """Zero, an integer that is known once the carry has been read for the last time. A form that adds it to
        what it needs lets XLA overwrite the carry in place. `None` where the carry is kept."""
        ...


class Advance(NamedTuple):
    """The arguments of `Trace.advance`."""

    site: Site
    passage: Passage
    carry: Carry
    followed: Carry
    start: Array | None


class Trace:
    """The form of a trace: frozen data, and the methods that the compiler calls.

    A form gives `exact`, `init`, `advance` or `follow`, and of the other methods those that differ. For each
    window the compiler calls `follow`, before any credit is known; `credit`; `rows` and `entries`, for what the past
    gives; and `advance`. [Extending](../extend.md#a-form-of-trace) has a table.

    A class that gives `exact` is final, as its methods belong together: a form that builds upon another one holds it
    as a field, and calls it.
    """

    exact: bool
    """Whether the form leaves nothing out."""
    start_alone: bool = False
    """Whether the trace is only read at the start of a window, where it is multiplied with the credit of its block.
    Then states whose influence ends with the step are left out of the blocks."""
    window_matters: bool = False
    """Whether the gradient that this form gives depends on the window."""
    joins: bool = False
    """Whether products that are added up may have one trace, with their data side by side: the form gives nothing as
    `entries`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__bases__:
            if issubclass(base, Trace) and hasattr(base, "exact"):
                name = base.__name__
                raise AlgorithmError(
                    f"{cls.__name__} cannot be derived from {name}, which is itself a form of trace. This is "
                    "because the methods of a form belong together: those that are inherited would not fit one that "
                    "is overridden. Derive it from `etpc.traces.Trace`, hold the other form in a field, "
                    f"`inner: {name}`, and call its methods."
                )

    @property
    def left_out(self) -> str:
        """What the form leaves out, in words; empty where it leaves out nothing."""
        return ""

    @property
    def verdict(self) -> str:
        """What the printed program says of the gradient where the form leaves something out."""
        return "approximate"

    @property
    def held(self) -> str:
        """What the trace of one example holds, in words."""
        return "one entry for each use and state"

    def settle(self, site: Site) -> "Trace":
        """The form that this operation gets in place of this one, such as `Full` where that is no larger."""
        return self

    def init(self, site: Site, batch: int) -> Carry:
        """The carry at the start of a stream. Memory, printing and checkpoints follow from it."""
        raise NotImplementedError

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        """The shapes of the arrays that hold the trace of one example, as the printed program shows them."""
        return tuple(a.shape[1:] for a in jax.eval_shape(lambda: self.init(site, 1)))

    def same(self, site: Site) -> Hashable:
        """Two operations on one weight with the same blocks share a trace, which is the sum of both, where
        this is equal and not `None`. A form with a `follow` of its own shares none."""
        return None

    def follow(self, site: Site, factors: Factors, carry: Carry) -> tuple[Carry, Any]:
        """The carry at the end of the window, as far as it is known before the credit, and what `credit` needs."""
        return carry, ()

    def credit(self, site: Site, signals: Signals, path: Any) -> tuple[Array, Array]:
        """The credit of the output at each step, [W, B, G * O], which is multiplied with the data of that
        step; and the credit of the carry at the start of the window."""
        return signals.through()

    def start(self, site: Site, credit: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        """The credit of the carry from the credit of the block states, both at the start of a window.

        It is called in place of `credit` in windows with `backprop="full"`.
        """
        return credit

    def rows(self, site: Site, start: Array, carry: Carry) -> list[Rows]:
        """What the past gives to the gradient, as pairs of data and credit."""
        return []

    def first_data(self, site: Site, carry: Carry) -> Array:
        """What the past adds to the data of the first step of a window, [B, G, I].

        With `backprop="cut"` it is asked for in place of `rows` where no path leads past the new states to the output,
        neither from old states nor from the operation. Then `credit` is the only credit that the data of a step is
        multiplied with. A form without it is asked for `rows`.
        """
        raise NotImplementedError

    def read_after(
        self, site: Site, credit: Inexact[Array, "B m GO"], carry: Carry
    ) -> Array | None:
        """The whole gradient as `entries` give it, from the carry at the end of a window of one step and the credit of
        the new states; `None` where the carry is to be read at the start.

        It is asked for in place of `entries` and `rows` where no path leads past the new states to the output.
        """
        return None

    def entries(self, site: Site, start: Array, carry: Carry) -> Array | None:
        """What the past gives to the gradient, for each entry of the trace, in the order of the trace."""
        return None

    def gathered(self, site: Site, entries: Array) -> Array:
        """The gradient of the weight from `entries`."""
        raise NotImplementedError

    def advance(
        self,
        site: Site,
        passage: Passage,
        carry: Carry,
        followed: Carry,
        start: Array | None,
    ) -> Carry:
        """The carry at the end of a window.

        - `passage`: the window, as it moves this trace.
        - `followed`: the carry as `follow` returned it.
        - `start`: the credit of the carry, where that is known, else `None`.

        Where a form has a `follow` and no `advance`, the carry is as `follow` returned it.
        """
        if type(self).follow is Trace.follow:
            raise NotImplementedError
        return followed

    def advance_all(self, calls: Sequence[Advance]) -> list[Carry]:
        """`advance` for the traces of one program whose forms are equal to this one. A form may override it, to
        compute together what they have in common."""
        return [self.advance(*call) for call in calls]

    def restart(self, site: Site, carry: Carry, fresh: Callable[[Array], Array]) -> Carry:
        """The carry after some examples began a new stream; `fresh` sets an array to zero in these."""
        return tuple(map(fresh, carry))

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        """The arrays that pictures show, by name, of the trace of one example: `carry` has no batch axis."""
        return {"trace": carry[0]}


class Traces(NamedTuple):
    """All that is carried beside the state."""

    carries: list[Carry]
    """The carry of each trace."""
    shared: Carry = ()
    """What the batch shares of an extension; empty where there is none."""
    each: Carry = ()
    """What each example has of it."""
    past: Carry = ()
    """The last steps, [B, n, ...], where the rule looks back through them."""


def bytes_of(form: Trace, site: Site) -> int:
    """How many bytes a trace carries for one example."""
    arrays = jax.eval_shape(lambda: form.init(site, 1))
    return sum(a.size * jnp.dtype(a.dtype).itemsize for a in arrays)


def size_of(form: Trace, site: Site) -> int:
    """How many numbers of the trace's dtype a trace carries for one example."""
    return bytes_of(form, site) // jnp.dtype(site.dtype).itemsize


def zeros(batch: int, shapes: Sequence[tuple[int, ...]], dtype: Any) -> Carry:
    """Arrays of zeros with a leading batch axis."""
    return tuple(jnp.zeros((batch, *shape), dtype) for shape in shapes)


__all__ = [
    "Advance",
    "Carry",
    "Factors",
    "Passage",
    "Rows",
    "Signals",
    "Site",
    "Trace",
    "Traces",
    "bytes_of",
    "size_of",
    "zeros",
]
