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
    """Neurons of two states, each of which reads the other; a weight enters both."""
    v, a = state
    z = spike(v - a)
    v, a = 0.9 * v - 0.3 * z + w @ x, 0.95 * a + 0.1 * jnp.tanh(v) + 0.1 * (w @ jnp.sin(x))
    return spike(v - a), (v, a)


@model
def filters(x, state, w, u, kernel, z, a, two, gain):
    """Outputs that move alike: in two states, in two groups, at all places of a kernel, and as complex numbers."""
    g, v, h, k, c = state
    current = w @ x
    g = 0.8 * g + gain[0] * current
    v = a * v + 0.1 * g + gain[1] * current
    h = jnp.tile(two, len(h) // 2) * h + jnp.tanh(x[0]) * (u @ x)
    k = jax.nn.sigmoid(x[1]) * k + a * jax.lax.conv(x[None, None], kernel, (1,), "SAME")[0]
    c = (0.5 + 0.4j) * jnp.tanh(x[0]) * c + gain[0] * (z @ x)
    y = jnp.tanh(jnp.concatenate([v, h, k.reshape(-1), c.real, c.imag]))
    return y, (g, v, h, k, c)


@model
def complex_cascade(x, state, w, u, leak, out):
    """Complex states, of which one reads another's new value, and the output both parts and an old value."""
    g, h = state
    g = leak * g + jnp.tanh(w @ x + 0.1 * g)
    new = 0.9j * h + g + u @ g
    return (out @ new).real + jnp.sum(new.real * h.imag), (g, new)


@model
def layers(x, state, w, r, u, skip, leak):
    """A layer that reads another's new output, which no trace holds, and a gain that is read past the new states."""
    h, c, g = state
    c = leak * c + jnp.tanh(w @ x + r @ h)
    h = jnp.sin(c)
    past = skip @ x
    g = 0.8 * g * jax.nn.sigmoid(h) + u @ h + r @ jnp.sin(u @ h) + past
    return g * past + h, (h, c, g)


@model
def unlasting(x, state, w, r, twice, z, u, leak):
    """Beside each state one that later steps read through weights alone: where outputs move alike, where a weight is
    used twice and products are added up, and in complex numbers."""
    v, s, g, h, c, d = state
    v = 0.9 * v + w @ x
    g = 0.5 * jnp.sin(g) + jnp.tanh(twice @ x + r @ (s + h)) + twice @ jnp.tanh(x)
    c = leak * c + z @ x + u @ d
    s, h, d = 0.5 * v, jnp.sin(g), (0.3 + 0.8j) * c
    return s * h + d.real, (v, s, g, h, c, d)


@model
def readout(x, state, w, out):
    """Neurons before a leaky readout."""
    v, y = state
    v = 0.9 * v + w @ x - jax.lax.stop_gradient(spike(v - 0.3))
    y = 0.8 * y + out @ spike(v - 0.4)
    return jnp.sin(y), (v, y)


def curve(w, x):
    return w[0] * jnp.tanh(x) + w[1] * jnp.tanh(w[2] * x)


@jax.custom_vjp
def whole(w, x):
    """An operation that is kept as it is; each of its elements reads all of its weight."""
    return curve(w, x)


whole.defvjp(lambda w, x: (curve(w, x), (w, x)), lambda wx, ct: jax.vjp(curve, *wx)[1](ct))


@model
def columns(x, state, w, gains, few):
    """Parameters that many states share: each of some gains by a part of them, and all of the others by all."""
    g, v = state
    g = 0.7 * g + w @ x
    v = 0.8 * v + (gains[:, None] * jnp.tanh(g).reshape(len(gains), -1)).reshape(-1)
    return v, (g, v.at[:30].add(whole(few, g[:30])))


@model
def matrix(x, h, w, r):
    """All memory is in a matrix."""
    h = jnp.tanh(w @ x + r @ h)
    return jnp.sin(h), h


def networks():
    """By name: a model, its initial state, and its step."""
    n, key = 6, jax.random.key(1)
    zeros = jnp.zeros(n)
    in_, rec, out = weights(n, INPUTS, seed=1), weights(n, n, seed=2), weights(3, n, seed=3)
    gate, gate_r = weights(n, INPUTS, seed=4), weights(n, n, seed=5)
    bias, three = jnp.linspace(-0.2, 0.4, n), jnp.asarray([0.7, 1.5, 0.8])
    phase = 0.8 * jnp.exp(1j * jnp.arange(n))
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
        "complex cascade": (
            complex_cascade(phase[:, None] * in_, 0.3 * rec, phase, (1 + 1j) * out),
            (0 * phase, 0 * phase),
            None,
        ),
        "filters": (
            filters(in_, gate, weights(3, 1, 3), phase[:, None] * in_, three[0], three[1:], three),
            (zeros, zeros, zeros, jnp.zeros((3, INPUTS)), 0 * phase),
            None,
        ),
        "layers": (layers(in_, rec, gate_r, gate, 0.5 + bias), (zeros,) * 3, None),
        "unlasting": (
            unlasting(in_, rec, gate, phase[:, None] * in_, 0.3 * rec * phase[:, None], phase),
            (zeros,) * 4 + (0 * phase,) * 2,
            None,
        ),
        "columns": (columns(weights(48, INPUTS, seed=6), three, three), (wide, wide), None),
        "matrix": (matrix(in_, rec), zeros, None),
        "readout": (readout(in_, out), (zeros, jnp.zeros(len(out))), None),
    }
