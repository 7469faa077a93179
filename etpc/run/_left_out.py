"""An update that leaves out the streams whose loss or gradient is not finite."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._jax import leading
from ._carry import Carry
from ._runner import Data, Runner, SequenceGradient

Learn = Callable[[str, Data, Carry], SequenceGradient]
"""The loss and the gradient of a sequence, with a reduction."""


class Kept(NamedTuple):
    """What an update goes on with."""

    value: Array
    grads: list[Array]
    carry: Carry
    left_out: Array
    """Which streams were, [B] or []."""
    counts: Array
    """Whether there is a loss to learn from."""


def of_finite_streams(
    runner: Runner, learn: Learn, reduction: str, data: Data, carry: Carry
) -> tuple[Kept, Any]:
    """The loss and the gradient of the streams in which both are finite; and what the loss returned of all streams.

    Where the gradient of the batch is not finite, each stream is run alone to find streams to leave out, and the
    sequence once more without them. A weight of zero would not do: where a derivative in the step is not finite,
    zero times it is NaN, which the sum over the batch spreads. So another stream, with zero weight, takes their place.
    """
    found, none = learn(reduction, data, carry), jnp.zeros_like(carry.fresh)

    def usual() -> Kept:
        after = found.carry_after(found.grads)
        return Kept(found.value, found.grads, after, none, _any(data.weights))

    def without_broken() -> Kept:
        broken, kept, counts = ~none, found, jnp.zeros((), bool)
        if carry.batched:
            broken = _broken(learn, data, carry)
            sound = _replaced(broken, data, carry)
            kept = learn(reduction, *sound)
            counts = _any(sound[0].weights) & _finite(kept)
        after, beside = (a.carry_after(a.grads) for a in (kept, found))
        rows = jax.tree.map(
            lambda a, b: jnp.where(_along(broken, a), b, a), _rows(after), _rows(beside)
        )
        shared = jax.tree.map(lambda a, b: jnp.where(counts, a, b), after.shared, carry.shared)
        after = runner.reset(dataclasses.replace(rows, shared=shared), broken)
        value = jnp.where(broken.all(), jnp.zeros_like(kept.value), kept.value)
        return Kept(value, kept.grads, after, broken, counts)

    return lax.cond(_finite(found), usual, without_broken), found.aux


def _broken(learn: Learn, data: Data, carry: Carry) -> Array:
    """Which streams have a loss or a gradient that is not finite, [B]."""

    def is_broken(n: Array) -> Array:
        alone = lambda axis: lambda a: lax.dynamic_index_in_dim(a, n, axis)
        one = jax.tree.map(alone(0), _rows(carry))
        one = dataclasses.replace(one, shared=carry.shared)
        return ~_finite(learn("sum", jax.tree.map(alone(1), data), one))

    return lax.map(is_broken, jnp.arange(carry.fresh.shape[0]))


def _replaced(broken: Array, data: Data, carry: Carry) -> tuple[Data, Carry]:
    """A sequence and a carry with one that is not broken in the place of each stream that is, without a weight."""
    other = jnp.max(jnp.where(broken, 0, jnp.arange(broken.size)))

    def replaced(axis: int) -> Callable[[Array], Array]:
        of = lambda a: lax.dynamic_index_in_dim(a, other, axis)
        return lambda a: jnp.where(_along(broken, a, axis), of(a), a)

    rows = jax.tree.map(replaced(0), _rows(carry))
    weights = jnp.ones(data.xs[0].shape[:2], bool) if data.weights is None else data.weights
    weights = jnp.where(broken[None], jnp.zeros_like(weights), weights)
    data = jax.tree.map(replaced(1), data)._replace(weights=weights)
    return data, dataclasses.replace(rows, shared=carry.shared)


def _rows(carry: Carry) -> Carry:
    """A carry without what the batch shares: all arrays have its axis."""
    return dataclasses.replace(carry, shared=())


def _along(where: Array, a: Array, axis: int = 0) -> Array:
    """Booleans [B] or [], with axes of length one for the other axes of an array."""
    return leading(where.reshape((1,) * axis + where.shape), a)


def _finite(found: SequenceGradient) -> Array:
    return jnp.stack([jnp.isfinite(a).all() for a in (found.value, *found.grads)]).all()


def _any(weights: Array | None) -> Array:
    return jnp.ones((), bool) if weights is None else weights.astype(bool).any()
