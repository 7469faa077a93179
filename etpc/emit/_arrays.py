"""Arrays that are given in parts: static reads of their last axis, as slices where they suffice; and masks."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import leading, result_type
from ..forms import times
from ..ir import Index

Out = TypeVar("Out")
MAX_SLICES = 32
"""Reads of more slices than this are gathers, so that programs stay small."""


def take_rows(parts: Sequence[Array], index: Index) -> Array:
    """`take` with an index [P, n], joined row by row."""
    count = len(index.at)
    if index.at.ndim != 2 or not 1 < count <= MAX_SLICES:
        return take(parts, index)
    # XLA reads a row of a stack where it comes from; one concatenation of all rows is an array that it writes first.
    return jnp.stack([take(parts, row) for row in index.rows()], -2)


def take(parts: Sequence[Array], index: Index) -> Array:
    """`x[..., index.at]`, where x is the `parts` side by side; zero where the index has no entry.

    For example, with parts of lengths 3 and 2, the index [1, 2, 3] is read as the two slices `parts[0][1:3]`
    and `parts[1][0:1]`. An index of `MAX_SLICES` slices or more is read as a gather.
    """
    at = index.at
    flat = at.reshape(-1)
    present = np.ones(flat.size, bool) if index.mask is None else index.mask.reshape(-1)
    bounds = np.cumsum([0, *(part.shape[-1] for part in parts)])
    part = np.searchsorted(bounds, flat, side="right") - 1
    continues = (np.diff(flat) == 1) & (np.diff(part) == 0) & present[1:] & present[:-1]
    breaks = np.flatnonzero(~(continues | ~(present[1:] | present[:-1]))) + 1
    if flat.size == 0 or breaks.size >= MAX_SLICES:
        out = joined(parts, -1)[..., flat]
        out = out.reshape(*out.shape[:-1], *at.shape)
        if index.mask is not None:
            out = jnp.where(jnp.asarray(index.mask), out, jnp.zeros((), out.dtype))
        return out
    pieces = []
    runs = np.split(np.arange(flat.size), breaks)
    if len(runs) > 1 and len({flat[run].tobytes() for run in runs}) == 1 and present.all():
        # The gates of a cell read the same states. XLA's CPU backend fuses a broadcast, and compiles it once for all
        # arrays of one shape; it compiles each concatenation apart.
        one = take(parts, Index(flat[runs[0]], None))[..., None, :]
        out = jnp.broadcast_to(one, (*one.shape[:-2], len(runs), one.shape[-1]))
        return out.reshape(*out.shape[:-2], *at.shape)
    for run in runs:
        number = int(part[run[0]])
        start = int(flat[run[0]] - bounds[number])
        if present[run[0]]:
            pieces.append(parts[number][..., start : start + run.size])
        else:
            lead = next((p[..., 0] for p in parts if p.shape[-1]), parts[0].sum(-1))
            pieces.append(zeros_over(lead, (run.size,), parts[0].dtype))
    out = joined(pieces, -1)
    return out.reshape(*out.shape[:-1], *at.shape)


def rows_of(parts: Sequence[Array]) -> list[Array]:
    """The rows of a compressed Jacobian one after the other, in parts [..., n], from its parts [C, ..., n]."""
    count = parts[0].shape[0]
    if count * len(parts) <= MAX_SLICES:  # slices, where `moveaxis` writes a transposed copy
        return [part[c] for c in range(count) for part in parts]
    whole = jnp.moveaxis(joined(parts, -1), 0, -2)
    return [whole.reshape(*whole.shape[:-2], -1)]


def by_step(rows: Array) -> list[Array] | Array:
    """The rows of a compressed Jacobian [C, W, ...], as a loop over W takes them."""
    # A list of rows is sliced by the loop; `moveaxis` writes a transposed copy before it.
    return list(rows) if len(rows) <= MAX_SLICES else jnp.moveaxis(rows, 0, 1)


def weighted(parts: Sequence[Array], index: Index, rows: Sequence[Array] | Array) -> Array:
    """`sum_c times(x[..., index.at[c]], rows[c])`, where x is the `parts` side by side."""
    if len(rows) > MAX_SLICES:
        return times(take(parts, index), jnp.moveaxis(jnp.asarray(rows), 0, -2)).sum(-2)
    # Written out, the sum is one fusion; rows along the last axis but one are a transposed copy.
    terms = [times(take(parts, at), row) for at, row in zip(index.rows(), rows, strict=True)]
    return sum(terms[1:], terms[0])


def columns(index: Index, parts: Sequence[Array]) -> list[Index]:
    """An index [C, S] cut into one index [C, n] for each part of the states."""
    bounds = np.cumsum([0, *(part.shape[-1] for part in parts)])
    return [
        Index(index.at[:, a:b], None if index.mask is None else index.mask[:, a:b])
        for a, b in itertools.pairwise(bounds)
    ]


def zeros_over(lead: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Zeros of `lead.shape + shape`, spread over devices as `lead` is."""
    # Zeros of `jnp.zeros` lie on every device: `vmap` refuses them beside arrays that are spread over explicit axes.
    zero = jnp.zeros_like(lead, dtype).reshape(*lead.shape, *[1] * len(shape))
    return jnp.broadcast_to(zero, (*lead.shape, *shape))


def over_steps(function: Callable[..., Out]) -> Callable[..., Out]:
    """A function of one example at one step, over the leading axes [W, B] of its arguments."""
    return jax.vmap(jax.vmap(function))


def where_over(mask: Array, a: Array) -> Array:
    """The array, with zeros where a mask over its leading axes does not hold."""
    return jnp.where(leading(mask, a), a, 0)


def unless(mask: Array, a: Array) -> Array:
    """The array, with zeros where a mask over its leading axes holds."""
    # A select, not a product: a derivative by what came before a stream may be NaN, as that of a norm at zero is.
    return jnp.where(leading(mask, a), 0, a)


def finite_where(by_state: Array, fresh: Array) -> Array:
    """Derivatives [B, ...] by states, with zeros for those that are not finite where a stream begins."""
    return jnp.where(leading(fresh, by_state) & ~jnp.isfinite(by_state), 0, by_state)


def sum_dtype(weight: Array) -> Any:
    """The dtype in which the gradient of a weight is summed: at least float32."""
    return result_type(weight.dtype, jnp.float32)


def widened(arrays: Sequence[Array]) -> list[Array]:
    """Weights or their gradients in the dtypes in which gradients are summed."""
    # JAX adds up a gradient in the dtype of its value: in bfloat16, 4096 terms came to 2016 and not 2024.
    return [a.astype(sum_dtype(a)) for a in arrays]


def joined(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Arrays along an axis as one, in their common dtype."""
    if len(arrays) == 1:
        return arrays[0]
    dtype = result_type(*arrays)
    return jnp.concatenate([a.astype(dtype) for a in arrays], axis)
