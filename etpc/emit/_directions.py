"""What a window does along the directions of state space that are followed, nothing cut."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .._jax import linear_transpose
from ..analyse import WeightOp
from ..ir import Layout, TraceNode, TraceProgram
from ..traces import Carry, Directions, Factors, Passage, Traces
from ._arrays import finite_where, of_each_example, take, where_over

PullStates = Callable[[Array], tuple[list[Array], list[Array]]]
"""From a cotangent [B, S] of the states at the end of a window to those at its start, [B, n] for each part, and
to those of the outputs of live operations, [W, B, ...]."""


class Along(NamedTuple):
    """A window along q directions, from q cotangents of the states at its end."""

    ends: Array
    """These cotangents, [B, q, S], or [1, q, S] where the batch shares them."""
    chosen: Any
    """How they were chosen: a record of the form of the directions."""
    by_start: Array
    """Their derivatives by the states at the start, Lambda: [B, q, S]."""
    by_ops: Mapping[WeightOp, Array]
    """By the output of each operation whose trace follows them at each step, [W, B, q, GO]."""
    push: Callable[[Array], Array]
    """From perturbations [B, q, S] of the states at the start to those at the end."""
    kept: Array | None
    """Which directions are not dropped, [B, q]; `None` for all."""


def along(
    program: TraceProgram,
    directions: Directions,
    traces: Traces,
    last: Array,
    back: PullStates,
    fresh: Array,
    valid: Array | None = None,
) -> Along:
    """Pass the directions that the next window begins with back through a window.

    - `last`: the states at the end, [B, S].
    - `fresh`: whether a stream begins with the window.
    - `valid`: the steps that are part of the stream, [W, B]; `None` for all.
    """
    ends, chosen = directions.ends(traces.shared, traces.each, last)
    ends_of_each = of_each_example(ends, fresh)

    def back_valid(end: Array) -> tuple[list[Array], list[Array]]:
        start, ops = back(end)
        return start, ops if valid is None else [where_over(valid, by_op) for by_op in ops]

    starts, ops = jax.vmap(back_valid, in_axes=1)(ends_of_each)
    starts = [finite_where(part.swapaxes(0, 1), fresh) for part in starts]
    if valid is not None:  # a window that begins before its stream has no past
        starts = [where_over(valid[0], part) for part in starts]

    def push(ahead: Array) -> Array:
        by_start = lambda end: jnp.concatenate(back_valid(end)[0], -1)
        forward = linear_transpose(by_start, jnp.zeros_like(ends_of_each[:, 0]))
        return jax.vmap(lambda direction: forward(direction)[0], in_axes=1, out_axes=1)(ahead)

    following = {op for node in program.traces if node.virtual for op in node.ops}
    by_ops: dict[WeightOp, Array] = {
        op: jnp.moveaxis(by_op.reshape(*by_op.shape[:3], -1), 0, 2)
        for op, by_op in zip(program.grads, ops, strict=True)
        if op in following
    }
    by_start = jnp.concatenate(starts, -1)
    kept = directions.keeps(traces.shared, traces.each, by_start)
    if kept is not None:
        for by_op in by_ops.values():
            kept = kept & jnp.isfinite(by_op).all((0, 3))
        by_start = jnp.where(kept[..., None], by_start, jnp.nan)
        mask = kept[None, ..., None]
        by_ops = {op: jnp.where(mask, by_op, 0) for op, by_op in by_ops.items()}
    return Along(ends, chosen, by_start, by_ops, push, kept)


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
    """A window along the directions, as it moves the virtual states of all traces."""

    basis: Array
    """The directions V of the virtual states at the start, [B, q, S]."""
    by_start: Array
    """Lambda, [B, q, S]."""
    transition: Array
    """The transition of the virtual states, [B, q, q]."""
    by_ops: Mapping[WeightOp, Array]


def advanced(
    directions: Directions, traces: Traces, window: Along, credit: Array | None
) -> tuple[Followed, Carry, Carry]:
    """How a window moves virtual states, and what is carried of the directions at its end, `shared` and `each`.

    - `credit`: that of the states at the start, [B, S]; `None` where the loss of the window is not known.
    """
    transition, shared, each = directions.advance(
        *(traces.shared, traces.each, window.ends, window.chosen),
        *(window.by_start, credit, window.push),
    )
    basis = directions.basis(traces.shared, traces.each)
    basis, by_start = of_each_example(basis, window.by_start[:, 0, 0]), window.by_start
    if window.kept is not None:
        by_start = jnp.where(window.kept[..., None], by_start, 0)
    return Followed(basis, by_start, transition, window.by_ops), shared, each


@dataclasses.dataclass(frozen=True, eq=False)
class FollowedPassage:
    """A window as it moves a block by its cut steps, and virtual states with nothing cut.

    The block is moved by D and gets F, both of the whole window. The virtual states are the influence
    on the directions V, so what moves them on is their own transition N, and for what the block knows
    of V at the start the uncut window in place of N: with the columns `v` of V, block and virtual
    states together have the transition `[[D, 0], [Lambda - N v, N]]`, and get `[F, delta]`.
    """

    program: TraceProgram
    node: TraceNode
    block: Passage
    followed: Followed

    @property
    def factors(self) -> Sequence[Factors]:
        return self.block.factors

    @property
    def xs(self) -> Sequence[Array]:
        return self.block.xs

    def moved(self) -> list[Sequence[Array]]:
        by_feed = [self.followed.by_ops[feed.ops[0]] for feed in self.node.feeds]
        return [
            [*parts, of_feed.astype(parts[0].dtype)]
            for parts, of_feed in zip(self.block.moved(), by_feed, strict=True)
        ]

    def whole(self) -> Array:
        node, whole = self.node, self.block.whole()  # [B, P, o]
        layout, q, m = self.program.reads.layout(node.blocks), node.virtual, node.block
        batch, o = len(whole), node.op.size
        followed = self.followed
        predicted = jnp.einsum("bpq,bqs->bps", followed.transition, followed.basis)
        beyond = take([followed.by_start - predicted], layout.states)  # [B, q, m, O]
        among = jnp.broadcast_to(followed.transition[..., None], (batch, q, q, o))
        below = jnp.concatenate([beyond, among], 2).astype(whole.dtype)
        above = jnp.broadcast_to(whole, (batch, whole.shape[1], o))
        if self.program.site(node).pairs.dense:
            square = above.reshape(batch, m, m, o)
            zero = jnp.zeros_like(followed.transition[:, :1, :, None], whole.dtype)
            right = jnp.broadcast_to(zero, (batch, m, q, o))
            above = jnp.concatenate([square, right], 2).reshape(batch, -1, o)
        return jnp.concatenate([above, below.reshape(batch, -1, o)], 1)

    @property
    def after(self) -> Array | None:
        return self.block.after


class VirtualCredit(NamedTuple):
    """The credit of the virtual states at the start of a window."""

    of_states: Array
    """[B, q]."""
    accounted: Array
    """The credit of the states that the virtual ones account for, [B, S]."""

    @classmethod
    def of(cls, directions: Directions, traces: Traces, credit: Array) -> "VirtualCredit":
        """From the credit of all states, [B, S]."""
        of_states = directions.coefficients(traces.shared, traces.each, credit)
        basis = of_each_example(directions.basis(traces.shared, traces.each), credit[:, 0])
        return cls(of_states, jnp.einsum("bq,bqs->bs", of_states, basis))

    def beside(self, layout: Layout, of_block: Array) -> Array:
        """The credit of a block and of its virtual states, [B, m + q, O], from that of the block."""
        accounted = take([self.accounted], layout.states)
        of_block = of_block - accounted.astype(of_block.dtype)
        shape = (*self.of_states.shape, of_block.shape[-1])
        of_virtual = jnp.broadcast_to(self.of_states[..., None], shape)
        return jnp.concatenate([of_block, of_virtual.astype(of_block.dtype)], 1)
