"""What the compiler asks of a trace: one object, which answers for itself.

Axes: W steps, B examples, G groups, I inputs, m block states, O outputs of one group. In what a window
hands over, a block's outputs are flat, G * O.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Inexact

from .._jax import is_complex
from ..errors import AlgorithmError
from ..ops import Kind
from ..schedule import Schedule
from ._pairs import Pairs, every_pair

Carry = tuple[Array, ...]
"""What a trace carries from window to window: arrays with a leading batch axis."""
Rows = tuple[Inexact[Array, "n B ..."], Inexact[Array, "n B ..."]]
"""Data and credit. The gradient is the sum of their n products, as it is over n steps."""


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """What a trace knows of the weight operation that it follows."""

    kind: Kind
    """The weight operation: its sizes, and what it does with data."""
    block: int
    """m, the largest number of states that one output has a lasting influence on."""
    dtype: Any
    """Of the trace: at least float32, and complex where the operation is."""
    transitions: Pairs | None = None
    """The transitions that the step has among the places of a block, or `None` for any."""
    schedule: Schedule = Schedule()
    """How passes over a large trace are laid out, for the target of the program."""
    outputs_last: bool = False
    """Whether the arrays of a trace have their outputs last, whatever the order of the weight."""

    @property
    def inputs_last(self) -> bool:
        """Whether the arrays of a trace have their inputs after their outputs, as the weight has; a kind may leave it
        out."""
        return not self.outputs_last and bool(getattr(self.kind, "inputs_last", False))

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
        """The axis of groups, which is left out where there is one group."""
        # An axis of length one would leave the layout of an array open, and XLA may copy it from one to another.
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

    @property
    def at_start(self) -> Inexact[Array, "B m GO"] | None:
        """The credit of the block at the start of a window in which nothing is cut, `backprop="full"`. Steps have no
        signals of their own there, so that neither `new` nor `old` may be called. `None` in windows that are cut."""
        ...

    def new(self) -> Inexact[Array, "W B m GO"]:
        """The learning signal L: the credit of the new states of the block of each output, at each step."""
        ...

    def old(self) -> Inexact[Array, "W B m GO"] | None:
        """The credit of the old states of each step on paths past the new ones, or `None` where there is no
        such path."""
        ...

    def through(self) -> tuple[Inexact[Array, "W B GO"] | None, Inexact[Array, "B m GO"]]:
        """All signals of the window, passed back through the cut steps: the credit of the operation's
        output at each step, and of its block at the start of the window. `None` and `at_start` where nothing is cut."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Passage:
    """A window, as it moves one trace, `eps_W = whole eps_0 + sum_t moved_t x_t`.

    [`Full`][etpc.algorithms.Full] is moved by `xs`, `moved` and `whole` alone. So a form with other transitions gives
    it `dataclasses.replace(passage, moved=..., whole=...)`.
    """

    factors: Sequence[Factors]
    """What the window says of each use of the weight that the trace is for."""
    moved: Callable[[], Sequence[Sequence[Inexact[Array, "W B _ GO"]]]]
    """What each use adds at each step, moved on to the end of the window, `(prod_{after t} D) F_t`. It is in one or two
    parts along the states of the block, as XLA is slow to join them."""
    whole: Callable[[], Inexact[Array, "B P o"]]
    """The transition of the window, `prod D`."""
    after: Array | None
    """Zero, an integer that is known once the carry has been read for the last time. A form that adds it to what it
    needs lets XLA overwrite the carry in place. `None` where the carry is kept."""

    @property
    def xs(self) -> list[Inexact[Array, "W B G I"]]:
        """The data of each use; none where the operations have no data."""
        return [factors.x for factors in self.factors if factors.x is not None]


