"""The leading modes of a sum of factor pairs, from two Gram matrices."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Inexact

ROUNDS = 2
"""The rounds of the iteration. It starts from the modes that were kept the last time, so few are enough: the error
stays within 1 % of that of the best modes."""

BLOCK = 4
"""Up to so many vectors are made orthonormal one after the other; more of them, block by block."""


def leading(
    gram_a: Inexact[Array, "*n Q Q"], gram_b: Inexact[Array, "*n Q Q"], rank: int
) -> Inexact[Array, "*n Q R"]:
    """Coordinates `c` of orthonormal vectors `A c` that span the leading left modes of `A B^T`.

    `gram_a` is `A^H A`, with ones on its diagonal or zeros; `gram_b` is `B^T B*`. Where there are fewer
    than R modes, the rest of `c` is zero.
    """
    pairs = gram_a.shape[-1]
    size = jnp.trace(gram_b, axis1=-2, axis2=-1).real[..., None, None]
    gram_b = gram_b / jnp.where(size > 0, size, 1)
    power = gram_b @ gram_a
    # where pairs depend on each other, coordinates must not grow without bound
    eps = jnp.finfo(gram_a.dtype).eps
    gram = gram_a + jnp.broadcast_to(
        jnp.asarray(eps * pairs * np.eye(pairs), gram_a.dtype), gram_a.shape
    )

    def again(c: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        multiply, tolerance = step
        return orthonormal(jnp.where(multiply, power @ c, c), gram, tolerance), None

    start = gram_b @ jnp.asarray(_start(pairs, rank), gram_a.dtype)
    # The first rounds lose no mode for being small. In the last, the vectors must be orthonormal up to
    # rounding: one of which little is left was rounding alone, and a projection onto it would be wrong.
    # A loop, as this is most of what is compiled.
    multiply = jnp.array([False, *[True] * ROUNDS, False])
    tolerance = jnp.asarray([*[eps**2] * (ROUNDS + 1), eps**0.5], size.dtype)
    return lax.scan(again, start, (multiply, tolerance))[0]


def _start(pairs: int, rank: int) -> np.ndarray:
    """Where the iteration starts: at the modes that were kept, which come first, with a little of every new pair."""
    start = np.random.default_rng(0).standard_normal((pairs, rank)) / np.sqrt(pairs)
    start[: min(rank, pairs)] += np.eye(min(rank, pairs), rank)
    return start


def orthonormal(
    c: Inexact[Array, "*n Q R"], gram: Inexact[Array, "*n Q Q"], tolerance: Any
) -> Inexact[Array, "*n Q R"]:
    """The columns of `c` made orthonormal in the inner product `gram`; zero where they are dependent.

    This is Gram-Schmidt on columns of length one. A column is dependent on the earlier ones if no more than
    `tolerance` of its squared length is left.
    """
    c, image = _of_length_one(c, gram @ c, jnp.finfo(c.dtype).eps ** 2)
    count = c.shape[-1]
    if count <= BLOCK:
        return _block(c, image, tolerance)[0]
    c, image = (jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, -count % BLOCK)]) for a in (c, image))
    numbers = jnp.arange(c.shape[-1])

    def block(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        start, (c, image) = k * BLOCK, carry
        block_of: Callable[[Array], Array] = lambda a: lax.dynamic_slice_in_dim(a, start, BLOCK, -1)
        basis, basis_image = _block(block_of(c), block_of(image), tolerance)
        projection = basis.conj().swapaxes(-1, -2) @ image
        projection = jnp.where(numbers >= start + BLOCK, projection, 0)  # of those that follow
        updated: Callable[[Array, Array], Array] = lambda a, new: lax.dynamic_update_slice_in_dim(
            a - new @ projection, new, start, -1
        )
        return updated(c, basis), updated(image, basis_image)

    return lax.fori_loop(0, c.shape[-1] // BLOCK, block, (c, image))[0][..., :count]


def _block(c: Array, image: Array, tolerance: Any) -> tuple[Array, Array]:
    """`orthonormal` for few columns, one after the other; also the images of the result."""
    numbers = jnp.arange(c.shape[-1])

    def column(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        c, image = carry
        column_of: Callable[[Array], Array] = lambda a: lax.dynamic_slice_in_dim(a, k, 1, -1)
        vector, vector_image = _of_length_one(column_of(c), column_of(image), tolerance)
        projection = jnp.sum(vector.conj() * image, -2, keepdims=True)

        def updated(columns: Array, new: Array) -> Array:
            columns = jnp.where(numbers > k, columns - new * projection, columns)
            return jnp.where(numbers == k, new, columns)

        return updated(c, vector), updated(image, vector_image)

    return lax.fori_loop(0, c.shape[-1], column, (c, image))


def _of_length_one(c: Array, image: Array, tolerance: Any) -> tuple[Array, Array]:
    """Vectors and their images, scaled to length one; zero where the squared length is no more than the tolerance."""
    square = jnp.sum(c.conj() * image, -2, keepdims=True).real
    independent = square > tolerance
    scale = jnp.where(independent, lax.rsqrt(jnp.where(independent, square, 1)), 0)
    return c * scale, image * scale


__all__ = ["leading"]
