"""Passes over a large trace, piece by piece, so that nothing of its size is made beside it."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Inexact, Int

from ..ops._kind import summed

PIECE = 1 << 22
"""Bytes of a piece: what stays in a cache. A sixteenth of the trace where that is more."""


def over_examples(
    trace: Inexact[Array, "B ..."], axis: int, signal: Inexact[Array, "B ..."]
) -> Inexact[Array, "..."]:
    """`(signal * trace).sum(0)`; `axis` is the axis of the trace that is cut into pieces.

    The sum is a product with ones: XLA's CPU backend reduces a leading axis column by column,
    which was twenty times slower, and copies the whole trace for an einsum, which is faster only
    where that stays in a cache (`small`).
    """
    size, whole = _pieces(trace, axis)
    ones = jnp.ones(trace.shape[0], trace.dtype)

    def total(trace, signal):
        product = signal * trace
        flat = product.reshape(product.shape[0], -1)
        return summed("b,bn->n", ones, flat, precision=lax.Precision.HIGHEST).reshape(
            product.shape[1:]
        )

    if whole == 1:
        return total(trace, signal)

    def piece(start, size):
        return total(*(_cut(a, axis, start, size) for a in (trace, signal)))

    out = lax.map(lambda n: piece(n * size, size), jnp.arange(whole))
    out = jnp.moveaxis(out, 0, axis - 1)
    out = out.reshape(*out.shape[: axis - 1], -1, *out.shape[axis + 1 :])
    rest = trace.shape[axis] - whole * size
    if rest:
        out = jnp.concatenate([out, piece(whole * size, rest)], axis - 1)
    return out


def overwrite(
    trace: Inexact[Array, "B ..."],
    axis: int,
    update: Callable[[Array, Callable[[Array, int], Array]], Array],
    zero: Int[Array, ""] | int = 0,
) -> Array:
    """`update(trace, cut)`, a piece of an axis at a time.

    `update` is given a piece and a function that cuts the same piece from an axis of another
    array. `zero` is the number 0, of a form that says after what the trace may be overwritten.
    """
    size, whole = _pieces(trace, axis)
    if whole == 1:
        return update(trace, lambda a, _: a)

    def piece(start, size, trace):
        new = update(
            lax.dynamic_slice_in_dim(trace, start, size, axis),
            lambda a, axis: _cut(a, axis, start, size),
        )
        return lax.dynamic_update_slice_in_dim(trace, new, start, axis)

    trace = lax.fori_loop(zero, whole, lambda n, trace: piece(n * size, size, trace), trace)
    rest = trace.shape[axis] - whole * size
    return piece(whole * size, rest, trace) if rest else trace


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


__all__ = ["over_examples", "overwrite", "small", "zero_after"]
