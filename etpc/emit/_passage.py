"""A window as it moves one trace: by the cut steps, and along the directions that are followed."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from ..plan import TracePlan
from ..traces import Factors
from ._arrays import take

Products = tuple[Callable[[Array], Array], Array]
"""The product of all transitions after each step of a window, as a function of what is added there, and the
product of all."""


@dataclasses.dataclass(frozen=True, eq=False)
class CutPassage:
    """A window as it moves a trace by the transitions of the cut steps among the states of a block."""

    trace: TracePlan
    factors: Sequence[Factors]
    """Of each operation that the trace is for, its own first."""
    products: Callable[[], Products]
    """Of the transitions; called only if they are needed."""

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
    """A window along the directions, as it moves the virtual states of all traces."""

    basis: Array
    """The directions V of the virtual states at the start, [B, q, S]."""
    by_start: Array
    """Lambda, [B, q, S]."""
    transition: Array
    """The transition of the virtual states, [B, q, q]."""
    by_ops: list[Array | None]


@dataclasses.dataclass(frozen=True, eq=False)
class FollowedPassage:
    """A window as it moves a block by its cut steps, and virtual states with nothing cut.

    The block is moved by D and gets F, both of the whole window. The virtual states are the influence
    on the directions V, so what moves them on is their own transition N, and for what the block knows
    of V at the start the uncut window in place of N: with the columns `v` of V, block and virtual
    states together have the transition `[[D, 0], [Lambda - N v, N]]`, and get `[F, delta]`.
    """

    block: CutPassage
    ops: Sequence[int]
    """The live operations that the trace is for, by their places."""
    followed: Followed

    @property
    def xs(self) -> list[Array]:
        return self.block.xs

    def moved(self) -> list[list[Array]]:
        moved = self.block.moved()
        by_ops = [self.followed.by_ops[place] for place in self.ops]
        return [
            parts if by_op is None else [*parts, by_op.astype(parts[0].dtype)]
            for parts, by_op in zip(moved, by_ops, strict=True)
        ]

    def whole(self) -> Array:
        trace, whole = self.block.trace, self.block.whole()  # [B, P, o]
        layout, q, m = trace.layout, trace.virtual, trace.block
        batch, _, o = whole.shape
        followed = self.followed
        predicted = jnp.einsum("bpq,bqs->bps", followed.transition, followed.basis)
        beyond = take([followed.by_start - predicted], layout.places)  # [B, q, m, o]
        among = jnp.broadcast_to(followed.transition[..., None], (batch, q, q, o))
        below = jnp.concatenate([beyond, among], 2).astype(whole.dtype)
        above = whole
        if trace.site.pairs.dense:
            square = whole.reshape(batch, m, m, o)
            zero = jnp.zeros_like(followed.transition[:, :1, :, None], whole.dtype)
            right = jnp.broadcast_to(zero, (batch, m, q, o))
            above = jnp.concatenate([square, right], 2).reshape(batch, -1, o)
        return jnp.concatenate([above, below.reshape(batch, -1, o)], 1)


__all__ = ["CutPassage", "Followed", "FollowedPassage", "Products"]
