"""Rows made orthonormal, in operations of StableHLO alone: `jnp.linalg.qr` calls a library of one kind of device."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


def orthonormal(rows: Float[Array, "k S"]) -> tuple[Float[Array, "k S"], Float[Array, "k k"]]:
    """`Q` with orthonormal rows, and a lower triangle `L`, so that `rows = L Q`; k is at most S.

    By Householder reflections, which are stable whatever the rows are: where some depend on others or are zero, `Q` is
    filled with directions that are orthogonal to the rest. Each row takes two products with a vector, one after the
    other, so this is for few rows.

    **Source**: Golub and Van Loan, Matrix Computations, 4th edition, algorithms 5.1.1 and 5.2.1.
    """
    count, size = rows.shape
    place = jnp.arange(size)
    # Rows of length about one, as squares of small numbers are zero in float32.
    largest = jnp.max(jnp.abs(rows), 1, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)

    def reflected(a: Float[Array, "k S"], normal: Float[Array, " S"]) -> Float[Array, "k S"]:
        """Along a normal of the squared length two; a normal of zeros leaves all as it is."""
        return a - (a @ normal)[:, None] * normal[None]

    def eliminate(n: Array, before: tuple[Array, Array]) -> tuple[Array, Array]:
        a, normals = before
        rest = jnp.where(place >= n, a[n], 0)
        length, head = jnp.sqrt(jnp.sum(rest**2)), rest[n]
        normal = rest + jnp.where(place == n, jnp.where(head < 0, -length, length), 0)
        half = length * (length + jnp.abs(head))  # of the squared length of the normal
        normal = normal * jnp.where(half > 0, lax.rsqrt(jnp.where(half > 0, half, 1)), 0)
        return reflected(a, normal), normals.at[n].set(normal)

    def restore(n: Array, basis: Float[Array, "k S"]) -> Float[Array, "k S"]:
        return reflected(basis, normals[count - 1 - n])

    with jax.default_matmul_precision("highest"):
        start = rows / largest, jnp.zeros_like(rows)
        a, normals = lax.fori_loop(0, count, eliminate, start)
        basis = lax.fori_loop(0, count, restore, jnp.eye(count, size, dtype=rows.dtype))
    return basis, jnp.tril(a[:, :count]) * largest
