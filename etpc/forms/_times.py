"""The product of two derivatives.

A derivative may be infinite or NaN where no influence arrives: for example that of a norm at zero, behind a relu
that gives zero. Backpropagation does not see it, as the relu passes nothing on, and a trace must not see it
either. So the product of two derivatives is zero where the earlier one is zero.
"""

import jax.numpy as jnp
from jax import Array, lax


def times(later: Array, earlier: Array) -> Array:
    """`later * earlier`, element by element, and zero where `earlier` is zero."""
    product = later * earlier
    absent = lax.eq(earlier, lax.full_like(earlier, 0))
    if absent.shape != product.shape:
        absent = jnp.broadcast_to(absent, product.shape)
    # faster to trace than `jnp.where`
    return lax.select(absent, lax.full_like(product, 0), product)
