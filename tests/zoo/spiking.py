"""Spiking neurons and networks, with surrogates of every make."""

import jax
import jax.numpy as jnp

from tests.helpers import spike
from tests.zoo.check import model, weights


def spike_straight_through(v):
    soft = jax.nn.sigmoid(4 * v)
    return soft + jax.lax.stop_gradient(jnp.where(v > 0, 1.0, 0.0) - soft)


@model
def LIF(x, v, weight, recurrent, tau, threshold, surrogate, hard):
    """Learnable time constants and thresholds, soft or hard reset, feed-forward or recurrent."""
    z = surrogate(v - threshold)
    current = weight @ x
    if recurrent is not None:
        current = current + recurrent @ z
    alpha = jnp.exp(-1.0 / tau)
    reset = alpha * v * z if hard else threshold * jax.lax.stop_gradient(z)
    v = alpha * v - reset + current
    return surrogate(v - threshold), v


@model
def ConvSNN(image, v, conv, pool, readout):
    """An image a step, a spiking convolutional layer, and a readout of its spikes."""
    z = spike(v - 0.5)
    v = 0.8 * v * (1 - z) + conv(image)
    return readout(pool(spike(v - 0.5)).reshape(-1)), v


@model
def EProp(x, state, weight, recurrent):
    """Recurrent spikes are detached by the user, so nothing escapes."""
    v, z = state
    v = 0.8 * v + weight @ x + recurrent @ jax.lax.stop_gradient(z)
    z = spike(v - 0.3)
    return z, (v, z)


@model
def HodgkinHuxley(x, state, weight, g_na):
    """Gates with their own rates, by exponential Euler."""
    v, m, n = state
    current = weight @ x
    for _ in range(2):
        m = m + 0.2 * (jax.nn.sigmoid(v) - m)
        n = n + 0.1 * (jax.nn.sigmoid(v - 0.5) - n)
        conductance = g_na * m**3 + 0.5 * n**4 + 0.1
        steady = (g_na * m**3 + current) / conductance
        v = steady + (v - steady) * jnp.exp(-0.3 * conductance)
    return v, (v, m, n)


def lif(surrogate=spike, recurrent=False, hard=False):
    n = 3
    return LIF(
        weights(n, 2),
        weights(n, n, seed=1) if recurrent else None,
        jnp.linspace(2.0, 6.0, n),
        jnp.linspace(0.3, 0.6, n),
        surrogate,
        hard,
    )