class Trace:
    """The form of a trace: frozen data, and five methods that the compiler calls.

    A form gives `exact`, `init`, `past` and `move`, and other methods where they differ. For each window the compiler
    calls `follow`, before any credit is known, then `read`, `past` and `move`. What only some forms can do are
    protocols of one method each: `ReadsEnd`, `MovesAndReads`, `AddsToFirst` and `Settles`.
    [Extending](../extend.md#a-form-of-trace) has tables.

    A class that gives `exact` is final, as its methods belong together: a form that builds upon another one holds it
    as a field, and calls it.
    """

    exact: bool
    """Whether the form leaves nothing out."""
    reduces: bool = False
    """Whether the trace is reduced after each window, so that the gradient depends on how long these are."""
    joins: bool = False
    """Whether products that are added up may have one trace, with their data side by side: `past` gives rows."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__bases__:
            if issubclass(base, Trace) and hasattr(base, "exact"):
                name = base.__name__
                raise AlgorithmError(
                    f"{cls.__name__} cannot be derived from {name}, which is itself a form of trace. This is "
                    "because the methods of a form belong together: those that are inherited would not fit one that "
                    "is overridden. Derive it from `etpc.forms.Trace`, hold the other form in a field, "
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
        return f"in the form {type(self).__name__}"

    @property
    def of_steps(self) -> bool:
        """Whether the form itself says what the credit of each step meets; else that passes back by the transitions."""
        return type(self).read is not Trace.read

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        """The shapes of the arrays that hold the trace of one example, as the printed program shows them."""
        return tuple(a.shape[1:] for a in jax.eval_shape(lambda: self.init(site, 1)))

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        """The arrays that pictures show, by name, of the trace of one example: `carry` has no batch axis."""
        return {"trace": carry[0]}

    def init(self, site: Site, batch: int) -> Carry:
        """The carry at the start of a stream. Memory, printing and checkpoints follow from it. For examples that begin
        a new stream its floats are set to zero; integers, such as a counter, go on."""
        raise NotImplementedError

    def reads_end(self, site: Site, batch: int) -> bool:
        """Whether the carry of so many examples is read at the end of a window of one step, where it can be:
        see `ReadsEnd`. No gradient depends on it."""
        return True

    def follow(self, site: Site, factors: Factors, carry: Carry) -> Any:
        """The path, which is what `read` and `move` share: what they need of the way through the window."""
        return ()

    def read(
        self, site: Site, signals: Signals, path: Any, carry: Carry
    ) -> tuple[Array | None, Array]:
        """The credit of the output at each step, [W, B, G * O], which is multiplied with the data of that
        step; and the credit of the carry at the start of the window.

        With `signals.at_start` there are no steps: the path is empty, and the first is `None`.
        """
        return signals.through()

    def past(self, site: Site, start: Array, carry: Carry) -> list[Rows] | Array:
        """What the carry at the start of the window gives to the gradient, from its credit: pairs of data and credit,
        or the gradient of the weight itself."""
        return []

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        """The carry at the end of the window, from that at its start and from its credit, where that is known."""
        raise NotImplementedError


@runtime_checkable
class ReadsEnd(Protocol):
    """A form whose whole gradient can be read from the carry at the end of a window of one step."""

    def read_end(self, site: Site, credit: Array, carry: Carry) -> Array:
        """The gradient of the weight, from the credit [B, m, G * O] of the new states. It takes the place of `read` and
        `past` where no path leads past the new states to the output."""
        ...


@runtime_checkable
class MovesAndReads(ReadsEnd, Protocol):
    """One that is moved and read in one pass over its memory."""

    def move_and_read(
        self, site: Site, passage: Passage, path: Any, carry: Carry, credit: Array
    ) -> tuple[Carry, Array]:
        """What `move` and `read_end` return, in the place of both."""
        ...


@runtime_checkable
class AddsToFirst(Protocol):
    """A form whose past is data with the credit of the first step."""

    def first_data(self, site: Site, carry: Carry) -> Array:
        """What the past adds to the data of the first step of a window, [B, G, I]. It takes the place of `past` where
        no path leads past the new states to the output."""
        ...


@runtime_checkable
class Settles(Protocol):
    """A form that some operations get another one for."""

    def settle(self, site: Site) -> Trace:
        """The form that this operation gets, such as `Full` where that is no larger."""
        ...


class Traces(NamedTuple):
    """All that is carried beside the state."""

    carries: list[Carry]
    """The carry of each trace."""
    shared: Carry = ()
    """What the batch shares of an extension; empty where there is none."""
    each: Carry = ()
    """What each example has of it."""
    lookback: Carry = ()
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
