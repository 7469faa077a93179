"""Reads of arrays that are given in parts, as slices or by index, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from etpc.emit import _arrays
from etpc.emit._arrays import by_step, rows_of, take, weighted
from etpc.ir import Index

SIZES = [4, 0, 7, 5]


def parts(*lead, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(*lead, n))) for n in SIZES]


def index(kind, shape, size):
    """Runs that end within a part and beyond it; entries that are absent, single or in runs."""
    rng = np.random.default_rng(len(kind))
    at = rng.integers(size - shape[-1] + 1, size=(*shape[:-1], 1)) + np.arange(shape[-1])
    if kind == "anywhere":
        at = rng.integers(size, size=shape)
    present = np.ones(shape, bool)
    if kind == "some absent":
        present = rng.random(shape) < 0.7
    if kind == "rows absent":
        present[::2] = False
    return Index.of(at, present)


@pytest.mark.parametrize("slices", [0, 6, 1000])
@pytest.mark.parametrize("kind", ["runs", "anywhere", "some absent", "rows absent"])
def test_reads(kind, slices, monkeypatch):
    monkeypatch.setattr(_arrays, "MAX_SLICES", slices)
    given = parts(2, 3)
    whole = np.concatenate(given, -1)
    for shape in [(3, 6), (5, 2), (1, 16), (2, 0)]:
        where = index(kind, shape, whole.shape[-1])
        mask = np.ones(shape) if where.mask is None else where.mask
        found = take(given, where)
        np.testing.assert_array_equal(found, whole[..., where.at] * mask)
        if not shape[1]:
            continue
        factors = np.random.default_rng(1).normal(size=(shape[0], 2, 3, shape[1]))
        wanted = (np.moveaxis(whole[..., where.at] * mask, -2, 0) * factors).sum(0)
        np.testing.assert_allclose(weighted(given, where, jnp.asarray(factors)), wanted, atol=1e-12)


@pytest.mark.parametrize("slices", [0, 1000])
def test_rows_of_colours(slices, monkeypatch):
    monkeypatch.setattr(_arrays, "MAX_SLICES", slices)
    given = parts(3, 2, 4)  # C, W, B
    found = np.concatenate(rows_of(given), -1)
    for c in range(3):
        size = sum(SIZES)
        np.testing.assert_array_equal(
            found[..., c * size : (c + 1) * size], np.concatenate([p[c] for p in given], -1)
        )
    by = by_step(given[0])
    for t in range(2):
        one = [a[t] for a in by] if isinstance(by, list) else by[t]
        np.testing.assert_array_equal(jnp.stack(list(one)), given[0][:, t])
