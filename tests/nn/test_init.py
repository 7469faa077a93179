"""Initialisers of weights of layout (out, in, ...)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc import nn

KEY = jax.random.key(0)
O, I = 300, 1200  # unequal, so that a swap of fan-in and fan-out shows


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        (nn.kaiming_normal(), 2 / I),
        (nn.kaiming_normal(0.5), 0.5 / I),
        (nn.kaiming_uniform(), 2 / I),
        (nn.xavier_normal(), 2 / (O + I)),
        (nn.xavier_uniform(), 2 / (O + I)),
        (nn.xavier_uniform(3.0), 6 / (O + I)),
        (nn.normal(0.3), 0.09),
        (nn.zeros, 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_variance_and_dtype(
    init: jax.nn.initializers.Initializer, variance: float, dtype: type
) -> None:
    weight = init(KEY, (O, I), dtype)
    assert weight.shape == (O, I)
    assert weight.dtype == dtype
    np.testing.assert_allclose(jnp.var(weight), variance, rtol=0.02)
    np.testing.assert_allclose(jnp.mean(weight), 0, atol=0.01 * math.sqrt(variance))


@pytest.mark.parametrize(
    ("init", "bound"),
    [
        (nn.kaiming_uniform(), math.sqrt(6 / I)),
        (nn.xavier_uniform(), math.sqrt(6 / (O + I))),
        # Two standard deviations of the normal that is truncated, whose own is larger by 1/0.8796.
        (nn.kaiming_normal(), 2 * math.sqrt(2 / I) / 0.87962566103423978),
        (nn.xavier_normal(), 2 * math.sqrt(2 / (O + I)) / 0.87962566103423978),
    ],
)
def test_bounds(init: jax.nn.initializers.Initializer, bound: float) -> None:
    weight = init(KEY, (O, I), jnp.float64)
    np.testing.assert_allclose(jnp.max(jnp.abs(weight)), bound, rtol=0.01)


def test_convolution_weights_count_their_window() -> None:
    weight = nn.kaiming_normal()(KEY, (64, 32, 5, 5), jnp.float64)
    np.testing.assert_allclose(jnp.var(weight), 2 / (32 * 25), rtol=0.03)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_orthogonal(shape: tuple[int, int]) -> None:
    weight = np.asarray(nn.orthogonal(2.0)(KEY, shape, jnp.float64))
    short = weight if shape[0] <= shape[1] else weight.T
    np.testing.assert_allclose(short @ short.T, 4 * np.eye(len(short)), atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize(
    "factory", [nn.kaiming_normal, nn.kaiming_uniform, nn.xavier_normal, nn.xavier_uniform]
)
def test_scale_out_of_range(factory, scale: float) -> None:
    with pytest.raises(ValueError, match=rf"scale must be a finite number > 0, got {scale}"):
        factory(scale)
