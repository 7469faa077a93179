"""Orthonormal rows, against those of LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc.rules import orthonormal


def rows(kind: str, count: int, size: int) -> np.ndarray:
    a = np.random.default_rng(0).normal(size=(count, size))
    if kind == "dependent":  # and one of zeros
        a[1], a[2], a[-1] = a[0], -3 * a[0], 0
    elif kind == "nearly dependent":
        a = a[:1] + 1e-5 * a
    elif kind == "of other sizes":
        a *= np.array([1e-30, 1e30, 1e-12, 1.0] * count)[:count, None]
    elif kind == "zero":
        a[:] = 0
    return a


@pytest.mark.parametrize("kind", ["any", "dependent", "nearly dependent", "of other sizes", "zero"])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (4, 4), (12, 128)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.float64, 2e-15)])
def test_product_and_orthogonality(kind, count, size, dtype, tolerance):
    if kind == "dependent" and count < 4:
        pytest.skip("one row depends on none")
    a = jnp.asarray(rows(kind, count, size), dtype)
    basis, triangle = jax.jit(orthonormal)(a)
    assert basis.dtype == triangle.dtype == dtype
    lengths = np.linalg.norm(np.asarray(a, float), axis=1, keepdims=True)
    basis, triangle = np.asarray(basis, float), np.asarray(triangle, float)
    np.testing.assert_allclose(basis @ basis.T, np.eye(count), atol=tolerance)
    product = (triangle / np.where(lengths > 0, lengths, 1)) @ basis
    np.testing.assert_allclose(product, a / np.where(lengths > 0, lengths, 1), atol=5 * tolerance)
    assert np.array_equal(triangle, np.tril(triangle))


def test_is_that_of_lapack():
    """With the signs that LAPACK chooses."""
    a = jnp.asarray(rows("any", 6, 20))
    basis, triangle = orthonormal(a)
    wanted, upper = np.linalg.qr(np.asarray(a).T)
    np.testing.assert_allclose(basis, wanted.T, atol=1e-13)
    np.testing.assert_allclose(triangle, upper.T, atol=1e-13)


def test_many_at_once_and_without_a_custom_call():
    many = jax.random.normal(jax.random.key(0), (3, 4, 10))
    together = jax.jit(jax.vmap(orthonormal))
    for n, (basis, triangle) in enumerate(zip(*together(many), strict=True)):
        for got, want in zip((basis, triangle), orthonormal(many[n]), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-13)
    assert "custom_call" not in together.lower(many).as_text()
