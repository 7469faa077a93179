"""Numbers in bfloat16, held as their bits, with arithmetic in float32.

XLA's CPU back end has no operation on bfloat16: it reads a slice of an array in a loop from a copy of the whole in
float32. Bits are integers, which are cut and written as they are, and become numbers in the loop that computes with
them. So a trace takes half the memory also while it is moved.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

BITS = jnp.uint16
"""The dtype of an array that holds them."""


def numbers(array: Array) -> Array:
    """The numbers that bits mean, in float32; any other array as it is."""
    if array.dtype != BITS:
        return array
    high = lax.shift_left(array.astype(jnp.uint32), jnp.uint32(16))
    return lax.bitcast_convert_type(high, jnp.float32)


def written(array: Array, dtype: Any) -> Array:
    """Sums in the dtype that they are carried in; as bits, rounded to the nearest number, ties to even."""
    if dtype != BITS:
        return array
    if array.dtype != jnp.float32:
        limits = jnp.finfo(jnp.bfloat16)
        array = lax.reduce_precision(array, limits.nexp, limits.nmant).astype(jnp.float32)
    bits = lax.bitcast_convert_type(array, jnp.uint32)
    last_bit = lax.shift_right_logical(bits, jnp.uint32(16)) & 1
    rounding = jnp.where(
        jnp.isnan(array), jnp.uint32(0), last_bit + 0x7FFF
    )  # a carry would end NaN
    return lax.shift_right_logical(bits + rounding, jnp.uint32(16)).astype(BITS)


__all__ = ["BITS", "numbers", "written"]
