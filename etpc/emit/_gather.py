"""Static reads of the last axis of an array that is given in parts, as slices where they suffice."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..plan import Index
from ..traces import times

MAX_SLICES = 32


def take_rows(parts: Sequence[Array], index: Index) -> Array:
    """`take`, of an index [P, n], joined row by row: XLA then reads single rows where they come from."""
    count = len(index.at)
    if index.at.ndim != 2 or not 1 < count <= MAX_SLICES:
        return take(parts, index)
    return jnp.stack([take(parts, row) for row in index.rows()], -2)


def take(parts: Sequence[Array], index: Index) -> Array:
    """`x[..., index.at]`, where `parts` side by side are x; zero where the index has no entry."""
    at = index.at
    flat = at.reshape(-1)
    present = np.ones(flat.size, bool) if index.mask is None else index.mask.reshape(-1)
    bounds = np.cumsum([0, *(part.shape[-1] for part in parts)])
    part = np.searchsorted(bounds, flat, side="right") - 1
    continues = (np.diff(flat) == 1) & (np.diff(part) == 0) & present[1:] & present[:-1]
    breaks = np.flatnonzero(~(continues | ~(present[1:] | present[:-1]))) + 1
    if flat.size == 0 or breaks.size >= MAX_SLICES:
        out = _joined(parts)[..., flat]
        out = out.reshape(*out.shape[:-1], *at.shape)
        if index.mask is not None:
            out = jnp.where(jnp.asarray(index.mask), out, jnp.zeros((), out.dtype))
        return out
    pieces = []
    for run in np.split(np.arange(flat.size), breaks):
        number = int(part[run[0]])
        start = int(flat[run[0]] - bounds[number])
        if present[run[0]]:
            pieces.append(parts[number][..., start : start + run.size])
        else:
            lead = next((p[..., 0] for p in parts if p.shape[-1]), parts[0].sum(-1))
            pieces.append(zeros_over(lead, (run.size,), parts[0].dtype))
    out = _joined(pieces)
    return out.reshape(*out.shape[:-1], *at.shape)


def rows(parts: Sequence[Array]) -> list[Array]:
    """Parts [C, ..., n] of a compressed Jacobian as those of its rows, one after the other."""
    count = parts[0].shape[0]
    if count * len(parts) <= MAX_SLICES:
        return [part[c] for c in range(count) for part in parts]
    joined = jnp.moveaxis(_joined(parts), 0, -2)
    return [joined.reshape(*joined.shape[:-2], -1)]


def by_step(rows: Array) -> list[Array] | Array:
    """Rows [C, W, ...] of a compressed Jacobian, as a loop over W takes them."""
    return list(rows) if len(rows) <= MAX_SLICES else jnp.moveaxis(rows, 0, 1)


def weighted(parts: Sequence[Array], index: Index, rows: Sequence[Array] | Array) -> Array:
    """`sum_c times(x[..., index.at[c]], rows[c])`, where `parts` side by side are x."""
    if len(rows) > MAX_SLICES:
        return times(take(parts, index), jnp.moveaxis(jnp.asarray(rows), 0, -2)).sum(-2)
    terms = [times(take(parts, at), row) for at, row in zip(index.rows(), rows, strict=True)]
    return sum(terms[1:], terms[0])


def columns(index: Index, parts: Sequence[Array]) -> list[Index]:
    """The columns of an index that stand for each of some parts."""
    bounds = np.cumsum([0, *(part.shape[-1] for part in parts)])
    return [
        Index(index.at[:, a:b], None if index.mask is None else index.mask[:, a:b])
        for a, b in itertools.pairwise(bounds)
    ]


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def of_each_example(a: Array, fresh: Array) -> Array:
    """An array [B, ...], or [1, ...] that a batch shares, as [B, ...]; spread over devices as `fresh` [B] is."""
    return a + zeros_over(fresh, a.shape[1:], a.dtype)


def zeros_over(lead: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Zeros of `lead.shape + shape`, spread over devices as `lead` is."""
    zero = jnp.zeros_like(lead, dtype).reshape(*lead.shape, *[1] * len(shape))
    return jnp.broadcast_to(zero, (*lead.shape, *shape))
