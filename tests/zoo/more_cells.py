"""Cells of the literature that stress one thing each."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.check import model, weights


@model
def SLSTM(x, state, w, r):
    """xLSTM's scalar memory (Beck et al., 2024): exponential gates with a stabiliser."""
    h, c, n, m = state
    z, i, f, o = jnp.split(w @ x + r @ h, 4)
    m_after = jnp.maximum(f + m, i)
    i, f = jnp.exp(i - m_after), jnp.exp(f + m - m_after)
    c, n = f * c + i * jnp.tanh(z), f * n + i
    h = jax.nn.sigmoid(o) * c / n
    return h, (h, c, n, m_after)


@model
def MLSTM(x, state, qkv, gates):
    """xLSTM's matrix memory."""
    C, n, m = state
    q, k, v = qkv @ x
    i, f = gates @ x
    m_after = jnp.maximum(jax.nn.log_sigmoid(f) + m, i)
    i, f = jnp.exp(i - m_after), jnp.exp(jax.nn.log_sigmoid(f) + m - m_after)
    C, n = f * C + i * jnp.outer(v, k), f * n + i * k
    return C @ q / jnp.maximum(jnp.abs(n @ q), jnp.exp(-m_after)), (C, n, m_after)


@model
def Reservoir(x, h, enter, reservoir, gain, out):
    """An echo-state network: its reservoir is fixed by `stop_gradient`, its readout is trained."""
    recurrent = lax.stop_gradient(reservoir) @ h
    h = 0.5 * h + 0.5 * jnp.tanh(recurrent + gain * (lax.stop_gradient(enter) @ x))
    return out @ h, h


@model
def Plastic(x, state, w, alpha, eta, enter):
    """Differentiable plasticity (Miconi et al., 2018): a Hebbian trace is part of the weight."""
    h, hebb = state
    after = jnp.tanh((w + alpha * hebb) @ h + enter @ x)
    hebb = (1 - eta) * hebb + eta * jnp.outer(after, h)
    return after, (after, hebb)


@model
def InputDependentTransition(x, h, make, enter):
    """The input makes the transition matrix."""
    h = jnp.einsum("ijk,k->ij", make, x) @ h + enter @ x
    return h, h


@model
def Memory(x, memory, key, erase, add):
    """A content-addressed memory (Graves et al., 2014), with a controller that reads it."""
    norm = jnp.linalg.norm(memory, axis=1) + 1e-3
    address = jax.nn.softmax(memory @ (key @ x) / norm)
    kept = 1 - jnp.outer(address, jax.nn.sigmoid(erase @ x))
    memory = memory * kept + jnp.outer(address, add @ x)
    return address @ memory, memory


@model
def LearnedStart(x, state, start, weight):
    """At the first step the state is set to a parameter; a flag in the input starts anew."""
    x, anew = x
    h, t = state
    h = jnp.where((t == 0) | anew, start, h)
    h = 0.7 * h + weight @ x
    return h, (h, t + 1)


@model
def Scalars(x, h, weight, decay, gain):
    """Parameters without axes, that all neurons share, also on both sides of a product."""
    h = jax.nn.sigmoid(decay) * h + gain * (weight @ (gain * x))
    return decay * h, h


@model
def Competition(x, h, enter, inhibit):
    """Learned self-excitation and inhibition by the sum of all: element-wise weights, dense blocks."""
    h = 0.6 * h + enter @ x - inhibit * (jnp.sum(h) - h)
    return h, h


@model
def TwiceACell(x, h, cell):
    """One cell is used twice in a step, and once more with its state read out."""
    h = cell(x, cell(-x, h))
    return cell(x, h), h


class Everything(eqx.Module):
    """Leaves of every kind: keys, integers, flags, functions, text, arrays that nothing reads."""

    layers: eqx.nn.Sequential
    norm: eqx.nn.RMSNorm
    prelu: eqx.nn.PReLU
    key: jax.Array
    count: jax.Array
    mask: jax.Array
    unused: jax.Array
    activation: Callable
    name: str = "net"
    nothing: None = None

    def __init__(self, key):
        self.layers = eqx.nn.Sequential(
            [eqx.nn.Linear(2, 3, key=key), eqx.nn.Lambda(jnp.tanh), eqx.nn.Identity()]
        )
        self.norm = eqx.nn.RMSNorm(3)
        self.prelu = eqx.nn.PReLU(0.3)
        self.key = key
        self.count = jnp.asarray(2, jnp.int32)
        self.mask = jnp.array([True, False, True])
        self.unused = weights(2)
        self.activation = jax.nn.silu

    def __call__(self, x, h):
        noise = jax.random.normal(self.key, h.shape)
        drive = jnp.where(self.mask, self.layers(x), noise)
        h = 0.5 * h + self.count * self.prelu(drive)
        return self.activation(self.norm(h)), h


@model
def ThreeFactors(x, h, a, b):
    """One einsum over two weights and the data."""
    h = 0.7 * h + jnp.einsum("or,ri,i->o", a, b, x)
    return h, h


@model
def GatedProduct(x, h, w, v):
    """Products of the outputs of weights: `(W x) * (V x) * h`."""
    h = 0.5 * h + jnp.tanh((w @ x) * (v @ x) * (1 + h))
    return h, h


@model
def GapJunctions(x, v, weight, conductance):
    """Learned symmetric coupling on the edges of a graph: gathers and scatters of the state."""
    flow = conductance * (v[EDGES[1]] - v[EDGES[0]])
    v = 0.9 * v + weight @ x
    v = v.at[EDGES[0]].add(0.2 * flow).at[EDGES[1]].add(-0.2 * flow)
    return v, v


EDGES = np.array([[0, 1, 0], [1, 2, 3]])
