"""What the compiler asks of a rule that follows escaping influence along a few directions.

Influence that leaves the block of an output is dropped by the trace. A rule may keep the whole influence
on q directions of state space, the rows of `V`: each is a virtual state, which every trace that something
escapes from has besides its block. Credit along V is multiplied with the virtual states, and what is left
of it with the block. A window moves them by q cotangents `V` of the states at its end, passed back
through the uncut window:

    Lambda = V prod J,   delta_t = V (prod_{after t} J) F_t

Axes: B examples, q directions, S states.
"""

from collections.abc import Callable
from typing import Any

from jax import Array
from jaxtyping import Bool, Float

from ._trace import Carry

Push = Callable[[Float[Array, "B q S"]], Float[Array, "B q S"]]
"""From perturbations of the states at the start of a window to those at its end, nothing cut."""


class Directions:
    """The virtual states of all traces. Frozen data, with what the compiler asks of it.

    What is carried is in two parts: arrays that the batch shares, which last longer than a stream, and
    arrays of each example, with a leading batch axis.
    """

    count: int
    """q."""

    @property
    def left_out(self) -> str:
        """What happens to influence that escapes, in words."""
        return f"followed along {self.count} directions of state space"

    def init(self, size: int, dtype: Any) -> Carry:
        """What the batch shares when the first stream begins; `size` is S."""
        return ()

    def each(self, size: int, batch: int, dtype: Any) -> Carry:
        """What each example has when its stream begins."""
        return ()

    def lost(self, shared: Carry) -> float | None:
        """The part of the energy of credit that lies in none of the directions; `None` if it is not known."""
        return None

    def ends(
        self, shared: Carry, each: Carry, states: Float[Array, "B S"]
    ) -> tuple[Float[Array, "B q S"], Any]:
        """The cotangents `V` at the end of the window, and what `advance` is told of how they were chosen.

        The first axis of `V` has length one where the batch shares them.

        - `states`: the states at the end of the window.
        """
        raise NotImplementedError

    def keeps(
        self, shared: Carry, each: Carry, starts: Float[Array, "B q S"]
    ) -> Bool[Array, "B q"] | None:
        """Which directions are followed through a window; `None` for all. The others are dropped, as those that
        overflow are.

        Directions that are dropped are NaN in the `starts` of `advance`, and move nothing.
        """
        return None

    def basis(self, shared: Carry, each: Carry) -> Float[Array, "B q S"]:
        """The directions V that the virtual states are the influence on: the cotangents with which the
        last window ended. The first axis has length one where the batch shares them."""
        raise NotImplementedError

    def coefficients(
        self, shared: Carry, each: Carry, credit: Float[Array, "B S"]
    ) -> Float[Array, "B q"]:
        """The credit of the virtual states at the start of a window from that of the states."""
        raise NotImplementedError

    def advance(
        self,
        shared: Carry,
        each: Carry,
        ends: Float[Array, "B q S"],
        chosen: Any,
        starts: Float[Array, "B q S"],
        credit: Float[Array, "B S"] | None,
        push: Push,
    ) -> tuple[Float[Array, "B q q"], Carry, Carry]:
        """The transition of the virtual states over a window, and what is carried at its end.

        - `ends`, `chosen`: what the method `ends` returned.
        - `starts`: `Lambda`.
        - `credit`: the credit of the states at the start, or `None` where the loss of the window is not known.
        - `push`: moves perturbations through the window.
        """
        raise NotImplementedError
