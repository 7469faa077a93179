"""Passes over a large trace, piece by piece, so that nothing of its size is made beside it."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Inexact, Int

from ..ops._kind import summed

Update = Callable[[Array, Callable[[Array, int], Array]], Array]

PIECE = 1 << 21
"""Bytes of a piece: what stays in a cache. A sixteenth of the trace where that is more."""


def over_examples(
    trace: Inexact[Array, "B ..."], axis: int, signal: Inexact[Array, "B ..."]
) -> Inexact[Array, "..."]:
    """`(signal * trace).sum(0)`; `axis` is the axis of the trace that is cut into pieces."""
    size, whole = _pieces(trace, axis)
    if whole == 1:
        return _total(trace, signal)

    def piece(start, size):
        return _total(*(_cut(a, axis, start, size) for a in (trace, signal)))

    found = lax.map(lambda n: piece(n * size, size), jnp.arange(whole))
    rest = trace.shape[axis] - whole * size
    return _joined(found, axis - 1, piece(whole * size, rest) if rest else None)


def overwrite(trace: Inexact[Array, "B ..."], axis: int, update: Update) -> Array:
    """`update(trace, cut)`, a piece of an axis at a time.

    `update` is given a piece and a function that cuts the same piece from an axis of another
    array.
    """
    size, whole = _pieces(trace, axis)
    if whole == 1:
        return update(trace, lambda a, _: a)

    def body(n, trace):
        return _overwritten(trace, axis, n * size, size, update)

    trace = lax.fori_loop(0, whole, body, trace)
    rest = trace.shape[axis] - whole * size
    return _overwritten(trace, axis, whole * size, rest, update) if rest else trace


def read_and_overwrite(
    trace: Inexact[Array, "B ..."], axis: int, signal: Inexact[Array, "B ..."], update: Update
) -> tuple[Array, Array]:
    """`over_examples` and `overwrite` in one pass over the trace."""
    size, whole = _pieces(trace, axis)

    def piece(trace, start, size):
        read = _total(*(_cut(a, axis, start, size) for a in (trace, signal)))
        return _overwritten(trace, axis, start + zero_after(read), size, update), read

    if whole == 1:
        read = _total(trace, signal)
        return update(trace, lambda a, _: a), read
    trace, found = lax.scan(lambda trace, n: piece(trace, n * size, size), trace, jnp.arange(whole))
    rest, last = trace.shape[axis] - whole * size, None
    if rest:
        trace, last = piece(trace, whole * size, rest)
    return trace, _joined(found, axis - 1, last)


def small(trace: Array) -> bool:
    """Whether a trace is one piece."""
    return trace.nbytes <= PIECE


def zero_after(array: Array) -> Int[Array, ""]:
    """The number 0, computed from an array in a way that XLA does not see through.

    XLA overwrites an array in place only where all that reads it is known to come before, and it
    knows that from data alone: `lax.optimization_barrier` is gone when it decides.
    """
    if array.size == 0:
        return jnp.zeros((), jnp.int32)
    first = array[(0,) * array.ndim]
    return jnp.minimum(jnp.isnan(first).astype(jnp.int32), 0)


def _pieces(trace: Array, axis: int) -> tuple[int, int]:
    """Places of an axis in a piece, and how many whole pieces there are."""
    places = trace.shape[axis]
    count = min(math.ceil(trace.nbytes / max(PIECE, trace.nbytes // 16)), places)
    size = math.ceil(places / max(count, 1))
    return size, places // max(size, 1)


def _cut(array: Array, axis: int, start, size: int) -> Array:
    if array.shape[axis] == 1:
        return array
    return lax.dynamic_slice_in_dim(array, start, size, axis)


def _total(trace: Array, signal: Array) -> Array:
    """The sum is a product with ones: XLA's CPU backend reduces a leading axis column by column,
    which was twenty times slower, and copies the whole trace for an einsum, which is faster only
    where that stays in a cache (`small`)."""
    product = signal * trace
    flat = product.reshape(product.shape[0], -1)
    ones = jnp.ones(trace.shape[0], trace.dtype)
    whole = summed("b,bn->n", ones, flat, precision=lax.Precision.HIGHEST)
    return whole.reshape(product.shape[1:])


def _overwritten(trace: Array, axis: int, start, size: int, update: Update) -> Array:
    new = update(
        lax.dynamic_slice_in_dim(trace, start, size, axis),
        lambda a, axis: _cut(a, axis, start, size),
    )
    return lax.dynamic_update_slice_in_dim(trace, new, start, axis)


def _joined(pieces: Array, axis: int, last: Array | None) -> Array:
    """Pieces [n, ...] side by side along an axis of what each is, and a last one."""
    whole = jnp.moveaxis(pieces, 0, axis)
    whole = whole.reshape(*whole.shape[:axis], -1, *whole.shape[axis + 2 :])
    return whole if last is None else jnp.concatenate([whole, last], axis)


__all__ = ["over_examples", "overwrite", "read_and_overwrite", "small", "zero_after"]
