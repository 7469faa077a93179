"""The whole trace of an element-wise weight, as it is at each step."""

import dataclasses

import jax.numpy as jnp
from jax import Array

from ._trace import Carry, Factors, Passage, Signals, Site, Trace, zeros
from ._transitions import paired, recurrence


@dataclasses.dataclass(frozen=True)
class Stepwise(Trace):
    """`eps' = D eps + F`, and the gradient `sum_t L_t eps_t`: that of `Full`, in another order.

    `Full` passes the learning signals of a window back through the cut steps, once for all operations. Where no
    other operation needs that, it takes less time to multiply them with the trace of their own step. For a
    weight that is added or multiplied element by element, [B, m, O], and for windows that are cut as the
    trace is.
    """

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        return ((*site.states, site.kind.outputs),)

    def init(self, site: Site, batch: int) -> Carry:
        return zeros(batch, self.shapes(site), site.dtype)

    def follow(self, site: Site, factors: Factors, carry: Carry) -> tuple[Carry, Array]:
        """Also all values, 0 to W, of the trace."""
        (start,) = carry
        eps = start.reshape(start.shape[0], site.block, site.count)
        last, rest = recurrence(site.pairs, factors.transition, factors.immediate, eps)
        return (last.reshape(start.shape),), jnp.concatenate([eps[None], rest])

    def credit(self, site: Site, signals: Signals, path: Array) -> tuple[Array, Array]:
        """All of the gradient at the step that its learning signal is of; none of it is left to the start."""
        old = signals.old()
        credit = paired(signals.new(), path[1:])
        if old is not None:
            credit = credit + paired(old, path[:-1])
        return credit, jnp.zeros_like(path[0])

    def advance(
        self,
        site: Site,
        passage: Passage,
        carry: Carry,
        followed: Carry,
        start: Array | None,
    ) -> tuple[Carry, None]:
        return followed, None


__all__ = ["Stepwise"]
