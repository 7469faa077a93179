"""Static reads of the last axis of an array that is given in parts, as slices where they suffice."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..plan._blocks import Index

MAX_SLICES = 8


def take(parts: Sequence[Array], index: Index) -> Array:
    """`x[..., index.at]`, where `parts` side by side are x; zero where the index has no entry."""
    at = index.at
    flat = at.reshape(-1)
    bounds = np.cumsum([0, *(part.shape[-1] for part in parts)])
    part = np.searchsorted(bounds, flat, side="right") - 1
    breaks = np.flatnonzero((np.diff(flat) != 1) | (np.diff(part) != 0)) + 1
    if flat.size == 0 or breaks.size >= MAX_SLICES:
        out = _joined(parts)[..., flat]
    else:
        pieces = []
        for run in np.split(np.arange(flat.size), breaks):
            number = int(part[run[0]])
            start = int(flat[run[0]] - bounds[number])
            pieces.append(parts[number][..., start : start + run.size])
        out = _joined(pieces)
    out = out.reshape(*out.shape[:-1], *at.shape)
    if index.mask is not None:
        out = jnp.where(jnp.asarray(index.mask), out, jnp.zeros((), out.dtype))
    return out


def rows(parts: Sequence[Array]) -> list[Array]:
    """Parts [..., C, n] of a compressed Jacobian as those of its rows, one after the other."""
    count = parts[0].shape[-2]
    if count * len(parts) <= MAX_SLICES:
        return [part[..., c, :] for c in range(count) for part in parts]
    whole = _joined(parts)
    return [whole.reshape(*whole.shape[:-2], -1)]


def columns(index: Index, parts: Sequence[Array]) -> list[Index]:
    """The columns of an index that stand for each of some parts."""
    bounds = np.cumsum([0, *(part.shape[-1] for part in parts)])
    return [
        Index(index.at[:, a:b], None if index.mask is None else index.mask[:, a:b])
        for a, b in itertools.pairwise(bounds)
    ]


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def zeros_over(lead: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Zeros of `lead.shape + shape`, spread over devices as `lead` is."""
    zero = jnp.zeros_like(lead, dtype).reshape(*lead.shape, *[1] * len(shape))
    return jnp.broadcast_to(zero, (*lead.shape, *shape))
