"""How a window moves a trace: by the cut steps, and along the directions that are followed besides."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from ..plan import OpPlan
from ..traces import Factors
from ..traces._transitions import apply, times
from ._gather import take

Products = tuple[Array, Array]
"""The product of all transitions after each step of a window, and the product of all."""


@dataclasses.dataclass(frozen=True, eq=False)
class CutPassage:
    """By the transitions of the cut steps among the states of a block."""

    p: OpPlan
    factors: Sequence[Factors]
    """Of all operations that the trace is for."""
    products: Callable[[], Products]

    @property
    def xs(self) -> list[Array]:
        return [factors.x for factors in self.factors if factors.x is not None]

    def moved(self) -> list[Array]:
        after, pairs = self.products()[0], self.p.layout.pairs
        return [apply(pairs, after, factors.immediate) for factors in self.factors]

    def whole(self) -> Array:
        return self.products()[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
    """A window along q directions, nothing cut: what it does to the virtual states of all traces."""

    ends: Array
    """The cotangents V at the end, [B, q, S]; the first axis has length one where they are shared."""
    starts: Array
    """By the states at the start, Lambda, [B, q, S]."""
    transition: Array
    """By the virtual states, [B, q, q]."""
    deltas: dict[int, Array]
    """By the output of an operation at each step, [W, B, q, GO]."""


@dataclasses.dataclass(frozen=True, eq=False)
class FollowedPassage:
    """Likewise, and on the virtual states what the cut steps leave out.

    With the rows `V` of the block as `v`, the transition of block and virtual states together is
    `[[D, 0], [Lambda - v D, N]]`, and they get `[F, delta - v F]`, where D and F are those of the whole
    window.
    """

    inner: CutPassage
    ops: Sequence[OpPlan]
    followed: Followed
    factors = None

    @property
    def xs(self) -> list[Array]:
        return self.inner.xs

    def moved(self) -> list[Array]:
        v = take([self.followed.ends], self.inner.p.layout.states)  # [B, q, m, GO]
        found = []
        for p, moved in zip(self.ops, self.inner.moved(), strict=True):
            known = times(v[None], moved[:, :, None]).sum(-2)
            beyond = self.followed.deltas[p.op.number].astype(moved.dtype) - known
            found.append(jnp.concatenate([moved, beyond], 2))
        return found

    def whole(self) -> Array:
        p, whole = self.inner.p, self.inner.whole()  # [B, P, o]
        layout, q, m = p.layout, p.virtual, p.block
        batch, _, o = whole.shape
        at = layout.states
        v, starts = (take([a], at) for a in (self.followed.ends, self.followed.starts))
        if layout.shared:
            v, starts = v[..., :1], starts[..., :1]
        square = _square(layout.pairs, whole)
        known = times(v[:, :, :, None], square[:, None]).sum(2)  # [B, q, m, o]
        among = jnp.broadcast_to(self.followed.transition[..., None], (batch, q, q, o))
        below = jnp.concatenate([starts - known, among.astype(whole.dtype)], 2)
        if p.site.pairs.dense:
            right = jnp.zeros((batch, m, q, o), whole.dtype)
            above = jnp.concatenate([square, right], 2).reshape(batch, -1, o)
        else:
            above = whole
        return jnp.concatenate([above, below.reshape(batch, -1, o)], 1)


def _square(pairs, transition: Array) -> Array:
    """A transition [B, P, o] with all pairs of places, [B, m, m, o]."""
    m = pairs.m
    if not pairs.dense:
        full = jnp.zeros((transition.shape[0], m * m, transition.shape[-1]), transition.dtype)
        transition = full.at[:, pairs.after * m + pairs.before].set(transition)
    return transition.reshape(transition.shape[0], m, m, transition.shape[-1])


__all__ = ["CutPassage", "Followed", "FollowedPassage", "Products"]
