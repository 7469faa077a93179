"""What the compiler asks of a trace: one object, which answers for itself.

Axes: W steps, B examples, G groups, I inputs, m block states, O outputs of one group. In what a window
hands over, a block's outputs are flat, G * O.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Inexact

from ..ops import Kind

Carry = tuple[Array, ...]
"""What a trace carries from window to window: arrays with a leading batch axis."""
Rows = tuple[Inexact[Array, "n B ..."], Inexact[Array, "n B ..."]]
"""Data and credit whose products, summed, are a gradient: as those of n steps are."""


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """What a trace knows of the weight operation that it follows."""

    kind: Kind
    block: int
    """m, the largest number of states that one output has a lasting influence on."""
    dtype: Any
    """Of the trace: at least float32, and complex where the operation is."""
    pairs: Any = None
    """The transitions among the places of a block, `etpc.plan.Pairs`; `None` before they are laid out."""

    @property
    def count(self) -> int:
        """The outputs of all groups, G * O."""
        return self.kind.groups * self.kind.outputs

    @property
    def factored(self) -> bool:
        """Whether the operation multiplies data with the weight, so that there is an `x`."""
        return self.kind.data is not None

    @property
    def group(self) -> tuple[int, ...]:
        """The axis of groups, which is left out where there is one group.

        So is that of block states where there is one: axes of length one would leave the layout of an
        array open, and XLA may copy it from one to another.
        """
        return (self.kind.groups,) if self.kind.groups > 1 else ()

    @property
    def states(self) -> tuple[int, ...]:
        """The axis of block states, which is left out where there is one."""
        return (self.block,) if self.block > 1 else ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """What a window says of one weight operation."""

    x: Inexact[Array, "W B G I"] | None
    immediate: Inexact[Array, "W B m GO"]
    """F."""
    transition: Inexact[Array, "W B P o"]
    """D, a number for each of the site's pairs; output n has those of n modulo o, the length of the last axis."""
    counted: Inexact[Array, "W B"] | None = None
    """One for each step of the stream, zero for what is none; `None` where all are."""

    def counting(self, counted: Inexact[Array, "W B"]) -> "Factors":
        """Without what is no step of the stream."""
        x = self.x
        if x is not None:
            x = jnp.where(counted.reshape(*counted.shape, 1, 1) > 0, x, 0)
        return Factors(x, self.immediate, self.transition, counted)


@runtime_checkable
class Signals(Protocol):
    """The learning signals of a window, as one weight operation sees them."""

    def new(self) -> Inexact[Array, "W B m GO"]:
        """By the new states of the block of each output, at each step: the learning signal L."""
        ...

    def old(self) -> Inexact[Array, "W B m GO"] | None:
        """By the old states of each step past the new ones; `None` where no output reads them so."""
        ...

    def through(self) -> tuple[Inexact[Array, "W B GO"], Inexact[Array, "B m GO"]]:
        """The credit of the operation's output at each step, and of its block at the start of the
        window: all signals of the window, passed back through the cut steps."""
        ...


@runtime_checkable
class Passage(Protocol):
    """A window, as it moves one trace, `eps_W = whole eps_0 + sum_t moved_t x_t`.

    These three are all that a trace is moved by, so a form whose transitions or additions are others wraps
    a passage in one that gives its own.
    """

    @property
    def xs(self) -> Sequence[Inexact[Array, "W B G I"]]:
        """The data of each operation that the trace is for."""
        ...

    def moved(self) -> Sequence[Sequence[Inexact[Array, "W B _ GO"]]]:
        """What each operation adds at each step, moved on to the end of the window, `(prod_{after t} D) F_t`.

        In parts along the states of the block, one or two: XLA is slow to join them.
        """
        ...

    def whole(self) -> Inexact[Array, "B P o"]:
        """The transition of the window, `prod D`."""
        ...


