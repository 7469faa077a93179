"""Static reads of the last axis of an array, as slices where the places run on without a gap."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..plan._blocks import Index

MAX_SLICES = 8


def take(x: Array, index: Index) -> Array:
    """`x[..., index.at]`, and zero where the index has no entry."""
    at = index.at
    flat = at.reshape(-1)
    breaks = np.flatnonzero(np.diff(flat) != 1) + 1
    if flat.size == 0 or breaks.size >= MAX_SLICES:
        out = x[..., flat]
    else:
        pieces = [x[..., int(run[0]) : int(run[-1]) + 1] for run in np.split(flat, breaks)]
        out = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, -1)
    out = out.reshape(*x.shape[:-1], *at.shape)
    if index.mask is not None:
        out = jnp.where(jnp.asarray(index.mask), out, jnp.zeros((), out.dtype))
    return out


def zeros_over(lead: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Zeros of `lead.shape + shape`, spread over devices as `lead` is."""
    zero = jnp.zeros_like(lead, dtype).reshape(*lead.shape, *[1] * len(shape))
    return jnp.broadcast_to(zero, (*lead.shape, *shape))
