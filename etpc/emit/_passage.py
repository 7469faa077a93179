"""How a window moves a trace: by the cut steps, and along the directions that are followed besides."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from ..plan import TracePlan
from ..traces import Factors
from ._gather import take

Products = tuple[Callable[[Array], Array], Array]
"""The product of all transitions after each step of a window, as a function of what is added there, and the
product of all."""


@dataclasses.dataclass(frozen=True, eq=False)
class CutPassage:
    """By the transitions of the cut steps among the states of a block."""

    trace: TracePlan
    factors: Sequence[Factors]
    """Of all operations that the trace is for."""
    products: Callable[[], Products]

    @property
    def xs(self) -> list[Array]:
        return [factors.x for factors in self.factors if factors.x is not None]

    def moved(self) -> list[list[Array]]:
        move = self.products()[0]
        return [[move(factors.immediate)] for factors in self.factors]

    def whole(self) -> Array:
        return self.products()[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
    """A window along q directions, nothing cut: what it does to the virtual states of all traces."""

    basis: Array
    """The directions V of the virtual states at the start, [B, q, S]."""
    starts: Array
    """By the states at the start, Lambda, [B, q, S]."""
    transition: Array
    """By the virtual states, [B, q, q]."""
    deltas: dict[int, Array]
    """By the output of an operation at each step, [W, B, q, GO]."""


@dataclasses.dataclass(frozen=True, eq=False)
class FollowedPassage:
    """Likewise, and of the virtual states with nothing cut.

    The block is moved by D and gets F, both of the whole window. The virtual states are the influence
    on the directions V, so what moves them on is their own transition N, and for what the block knows
    of V at the start the uncut window in place of N: with the columns `v` of V, block and virtual
    states together have the transition `[[D, 0], [Lambda - N v, N]]`, and get `[F, delta]`.
    """

    inner: CutPassage
    ops: Sequence[TracePlan]
    followed: Followed

    @property
    def xs(self) -> list[Array]:
        return self.inner.xs

    def moved(self) -> list[list[Array]]:
        return [
            [*moved, self.followed.deltas[p.op.number].astype(moved[0].dtype)]
            for p, moved in zip(self.ops, self.inner.moved(), strict=True)
        ]

    def whole(self) -> Array:
        trace, whole = self.inner.trace, self.inner.whole()  # [B, P, o]
        layout, q, m = trace.layout, trace.virtual, trace.block
        batch, _, o = whole.shape
        followed = self.followed
        predicted = jnp.einsum("bpq,bqs->bps", followed.transition, followed.basis)
        beyond = take([followed.starts - predicted], layout.places)  # [B, q, m, o]
        among = jnp.broadcast_to(followed.transition[..., None], (batch, q, q, o))
        below = jnp.concatenate([beyond, among], 2).astype(whole.dtype)
        if trace.site.pairs.dense:
            square = whole.reshape(batch, m, m, o)
            zero = jnp.zeros_like(followed.transition[:, :1, :, None], whole.dtype)
            right = jnp.broadcast_to(zero, (batch, m, q, o))
            above = jnp.concatenate([square, right], 2).reshape(batch, -1, o)
        else:
            above = whole
        return jnp.concatenate([above, below.reshape(batch, -1, o)], 1)


__all__ = ["CutPassage", "Followed", "FollowedPassage", "Products"]
