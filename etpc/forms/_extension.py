"""What a learning rule may carry besides traces, and add to them: the compiler asks an `Extension`, and knows none."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from jax import Array
from jaxtyping import Float, Inexact

from ._trace import Carry, Passage, Site


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A trace that has rows of an extension after those of its block."""

    site: Site
    """Its `block` counts both, m + q of them."""
    ops: tuple[int, ...]
    """For each feed, the number of the operation by whose F it enters the trace."""
    take: Callable[[Float[Array, "... S"]], Float[Array, "... m O"]]
    """The entries of an array of all states at the states of each output's block."""


class Uncut(NamedTuple):
    """A window with nothing cut, from the states at its start to those at its end; q is any number."""

    last: Float[Array, "B S"]
    """The states at its end."""
    pull: Callable[[Array], tuple[Array, dict[int, Array]]]
    """From cotangents [B, q, S] of the states at the end ([1, q, S] if the batch shares them) to those of the states at
    the start, [B, q, S], and of the outputs of operations at each step, [W, B, q, G * O], by the numbers of those whose
    traces have rows. Where a stream begins with the window, those of the start that are not finite are zero."""
    push: Callable[[Float[Array, "B q S"]], Float[Array, "B q S"]]
    """From perturbations of the states at the start to those at the end."""


class Extension(abc.ABC):
    """What a program carries besides its traces, and the rows that it adds to their blocks. Frozen data, which a rule
    chooses; its windows have `backprop="full"`.

    What is carried is in two parts: arrays that the batch shares, which outlive a reset, and arrays of each example,
    with a leading batch axis.
    """

    unbiased: ClassVar[bool | None] = None
    """Of an extension along directions of states, `etpc.rules.Directions`, which `etpc.reference` has a definition of:
    whether the mean of its gradient is that of the whole influence. `None` for others."""

    @property
    @abc.abstractmethod
    def left_out(self) -> str:
        """What happens to influence that leaves a block, in words."""

    @abc.abstractmethod
    def init(self, size: int, batch: int, dtype: Any) -> tuple[Carry, Carry]:
        """What the batch shares and what each example has when a stream begins; `size` is S."""

    @abc.abstractmethod
    def rows(self, site: Site, escapes: bool) -> int:
        """How many rows the trace of an operation has after those of its block; `escapes` says whether influence
        leaves the block. A trace that neither has rows nor a block is left out."""

    @abc.abstractmethod
    def credit(
        self, block: Block, of_block: Array, shared: Carry, each: Carry, of_states: Array
    ) -> Inexact[Array, "B mq O"]:
        """The credit of a block and of its rows at the start of a window, from the credit of the block, [B, m, O], and
        the credit of all states, [B, S]."""

    @abc.abstractmethod
    def move(
        self, shared: Carry, each: Carry, uncut: Uncut, of_states: Array | None
    ) -> tuple[Carry, Carry, Any]:
        """What is carried at the end of a window, and what `passage` is told of the window. `of_states` is the credit
        of the states at the start, [B, S], or `None` where the loss of the window is not known."""

    @abc.abstractmethod
    def passage(self, block: Block, passage: Passage, moved: Any) -> Passage:
        """A window as it moves a block and its rows, from how it moves the block; `moved` is from `move`."""

    def lost(self, shared: Carry) -> float | None:
        """What `program.credit_lost` returns: the part of the energy of credit that is in no row; `None` if that is
        not known."""
        return None