class Trace:
    """The form of a trace. Frozen data, with what the compiler asks of it.

    A subclass gives `init` and `advance`, and of the rest what differs. The compiler calls, for each
    window: `follow`, before any credit is known; `credit`; then what the past gives, `rows` or
    `entries`; then `advance`.
    """

    exact: bool = True
    """Whether the form leaves nothing out."""
    start_alone: bool = False
    """Whether the trace is multiplied with the credit of its block at the start of a window alone. Then states whose
    influence ends with the step are left out of the blocks. A subclass that has another `follow`, `credit` or `start`
    than the class that said so does not inherit it."""
    window_matters: bool = False
    """Whether the gradient depends on the window for the form's sake."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declaring = next(base for base in cls.__mro__ if "start_alone" in vars(base))
        methods = ("follow", "credit", "start")
        if any(getattr(cls, name) is not getattr(declaring, name) for name in methods):
            cls.start_alone = False

    @property
    def left_out(self) -> str:
        """What the form leaves out, in words; empty where that is nothing."""
        return ""

    @property
    def verdict(self) -> str:
        """What the printed program says of the gradient where the form leaves something out."""
        return "approximate"

    @property
    def held(self) -> str:
        """What is held for one example, in words."""
        return "one entry for each use and state"

    def settle(self, site: Site) -> "Trace":
        """The form that this operation really gets."""
        return self

    def init(self, site: Site, batch: int) -> Carry:
        """The carry of a stream that begins. Its shapes, bytes and checkpoints follow from it."""
        raise NotImplementedError

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        """The shapes that are shown, for one example: of those arrays that hold the trace itself."""
        return tuple(a.shape[1:] for a in jax.eval_shape(lambda: self.init(site, 1)))

    def same(self, site: Site) -> Any:
        """Equal for two operations on one weight whose traces may be one, as their sum is all that
        counts; `None` where they may not."""
        return None

    def follow(self, site: Site, factors: Factors, carry: Carry) -> tuple[Carry, Any]:
        """The carry moved through the window, as far as credit needs it, and what `credit` needs."""
        return carry, ()

    def credit(self, site: Site, signals: Signals, path: Any) -> tuple[Array, Array]:
        """What the output of each step is charged with, and the credit of the carry at the start.

        The first one, [W, B, G * O], is multiplied with the step's own data.
        """
        return signals.through()

    def start(self, site: Site, credit: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        """The credit of the carry from that of the block states at the start of a window."""
        return credit

    def rows(self, site: Site, start: Array, carry: Carry) -> list[Rows]:
        """What the past gives to the gradient, as data and credit."""
        return []

    def entries(self, site: Site, start: Array, carry: Carry) -> Array | None:
        """What the past gives, entry by entry of the trace, in an order of its own."""
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
    ) -> tuple[Carry, Array | None]:
        """The carry at the end of a window.

        - `passage`: the window, as it moves this trace.
        - `followed`: the carry as `follow` returned it.
        - `start`: the credit of the carry, where it is read no more: then also its `entries`, and
            the carry is overwritten.
        """
        raise NotImplementedError

    def restart(self, site: Site, carry: Carry, fresh: Callable[[Array], Array]) -> Carry:
        """The carry where some examples begin anew; `fresh` sets an array to zero there."""
        return tuple(map(fresh, carry))

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        """What pictures show of the trace of one example, whose arrays have no batch axis, by name."""
        return {"trace": carry[0]}

    def bounds(self, site: Site, carry: Carry) -> tuple[Array, Array] | None:
        """Bounds of what the trace, and the gradients so far, left out; `None` where none is carried."""
        return None


class Traces(NamedTuple):
    """All that is carried beside the state."""

    carries: list[Carry]
    """Of each trace."""
    shared: Carry = ()
    """Of the directions, what the batch shares; empty where there are none."""
    each: Carry = ()
    """Of the directions, what each example has."""
    past: Carry = ()
    """The last steps, [B, n, ...], where the algorithm looks back through them."""


def bytes_of(form: Trace, site: Site) -> int:
    """Bytes that are carried for one example."""
    arrays = jax.eval_shape(lambda: form.init(site, 1))
    return sum(a.size * jnp.dtype(a.dtype).itemsize for a in arrays)


def size_of(form: Trace, site: Site) -> int:
    """How many numbers are carried for one example."""
    return sum(a.size for a in jax.eval_shape(lambda: form.init(site, 1)))


def zeros(batch: int, shapes: Sequence[tuple[int, ...]], dtype: Any) -> Carry:
    return tuple(jnp.zeros((batch, *shape), dtype) for shape in shapes)


__all__ = [
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
