"""State-space models and linear attention: complex states, matrix states, gates by the input."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from tests.zoo import ssm
from tests.zoo.check import check, normal, weights

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


def test_lru_with_complex_parameters():
    state = jnp.zeros(3, complex)
    check(ssm.ComplexLRU(2, 3, 1), normal(2), state, exact=True, smoothed=True, every=True)


def test_mamba():
    state = (jnp.zeros((2, 3)), jnp.zeros((3, 2)))
    check(ssm.Mamba(2, 3, 2, KEY), normal(2), state)


def test_linear_attention():
    model = ssm.LinearAttention(weights(3, 2, 2, 2))
    check(model, normal(2), (jnp.zeros((2, 2, 2)), jnp.zeros((2, 2))), exact=True)


def test_delta_rule():
    model = ssm.DeltaRule(weights(3, 2, 2, 2), eqx.nn.Linear(2, 2, key=KEY), weights(1, 2, 2))
    check(model, normal(2), jnp.zeros((2, 2, 2)), exact=True, smoothed=True)


def test_attention_over_a_cache():
    model = ssm.CachedAttention(weights(2, 2), weights(2, 2, seed=1), weights(3, 2))
    state = (jnp.zeros((3, 2)), jnp.zeros((3, 3)))
    check(model, normal(2), state, exact=True)


def test_fourier_layer():
    kernel = (weights(3) + 1j * weights(3, seed=1)).astype(complex)
    kernel = kernel.at[0].set(kernel[0].real).at[2].set(kernel[2].real)
    check(ssm.Spectral(kernel, weights(4)), normal(4), jnp.zeros(4), exact=True)
