"""The product of two derivatives."""

import jax.numpy as jnp
from jax import Array, lax


def times(later: Array, earlier: Array) -> Array:
    """`later * earlier`, element by element, and zero where `earlier` is zero: a derivative may be infinite or NaN
    where no influence arrives, as that of a norm at zero behind a relu. Backpropagation does not see it either."""
    product = later * earlier
    absent = lax.eq(earlier, lax.full_like(earlier, 0))
    if absent.shape != product.shape:
        absent = jnp.broadcast_to(absent, product.shape)
    # faster to trace than `jnp.where`
    return lax.select(absent, lax.full_like(product, 0), product)
