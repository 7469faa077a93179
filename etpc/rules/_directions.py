"""Influence that escapes from traces, followed along a few directions of state space.

Influence that leaves the block of an output is dropped by the trace. A rule may keep the whole influence
on q directions of state space, the rows of `V`: each is a virtual state, a row which every trace that something
escapes from has after those of its block. Credit along V is multiplied with the virtual states, and what is left
of it with the block. A window moves them by q cotangents `V` of the states at its end, passed back
through the uncut window:

    Lambda = V prod J,   delta_t = V (prod_{after t} J) F_t

Axes: B examples, q directions, S states.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Inexact

from ..forms import Block, Carry, Extension, Passage, Site, Uncut


class Directions(Extension):
    """The virtual states of all traces. Frozen data; a rule gives it as the `extension` of its choice."""

    count: int
    """q."""
    unbiased: ClassVar[bool | None] = False
    """Whether they are random, and the mean of the gradient is that of the whole influence."""

    @abc.abstractmethod
    def ends(
        self, shared: Carry, each: Carry, states: Float[Array, "B S"]
    ) -> tuple[Float[Array, "B q S"], Any]:
        """The cotangents `V` of the states at the end of a window, and what `advance` is told of how they were chosen.
        The first axis of `V` has length one where the batch shares them."""

    def keeps(
        self, shared: Carry, each: Carry, starts: Float[Array, "B q S"]
    ) -> Bool[Array, "B q"] | None:
        """Which directions are followed through a window; `None` for all. The others, and those that overflow, are
        dropped: they are NaN in the `starts` of `advance`, and move nothing."""
        return None

    @abc.abstractmethod
    def basis(self, shared: Carry, each: Carry) -> Float[Array, "B q S"]:
        """The directions V that the virtual states are the influence on: the `ends` of the last window."""

    @abc.abstractmethod
    def coefficients(
        self, shared: Carry, each: Carry, credit: Float[Array, "B S"]
    ) -> Float[Array, "B q"]:
        """The credit of the virtual states at the start of a window from that of the states."""

    @abc.abstractmethod
    def advance(
        self,
        shared: Carry,
        each: Carry,
        chosen: Any,
        starts: Float[Array, "B q S"],
        credit: Float[Array, "B S"] | None,
        push: Callable[[Array], Array],
    ) -> tuple[Float[Array, "B q q"], Carry, Carry]:
        """The transition of the virtual states over a window, and what is carried at its end.

        - `chosen`: what the method `ends` returned.
        - `starts`: `Lambda`.
        - `credit`: the credit of the states at the start, or `None` where the loss of the window is not known.
        - `push`: moves perturbations [B, q, S] of the states through the window, nothing cut.
        """

    def rows(self, site: Site, escapes: bool) -> int:
        return self.count if escapes else 0

    def credit(
        self, block: Block, of_block: Array, shared: Carry, each: Carry, of_states: Array
    ) -> Inexact[Array, "B mq O"]:
        coefficients = self.coefficients(shared, each, of_states)
        basis = _of_each(self.basis(shared, each), of_states)
        accounted = block.take(jnp.einsum("bq,bqs->bs", coefficients, basis))
        of_block = of_block - accounted.astype(of_block.dtype)
        shape = (*coefficients.shape, of_block.shape[-1])
        of_virtual = jnp.broadcast_to(coefficients[..., None], shape)
        return jnp.concatenate([of_block, of_virtual.astype(of_block.dtype)], 1)

    def move(
        self, shared: Carry, each: Carry, uncut: Uncut, of_states: Array | None
    ) -> tuple[Carry, Carry, Callable[..., "FollowedPassage"]]:
        ends, chosen = self.ends(shared, each, uncut.last)
        starts, by_ops = uncut.pull(ends)
        by_start, basis = starts, _of_each(self.basis(shared, each), starts[:, 0])
        kept = self.keeps(shared, each, starts)
        if kept is not None:
            for by_op in by_ops.values():
                kept = kept & jnp.isfinite(by_op).all((0, 3))
            starts = jnp.where(kept[..., None], starts, jnp.nan)
            by_start = jnp.where(kept[..., None], starts, 0)
            by_ops = {op: jnp.where(kept[None, ..., None], a, 0) for op, a in by_ops.items()}
        transition, shared, each = self.advance(shared, each, chosen, starts, of_states, uncut.push)
        beyond = by_start - jnp.einsum("bpq,bqs->bps", transition, basis)
        return shared, each, functools.partial(FollowedPassage, transition, beyond, by_ops)

    def passage(
        self, block: Block, passage: Passage, moved: Callable[..., "FollowedPassage"]
    ) -> Passage:
        followed = moved(block, passage)
        return dataclasses.replace(passage, moved=followed.moved, whole=followed.whole)


def _of_each(a: Array, like: Array) -> Array:
    """An array [B, q, S], or [1, q, S] that a batch shares, as [B, q, S], spread over devices as `like` [B, S] is."""
    return a + jnp.zeros_like(like)[:, None]


@dataclasses.dataclass(frozen=True, eq=False)
class FollowedPassage:
    """A window as it moves a block by its cut steps, and virtual states with nothing cut.

    The block is moved by D and gets F, both of the whole window. The virtual states are the influence
    on the directions V, so what moves them on is their own transition N, and for what the block knows
    of V at the start the uncut window in place of N: with the columns `v` of V, block and virtual
    states together have the transition `[[D, 0], [Lambda - N v, N]]`, and get `[F, delta]`.
    """

    transition: Array
    """N, [B, q, q]."""
    beyond: Array
    """`Lambda - N V`, [B, q, S]."""
    by_ops: dict[int, Array]
    """By the output of each operation at each step, [W, B, q, GO]."""
    block: Block
    of_block: Passage

    def moved(self) -> list[Sequence[Array]]:
        by_feed = [self.by_ops[op] for op in self.block.ops]
        return [
            [*parts, of_feed.astype(parts[0].dtype)]
            for parts, of_feed in zip(self.of_block.moved(), by_feed, strict=True)
        ]

    def whole(self) -> Array:
        transition, whole = self.transition, self.of_block.whole()  # [B, P, o]
        beyond = self.block.take(self.beyond)
        batch, q, m, o = beyond.shape
        among = jnp.broadcast_to(transition[..., None], (batch, q, q, o))
        below = jnp.concatenate([beyond, among], 2).astype(whole.dtype)
        above = jnp.broadcast_to(whole, (batch, whole.shape[1], o))
        if self.block.site.pairs.dense:
            square = above.reshape(batch, m, m, o)
            zero = jnp.zeros_like(transition[:, :1, :, None], whole.dtype)
            right = jnp.broadcast_to(zero, (batch, m, q, o))
            above = jnp.concatenate([square, right], 2).reshape(batch, -1, o)
        return jnp.concatenate([above, below.reshape(batch, -1, o)], 1)
