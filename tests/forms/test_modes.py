"""The leading modes of factor pairs, against a singular value decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc.forms._modes import SMALL, leading, orthonormal

Q, I, O = 12, 9, 20

compiled = jax.jit(leading, static_argnums=2)


def projected(a, b, rank):
    """What is kept of `A B^T`, where the columns of A have length one or zero."""
    of_a, of_b = a.conj().T @ a, b.T @ b.conj()
    found = compiled(jnp.asarray(of_a)[None], jnp.asarray(of_b)[None], rank)
    c, image = (np.asarray(array)[..., 0] for array in found)
    u, eps = a @ c, np.finfo(of_a.dtype).eps
    size = np.abs(of_a).max() * np.abs(c).max()
    np.testing.assert_allclose(image, of_a @ c, rtol=0, atol=10 * Q * eps * size)
    return u, u @ image.conj().T @ b.T


def pairs(kind, dtype, seed=0):
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(I, Q)), draw.normal(size=(O, Q))
    if np.issubdtype(dtype, np.complexfloating):
        a, b = a + 1j * draw.normal(size=(I, Q)), b + 1j * draw.normal(size=(O, Q))
    if kind == "decaying":
        b = b * 0.5 ** np.arange(Q)
    elif kind == "one large mode":
        a, b = a + 30.0, b + 30.0
    elif kind == "repeated inputs":
        a[:, 6:] = a[:, :6]
    elif kind == "spikes":
        a = (a.real > 0.8).astype(a.dtype)
    elif kind == "rank one":
        a[:, 1:] = a[:, :1]
    elif kind == "silent":
        b[:] = 0
    length = np.linalg.norm(a, axis=0)
    return (a / np.where(length > 0, length, 1)).astype(dtype), b.astype(dtype)


KINDS = ["flat", "decaying", "one large mode", "repeated inputs", "spikes", "rank one", "silent"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_little_more_is_lost_than_must_be(kind, rank, dtype):
    lost, least = [], []
    for seed in range(8):
        a, b = pairs(kind, dtype, seed)
        _, kept = projected(a, b, rank)
        s = np.linalg.svd(a @ b.T, compute_uv=False)
        whole = np.linalg.norm(s) or 1.0
        lost.append(np.linalg.norm(a @ b.T - kept) / whole)
        least.append(np.linalg.norm(s[rank:]) / whole)
    rounding = 3e-4 if dtype == np.float32 else 1e-7
    assert np.mean(lost) <= 1.08 * np.mean(least) + rounding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_vectors_are_orthonormal_or_vanish(kind, rank, dtype):
    a, b = pairs(kind, dtype)
    u, _ = projected(a, b, rank)
    assert np.isfinite(u).all()
    size = np.linalg.svd(u, compute_uv=False)
    assert size.max() <= 1 + 1e-3
    if kind in ("flat", "decaying"):
        tolerance = 1e-4 if dtype == np.float32 else 1e-9
        np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=tolerance)


@pytest.mark.parametrize("kind", ["modes that decay fast", "fewer modes than vectors"])
@pytest.mark.parametrize("rank", [8, 16, 24])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_of_rounding_spoil_nothing(kind, rank, dtype):
    """What Gram-Schmidt leaves of a vector that depends on others is rounding, and is along them again."""
    inputs, outputs, count = 30, 25, rank + 6
    for seed in range(12):
        draw = np.random.default_rng(seed)
        a, b = draw.normal(size=(inputs, count)), draw.normal(size=(outputs, count))
        if kind == "modes that decay fast":
            b = b * 0.01 ** np.arange(count)
        else:
            a = draw.normal(size=(inputs, rank // 2)) @ draw.normal(size=(rank // 2, count))
        a, b = (a / np.linalg.norm(a, axis=0)).astype(dtype), b.astype(dtype)
        u, kept = projected(a, b, rank)
        s = np.linalg.svd(a @ b.T, compute_uv=False)
        rounding = 3e-4 if dtype == np.float32 else 1e-7
        assert np.linalg.svd(u, compute_uv=False).max() <= 1 + rounding
        lost = np.linalg.norm(a @ b.T - kept)
        assert lost <= 1.08 * np.linalg.norm(s[rank:]) + rounding * np.linalg.norm(s)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 8, 20])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_orthonormal_is_the_qr_decomposition(count, dtype):
    draw = np.random.default_rng(count)
    of, inner = (2, 30, 24), (2, 24, count)
    a, c = draw.normal(size=of).astype(dtype), draw.normal(size=inner).astype(dtype)
    if dtype is np.complex128:
        a, c = a + 1j * draw.normal(size=of), c + 1j * draw.normal(size=inner)
    image = a.conj().swapaxes(-1, -2) @ a @ c
    q, r = np.linalg.qr(a @ c)
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1).real)[:, None]
    last = lambda of: jnp.moveaxis(jnp.asarray(of), 0, -1)
    found, images = orthonormal(last(c), last(image), 1e-16)
    np.testing.assert_allclose(a @ np.moveaxis(found, -1, 0), q, atol=1e-11)
    want = a.conj().swapaxes(-1, -2) @ q
    np.testing.assert_allclose(np.moveaxis(images, -1, 0), want, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("count", [Q, SMALL + 3])
def test_each_of_many_has_modes_of_its_own(count, dtype):
    """With few pairs and with many, whose products are computed in two ways."""
    draw = np.random.default_rng(0)
    grams = []
    for _ in range(2):
        a = draw.normal(size=(5, count, I)).astype(dtype)
        if dtype is np.complex128:
            a = a + 1j * draw.normal(size=a.shape)
        a = a / np.linalg.norm(a, axis=-1, keepdims=True)
        grams.append(jnp.asarray(a.conj() @ a.swapaxes(-1, -2)))
    together, _ = compiled(*grams, 5)
    for n in range(5):
        alone, _ = compiled(*(gram[n : n + 1] for gram in grams), 5)
        np.testing.assert_allclose(together[..., n], alone[..., 0], atol=1e-9)
