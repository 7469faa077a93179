"""`nn.init` for layers of Equinox and ours, and where names of layers have gone."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.nn.online import KEY

O, I = 300, 400
TRUNCATION = 0.87962566103423978  # the standard deviation of a normal that is cut at 2


def linear(size=(O, I), **more):
    return eqx.nn.Linear(size[1], size[0], key=KEY, **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "variance", "bound"),
    [
        ("kaiming_normal", 2 / I, 2 * math.sqrt(2 / I) / TRUNCATION),
        ("lecun_normal", 1 / I, 2 * math.sqrt(1 / I) / TRUNCATION),
        ("xavier_normal", 2 / (O + I), 2 * math.sqrt(2 / (O + I)) / TRUNCATION),
        ("kaiming_uniform", 2 / I, math.sqrt(6 / I)),
        ("xavier_uniform", 2 / (O + I), math.sqrt(6 / (O + I))),
        ("normal", 1.0, math.inf),
        ("zeros", 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_variance_and_range(scheme, variance, bound, gain) -> None:
    drawn = nn.init(linear(), scheme, KEY, gain=gain)
    assert jax.tree.structure(drawn) == jax.tree.structure(linear())
    weight = np.asarray(drawn.weight) / gain
    np.testing.assert_allclose(weight.var(), variance, rtol=0.03)
    np.testing.assert_allclose(weight.mean(), 0.0, atol=4 * math.sqrt(variance / weight.size))
    assert np.abs(weight).max() <= bound * (1 + 1e-6)
    if math.isfinite(bound):
        assert np.abs(weight).max() >= 0.97 * bound
    np.testing.assert_array_equal(drawn.bias, np.zeros(O))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_orthogonal(shape) -> None:
    weight = np.asarray(nn.init(linear(shape), "orthogonal", KEY, gain=2.0).weight)
    short = weight if shape[0] <= shape[1] else weight.T
    np.testing.assert_allclose(short @ short.T, 4 * np.eye(len(short)), atol=1e-12)


@pytest.mark.slow
def test_convolution() -> None:
    conv = eqx.nn.Conv2d(8, 400, 5, groups=2, key=KEY)
    drawn = nn.init(conv, "kaiming_normal", KEY)
    np.testing.assert_allclose(jnp.var(drawn.weight), 2 / (4 * 25), rtol=0.03)
    kernels = nn.init(eqx.nn.Conv1d(4, 6, 3, key=KEY), "orthogonal", KEY).weight.reshape(6, -1)
    np.testing.assert_allclose(kernels @ kernels.T, np.eye(6), atol=1e-12)
    assert not drawn.bias.any()


def test_a_function() -> None:
    shapes = []

    def ones(key, shape, dtype):
        shapes.append(shape)
        return jnp.ones(shape, dtype)

    cell = nn.init(eqx.nn.LSTMCell(3, 4, dtype=jnp.float32, key=KEY), ones, KEY, gain=0.5)
    assert shapes == [(16, 3), (16, 4)]
    assert cell.weight_hh.dtype == jnp.float32
    np.testing.assert_array_equal(cell.weight_hh, np.full((16, 4), 0.5))


@pytest.mark.slow
def test_a_model_of_many_layers() -> None:
    """Weights are drawn with keys of their own; what is neither weight nor bias stays."""
    model = nn.Sequential(
        [
            eqx.nn.GRUCell(3, 4, key=KEY),
            eqx.nn.LayerNorm(4),
            eqx.nn.Linear(4, 4, key=KEY),
            eqx.tree_at(lambda c: c.bias, nn.IndRNN(4, 4, key=KEY), jnp.ones(4)),
            nn.LIF((2, 2), tau=jnp.full((2, 2), 9.0)),
            nn.LeakyRateReadout(4, 2, key=KEY),
        ]
    )
    drawn = nn.init(model, "normal", KEY)
    gru, norm, dense, cell, lif, readout = drawn.layers
    weights = (gru.weight_ih, gru.weight_hh, dense.weight, cell.weight_ih, readout.weight)
    values = np.concatenate([np.ravel(w) for w in weights])
    assert len(np.unique(values)) == values.size
    for bias in (gru.bias, gru.bias_n, dense.bias, cell.bias):
        np.testing.assert_array_equal(bias, np.zeros(bias.shape))
    np.testing.assert_array_equal(norm.weight, np.ones(4))
    np.testing.assert_array_equal(cell.weight_hh, model.layers[3].weight_hh)
    np.testing.assert_array_equal(lif.tau, np.full((2, 2), 9.0))


@pytest.mark.slow
def test_what_cannot_be_drawn() -> None:
    with pytest.raises(etpc.InputError, match=r"scheme='kaiming' is unknown.*kaiming_normal"):
        nn.init(linear(), "kaiming", KEY)
    for layer in (eqx.nn.LayerNorm(3), nn.LRU(2, 2, 2, key=KEY)):
        name = type(layer).__name__
        with pytest.raises(etpc.InputError, match=f"{name} has no weight to draw.*tree_at"):
            nn.init(layer, "normal", KEY)
    with pytest.raises(etpc.InputError, match=r"scheme returned float64\[1\]"):
        nn.init(linear(), lambda key, shape, dtype: jnp.ones(1), KEY)
