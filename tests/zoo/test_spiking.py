"""Spiking networks."""

import jax
import jax.numpy as jnp
import pytest

from tests.zoo import spiking
from tests.zoo.check import check, normal, weights

pytestmark = pytest.mark.slow

V = jnp.zeros(3)


@pytest.mark.parametrize(
    "surrogate", [spiking.spike, spiking.spike_vjp, spiking.spike_straight_through]
)
def test_surrogates(surrogate):
    check(spiking.lif(surrogate), normal(2), V, exact=True)


def test_hard_reset():
    check(spiking.lif(hard=True), normal(2), V, exact=True)


def test_recurrent_lif():
    check(spiking.lif(recurrent=True), normal(2), V, smoothed=True, every=True)


def test_convolutional():
    model = spiking.ConvSNN(jax.random.key(0))
    check(model, normal(1, 4, 4), jnp.zeros((2, 4, 4)), exact=True)


def test_detached_recurrence():
    model = spiking.EProp(weights(3, 2), weights(3, 3))
    check(model, normal(2), (V, V), exact=True)


def test_gates_of_ion_channels():
    model = spiking.HodgkinHuxley(weights(3, 2), jnp.linspace(0.5, 2.0, 3))
    check(model, normal(2), (V, V + 0.1, V + 0.2), exact=True)
