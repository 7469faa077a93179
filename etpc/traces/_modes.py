"""The leading modes of a sum of factor pairs, from two Gram matrices."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Inexact

ROUNDS = 2
"""Of the iteration. The first vectors are the modes that were kept the last time, so few are enough: the error
stays within 1 % of that of the best modes."""

BLOCK = 4
"""So many vectors are made orthonormal in code that is written out; more than these, block by block."""


def leading(
    of_a: Inexact[Array, "*n Q Q"], of_b: Inexact[Array, "*n Q Q"], rank: int
) -> Inexact[Array, "*n Q R"]:
    """Coordinates `c` of orthonormal vectors `A c` that span the leading left modes of `A B^T`.

    `of_a` is `A^H A`, with ones on its diagonal or zeros; `of_b` is `B^T B*`. Where there are fewer
    than R modes, the rest of `c` is zero.
    """
    pairs = of_a.shape[-1]
    size = jnp.trace(of_b, axis1=-2, axis2=-1).real[..., None, None]
    of_b = of_b / jnp.where(size > 0, size, 1)
    power = of_b @ of_a
    # where pairs depend on each other, coordinates must not grow without bound
    eps = jnp.finfo(of_a.dtype).eps
    gram = of_a + jnp.broadcast_to(jnp.asarray(eps * pairs * np.eye(pairs), of_a.dtype), of_a.shape)

    def again(c, given):
        onward, least = given
        return orthonormal(jnp.where(onward, power @ c, c), gram, least), None

    begin = of_b @ jnp.asarray(_start(pairs, rank), of_a.dtype)
    # On the way no mode is lost that is small. The last time the vectors are orthonormal but for rounding:
    # one of which little is left was nothing else, and no projection is right with it.
    # A loop, as this is most of what is compiled.
    onward = np.array([False, *[True] * ROUNDS, False])
    least = jnp.asarray([*[eps**2] * (ROUNDS + 1), eps**0.5], size.dtype)
    return lax.scan(again, begin, (onward, least))[0]


def _start(pairs: int, rank: int) -> np.ndarray:
    """The modes that were kept, which come first, and a little of every new pair."""
    start = np.random.default_rng(0).standard_normal((pairs, rank)) / np.sqrt(pairs)
    start[: min(rank, pairs)] += np.eye(min(rank, pairs), rank)
    return start


def orthonormal(
    c: Inexact[Array, "*n Q R"], gram: Inexact[Array, "*n Q Q"], least: Any
) -> Inexact[Array, "*n Q R"]:
    """The columns of `c` made orthonormal in the inner product `gram`; zero where they depend.

    Gram-Schmidt on columns of length one. One depends if no more than `least` of its squared length
    is left.
    """
    c, image = _of_length_one(c, gram @ c, jnp.finfo(c.dtype).eps ** 2)
    count = c.shape[-1]
    if count <= BLOCK:
        return _block(c, image, least)[0]
    c, image = (jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, -count % BLOCK)]) for a in (c, image))
    numbers = jnp.arange(c.shape[-1])

    def block(k, now):
        begin, (c, image) = k * BLOCK, now
        own = lambda a: lax.dynamic_slice_in_dim(a, begin, BLOCK, -1)
        done, its = _block(own(c), own(image), least)
        share = done.conj().swapaxes(-1, -2) @ image
        share = jnp.where(numbers >= begin + BLOCK, share, 0)  # of those that follow
        put = lambda a, new: lax.dynamic_update_slice_in_dim(a - new @ share, new, begin, -1)
        return put(c, done), put(image, its)

    return lax.fori_loop(0, c.shape[-1] // BLOCK, block, (c, image))[0][..., :count]


def _block(c: Array, image: Array, least: Any) -> tuple[Array, Array]:
    """Few columns, written out, and their images."""
    done = []
    for _ in range(c.shape[-1]):
        one, its = _of_length_one(c[..., :1], image[..., :1], least)
        done.append((one, its))
        share = jnp.sum(one.conj() * image[..., 1:], -2, keepdims=True)
        c, image = c[..., 1:] - one * share, image[..., 1:] - its * share
    return jnp.concatenate([a for a, _ in done], -1), jnp.concatenate([b for _, b in done], -1)


def _of_length_one(c: Array, image: Array, least: Any) -> tuple[Array, Array]:
    """Vectors and their images, scaled; zero where the squared length is no more than the least."""
    square = jnp.sum(c.conj() * image, -2, keepdims=True).real
    some = square > least
    scale = jnp.where(some, lax.rsqrt(jnp.where(some, square, 1)), 0)
    return c * scale, image * scale


__all__ = ["leading"]
