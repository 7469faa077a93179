"""Small networks: each pass of the compiler changes one of them at least."""

import equinox as eqx
import jax
import jax.numpy as jnp

from etpc import nn
from tests.helpers import cell, spike, weights
from tests.zoo.check import model

INPUTS = 4


@model
def spiking(x, state, w, r, bias, tau, out):
    """Leaky neurons whose readout leaks with one constant."""
    v, y = state
    z = spike(v - 0.3)
    v = v * jnp.exp(-1 / tau) + w @ x + r @ z + bias - 0.5 * jax.lax.stop_gradient(z)
    y = 0.9 * y + out @ spike(v - 0.3)
    return y, (v, y)


@model
def gated(x, state, w, r, bias, gate, gate_r, out):
    """A memory whose output has a gate of its own, which no later step reads but through weights."""
    c, h = state
    c = 0.8 * c + jnp.tanh(w @ x + r @ h + bias)
    h = jax.nn.sigmoid(gate @ x + gate_r @ h) * jnp.tanh(c)
    return out @ h, (c, h)


@model
def tied(x, h, w, r):
    """One weight is used twice in a step."""
    h = jnp.tanh(0.5 * h + w @ x + r @ jnp.sin(h) + w @ jnp.tanh(x))
    return h, h


@model
def shared(x, h, w, leak):
    """All units have one learned time constant."""
    h = jax.nn.sigmoid(leak) * h + jnp.tanh(w @ x)
    return h, h


@model
def adaptive(x, state, w):
    """Neurons of two states, each of which reads the other."""
    v, a = state
    z = spike(v - a)
    v, a = 0.9 * v - 0.3 * z + w @ x, 0.95 * a + 0.1 * jnp.tanh(v)
    return z, (v, a)


def networks():
    """By name: a model, its initial state, and its step."""
    n, key = 6, jax.random.key(1)
    zeros = jnp.zeros(n)
    in_, rec, out = weights(n, INPUTS, seed=1), weights(n, n, seed=2), weights(3, n, seed=3)
    gate, gate_r = weights(n, INPUTS, seed=4), weights(n, n, seed=5)
    bias = jnp.linspace(-0.2, 0.4, n)
    lru = nn.LRU(INPUTS, n, 3, key=key)
    wide = jnp.zeros(48)
    return {
        "spiking": (spiking(in_, rec, bias, 5.0 + bias, out), (zeros, jnp.zeros(3)), None),
        "gated": (gated(in_, rec, bias, gate, gate_r, out), (zeros, zeros), None),
        "tied": (tied(in_, rec), zeros, None),
        "shared": (shared(weights(48, INPUTS, seed=6), jnp.asarray(0.3)), wide, None),
        "adaptive": (adaptive(2 * in_), (zeros, zeros), None),
        "complex": (lru, None, None),
        "GRU": (eqx.nn.GRUCell(INPUTS, n, key=key), zeros, cell),
        "LSTM": (eqx.nn.LSTMCell(INPUTS, n, key=key), (zeros, zeros), cell),
    }
