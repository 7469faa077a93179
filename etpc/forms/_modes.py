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

SMALL = 16
"""Up to so many pairs, products are sums over arrays whose last axis is n: XLA calls a library for each small matrix
of a batched product on CPUs, which takes up to 15 times as long."""

Product = Callable[[Inexact[Array, "Q R n"]], Inexact[Array, "Q R n"]]


def leading(
    gram_a: Inexact[Array, "n Q Q"], gram_b: Inexact[Array, "n Q Q"], rank: int
) -> tuple[Inexact[Array, "Q R n"], Inexact[Array, "Q R n"]]:
    """Coordinates `c` of orthonormal vectors `A c` that span the leading left modes of `A B^T`, for each of n; and
    `A^H A c`.

    `gram_a` is `A^H A`, with ones on its diagonal or zeros; `gram_b` is `B^T B*`. Where there are fewer
    than R modes, the rest of `c` is zero.
    """
    pairs = gram_a.shape[-1]
    size = diagonal(gram_b).sum(-1)[:, None, None]
    gram_b = gram_b / jnp.where(size > 0, size, 1)  # 0 / 0 would be NaN
    # where pairs depend on each other, coordinates must not grow without bound
    eps = jnp.finfo(gram_a.dtype).eps
    more = jnp.asarray(eps * pairs, size.dtype)
    gram = gram_a + more * np.eye(pairs, dtype=size.dtype)[None]
    times_a, times_b = _product(gram), _product(gram_b)

    def again(c: tuple[Array, Array], step: tuple[Array, Array]) -> tuple[Any, None]:
        multiply, tolerance = step
        vectors, images = c
        vectors = jnp.where(multiply, times_b(images), vectors)
        return orthonormal(vectors, times_a(vectors), tolerance), None

    kept, new = (jnp.asarray(a, gram_a.dtype)[..., None] for a in _start(pairs, rank))
    # by the number of pairs that are not zero: steps whose data is zero change nothing
    present = diagonal(gram_a).sum(-1)
    start = kept + new * lax.rsqrt(jnp.maximum(present, 1))[None, None]
    # The first rounds lose no mode for being small. In the last, the vectors must be orthonormal up to
    # rounding: one of which little is left was rounding alone, and a projection onto it would be wrong.
    # A loop, as this is most of what is compiled.
    multiply = jnp.array([True, *[True] * ROUNDS, False])
    tolerance = jnp.asarray([*[eps**2] * (ROUNDS + 1), eps**0.5], size.dtype)
    vectors = lax.scan(again, (start, start), (multiply, tolerance))[0][0]
    return vectors, times_a(vectors) - more * vectors


def diagonal(gram: Inexact[Array, "n Q Q"]) -> Inexact[Array, "n Q"]:
    """The diagonal of Hermitian matrices: real."""
    # A mask is a constant, and the sum one fusion; `jnp.diagonal` is a gather, with a transpose and a copy.
    return jnp.sum(jnp.where(np.eye(gram.shape[-1], dtype=bool)[None], gram.real, 0), -1)


def combined(
    weights: Inexact[Array, "Q R n"], rows: Inexact[Array, "n Q X"]
) -> Inexact[Array, "n R X"]:
    """R sums of the rows of each of n."""
    if len(weights) > SMALL:
        return jnp.einsum("qrn,nqx->nrx", weights, rows)
    return jnp.sum(jnp.moveaxis(weights, -1, 0)[..., None] * rows[:, :, None], 1)


def _start(pairs: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the iteration starts: at the modes that were kept, which come first, with a little of every pair."""
    return np.eye(pairs, rank), np.random.default_rng(0).standard_normal((pairs, rank))


def _product(gram: Inexact[Array, "n Q Q"]) -> Product:
    """The product with each Hermitian matrix."""
    if gram.shape[-1] > SMALL:
        transposed = gram.conj()
        return lambda c: (c.T @ transposed).T
    gram = jnp.moveaxis(gram, 0, -1)
    return lambda c: jnp.sum(gram[:, :, None] * c[None], 1)


def orthonormal(
    c: Inexact[Array, "Q R n"], image: Inexact[Array, "Q R n"], tolerance: Any
) -> tuple[Inexact[Array, "Q R n"], Inexact[Array, "Q R n"]]:
    """The columns of `c` made orthonormal in an inner product, and their images; zero where they are dependent.

    An image is the product of the matrix of the inner product with a column. This is Gram-Schmidt on columns of length
    one. A column is dependent on the earlier ones if no more than `tolerance` of its squared length is left.
    """
    c, image = _of_length_one(c, image, jnp.finfo(c.dtype).eps ** 2)
    count = c.shape[1]
    if count <= BLOCK:
        return _block(c, image, tolerance)
    # Whole blocks, as a dynamic slice that does not fit begins earlier than it is told.
    c, image = (jnp.pad(a, [(0, 0), (0, -count % BLOCK), (0, 0)]) for a in (c, image))
    numbers = np.arange(c.shape[1])[None, :, None]

    def block(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        start, (c, image) = k * BLOCK, carry
        block_of: Callable[[Array], Array] = lambda a: lax.dynamic_slice_in_dim(a, start, BLOCK, 1)
        basis, basis_image = _block(block_of(c), block_of(image), tolerance)
        projection = jnp.sum(basis.conj()[:, :, None] * image[:, None], 0)
        projection = jnp.where(numbers >= start + BLOCK, projection, 0)  # of those that follow
        updated: Callable[[Array, Array], Array] = lambda a, new: lax.dynamic_update_slice_in_dim(
            a - jnp.sum(new[:, :, None] * projection[None], 1), new, start, 1
        )
        return updated(c, basis), updated(image, basis_image)

    c, image = lax.fori_loop(0, c.shape[1] // BLOCK, block, (c, image))
    return c[:, :count], image[:, :count]


def _block(c: Array, image: Array, tolerance: Any) -> tuple[Array, Array]:
    """`orthonormal` for few columns, one after the other."""
    numbers = np.arange(c.shape[1])[None, :, None]

    def column(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        c, image = carry
        column_of: Callable[[Array], Array] = lambda a: lax.dynamic_slice_in_dim(a, k, 1, 1)
        vector, vector_image = _of_length_one(column_of(c), column_of(image), tolerance)
        projection = jnp.sum(vector.conj() * image, 0, keepdims=True)

        def updated(columns: Array, new: Array) -> Array:
            columns = jnp.where(numbers > k, columns - new * projection, columns)
            return jnp.where(numbers == k, new, columns)

        return updated(c, vector), updated(image, vector_image)

    return lax.fori_loop(0, c.shape[1], column, (c, image))


def _of_length_one(c: Array, image: Array, tolerance: Any) -> tuple[Array, Array]:
    """Vectors and their images, scaled to length one; zero where the squared length is no more than the tolerance."""
    square = jnp.sum((c.conj() * image).real, 0, keepdims=True)
    independent = square > tolerance
    scale = jnp.where(independent, lax.rsqrt(jnp.where(independent, square, 1)), 0)
    return c * scale, image * scale
