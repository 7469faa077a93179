"""Products with transitions among the states of blocks.

A transition is an array [..., P, o]: a number for each pair of places of the plan's `Pairs`, for
each of o outputs, or for all at once where o is 1.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Inexact

from ..plan import Pairs

UNROLLED = 8
"""Sums of up to this many terms are written out."""


def identity(pairs: Pairs, dtype) -> Inexact[Array, "P 1"]:
    """The transition that changes nothing."""
    return jnp.asarray(pairs.after == pairs.before, dtype)[:, None]


def compose(
    pairs: Pairs, later: Inexact[Array, "... P o"], earlier: Inexact[Array, "... P O"]
) -> Array:
    """The product of two transitions."""
    m = pairs.m
    if not pairs.dense:
        first, second, exists = pairs.products
        return _sum(later, first, earlier, second, exists)
    later, earlier = _square(later, m), _square(earlier, m)
    if m <= UNROLLED:
        terms = [later[..., :, c, None, :] * earlier[..., None, c, :, :] for c in range(m)]
        out = sum(terms[1:], terms[0])
    elif later.shape[-1] == 1 and earlier.shape[-1] == 1:
        out = (later[..., 0] @ earlier[..., 0])[..., None]
    else:
        later, earlier = jnp.broadcast_arrays(later, earlier)
        out = jnp.einsum("...aco,...cbo->...abo", later, earlier)
    return out.reshape(*out.shape[:-3], m * m, out.shape[-1])


def apply(
    pairs: Pairs, transition: Inexact[Array, "... P o"], block: Inexact[Array, "... m O"]
) -> Array:
    """A transition on the block states of each output."""
    m = pairs.m
    if not pairs.dense:
        which, exists = pairs.into
        return _sum(transition, which, block, pairs.before[which], exists)
    square = _square(transition, m)
    if m <= UNROLLED:
        terms = [square[..., :, c, :] * block[..., None, c, :] for c in range(m)]
        return sum(terms[1:], terms[0])
    if square.shape[-1] == 1:
        return square[..., 0] @ block
    return jnp.einsum("...aco,...co->...ao", square, block)


def apply_back(
    pairs: Pairs, transition: Inexact[Array, "... P o"], block: Inexact[Array, "... m O"]
) -> Array:
    """The transpose of a transition on credit of the block states of each output."""
    m = pairs.m
    if not pairs.dense:
        which, exists = pairs.out_of
        return _sum(transition, which, block, pairs.after[which], exists)
    back = jnp.swapaxes(_square(transition, m), -3, -2)
    return apply(pairs, back.reshape(transition.shape), block)


def _square(transition: Array, m: int) -> Array:
    return transition.reshape(*transition.shape[:-2], m, m, transition.shape[-1])


def _sum(
    left: Array, left_at: np.ndarray, right: Array, right_at: np.ndarray, exists: np.ndarray
) -> Array:
    """`out[n] = sum_k left[left_at[n, k]] right[right_at[n, k]]` over the terms that exist."""
    count, terms = exists.shape
    if terms <= UNROLLED:
        parts = []
        for k in range(terms):
            part = left[..., left_at[:, k], :] * right[..., right_at[:, k], :]
            if not exists[:, k].all():
                part = jnp.where(jnp.asarray(exists[:, k])[:, None], part, 0)
            parts.append(part)
        return sum(parts[1:], parts[0])
    owner = np.broadcast_to(np.arange(count)[:, None], exists.shape)[exists]
    term = left[..., left_at[exists], :] * right[..., right_at[exists], :]
    zero = jnp.zeros((*term.shape[:-2], count, term.shape[-1]), term.dtype)
    return zero.at[..., owner, :].add(term, indices_are_sorted=True)


__all__ = ["apply", "apply_back", "compose", "identity"]
