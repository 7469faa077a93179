"""Passes over a trace in pieces, against NumPy on the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import etpc
import etpc.emit._pieces as pieces
from etpc.emit._pieces import over_examples, overwrite, read_and_overwrite, small, zero_after

SHAPE = (3, 7, 5, 11)
DTYPES = ["float32", "float64", "complex64", "complex128"]
PIECE = pytest.mark.parametrize("piece", [1, 2000, 1 << 22])
"""Bytes, of a trace of 1155 entries: as many pieces as there may be, some and a rest, and one."""


def draw(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.normal(size=shape)
    return values.astype(dtype)


def tolerance(dtype):
    return 100 * np.finfo(dtype).eps


def shape_of_signal(axis):
    """As the trace, or of length one along an axis, which may be the one that is cut."""
    return [SHAPE, (3, 1, 5, 11), tuple(1 if n == axis else s for n, s in enumerate(SHAPE))]


@PIECE
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_sum_over_examples(axis, dtype, piece, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", piece)
    trace = draw(SHAPE, dtype)
    for shape in shape_of_signal(axis):
        signal = draw(shape, dtype, seed=1)
        found = jax.jit(lambda t, s: over_examples(t, axis, s))(trace, signal)
        assert found.dtype == trace.dtype
        np.testing.assert_allclose(
            found, (signal * trace).sum(0), rtol=tolerance(dtype), atol=tolerance(dtype)
        )


@PIECE
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_overwrite(axis, dtype, piece, monkeypatch):
    """What is cut along need not be the same axis of another array, nor longer than one there."""
    monkeypatch.setattr(pieces, "PIECE", piece)
    trace, gain = draw(SHAPE, dtype), draw((SHAPE[axis], 2), dtype, seed=1)
    shift = draw((1, 2), dtype, seed=2)

    axes = [1] * len(SHAPE)
    axes[axis] = -1

    def update(part, cut):
        gain_here, shift_here = cut(jnp.asarray(gain), 0), cut(jnp.asarray(shift), 0)
        return gain_here[:, 0].reshape(axes) * part + shift_here[:, 1].reshape((1,) * 4)

    wanted = gain[:, 0].reshape(axes) * trace + shift[0, 1]
    close = dict(rtol=tolerance(dtype), atol=tolerance(dtype))
    found = jax.jit(lambda t: overwrite(t, axis, update))(trace)
    assert found.dtype == trace.dtype
    np.testing.assert_allclose(found, wanted, **close)
    for shape in shape_of_signal(axis) if axis else []:
        signal = draw(shape, dtype, seed=3)
        both = jax.jit(lambda t, s: read_and_overwrite(t, axis, s, update))
        found, read = both(trace, signal)
        np.testing.assert_allclose(found, wanted, **close)
        np.testing.assert_allclose(read, (signal * trace).sum(0), **close)


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("piece", [200, 1 << 22])
def test_what_is_no_number_stays_in_its_example(axis, piece, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", piece)
    trace = draw(SHAPE, "float64")
    trace[1] = [[[np.nan]]]
    trace[1, 0] = np.inf
    found = jax.jit(lambda t: overwrite(t, axis, lambda part, _: 0.5 * part + 1))(trace)
    np.testing.assert_array_equal(found[0::2], 0.5 * trace[0::2] + 1)
    assert not np.isfinite(found[1]).any()


def test_every_piece_is_some_share(monkeypatch):
    """At most sixteen whole ones and a rest, each within the limit where that is more."""
    for piece in (1, 100, 1000, 5000, 10000):
        monkeypatch.setattr(pieces, "PIECE", piece)
        for places in (1, 2, 15, 16, 17, 31, 100, 257):
            trace = jnp.zeros((2, places, 3))
            size, whole = pieces._pieces(trace, 1)
            assert 1 <= size <= places
            assert places - size < size * whole <= places
            assert whole <= 16
            row = trace.nbytes // places
            assert size * row <= max(piece, trace.nbytes / 16) + row
            assert small(trace) == (trace.nbytes <= piece)
            assert whole == 1 or not small(trace)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("value", [0, 1, -1, np.nan, np.inf, -np.inf])
def test_zero_after_anything(value, dtype):
    for shape in ((), (1,), (2, 3)):
        found = jax.jit(zero_after)(jnp.full(shape, value, dtype))
        assert found.shape == ()
        assert found.dtype == jnp.int32
        assert found == 0


def test_zero_after_is_not_seen_through():
    """XLA would drop what the order of reading and writing hangs on."""
    text = jax.jit(zero_after).lower(jnp.ones(3)).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert "parameter(0)" in entry
    assert "constant(0)" not in entry.splitlines()[-2]
    assert "fusion(" in entry or "minimum(" in entry


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape))


def sparse_matrix(size):
    at = np.stack([np.repeat(np.arange(size), 3), np.arange(3 * size) * 5 % size], 1)
    return sparse.BCOO((0.3 * normal(3 * size), jnp.asarray(at)), shape=(size, size))


def heads(w, h):
    """One matrix for each of some groups; there are more groups than inputs, or fewer."""
    return jnp.einsum("gij,gj->gi", w, h.reshape(w.shape[0], -1)).reshape(-1)


def convolved(w, h):
    """The groups share a weight."""
    return jax.lax.conv_general_dilated(h[None, None], w, (1,), "SAME")[0, 0]


LAYERS = {
    "dense": (lambda w, h: w @ h, 0.3 * normal(12, 12)),
    "more inputs than groups": (heads, 0.3 * normal(2, 6, 6)),
    "more groups than inputs": (heads, 0.3 * normal(6, 2, 2)),
    "convolution": (convolved, 0.3 * normal(1, 1, 3)),
    "sparse": (lambda w, h: w @ h, sparse_matrix(12)),
    "element-wise": (lambda w, h: w * h, normal(12)),
}


@pytest.mark.parametrize("states", [1, 2])
@pytest.mark.parametrize("layer", LAYERS)
def test_programs_in_pieces(layer, states, monkeypatch):
    function, weight = LAYERS[layer]

    def step(weight, x, state):
        h, *slow = state
        h = 0.5 * h + jnp.tanh(function(weight, h) + x) - (0.2 * slow[0] if slow else 0)
        return h, (h, *(0.9 * s + 0.1 * h for s in slow))

    xs = normal(6, 3, 12)
    zero = (jnp.zeros(12),) * states

    def gradient():
        program = etpc.compile(
            weight, etpc.D_RTRL(window=2), inputs=xs[0, 0], state=zero, step=step
        )
        run = program.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2))
        (_, carry), grads = run(weight, xs, 0 * xs, program.init(3))
        return jax.tree.leaves((grads, carry.traces))

    whole = gradient()
    monkeypatch.setattr(pieces, "PIECE", 1 << 8)
    for one, other in zip(gradient(), whole, strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
