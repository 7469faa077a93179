"""Hidden states of every layout, and ways in which states act on each other."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.check import model


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Neuron:
    v: jax.Array
    a: jax.Array


class Synapse(eqx.Module):
    i: jax.Array
    kind: str = eqx.field(static=True, default="exponential")


class Deep(NamedTuple):
    layers: list
    extra: dict


class Nested(eqx.Module):
    """Dataclasses, modules, named tuples, lists, dicts, `None` and empty tuples in one state."""

    weight: jax.Array
    couple: jax.Array

    def init_state(self):
        zeros = jnp.zeros(3)
        neuron, synapse = Neuron(zeros, zeros), Synapse(jnp.zeros(2))
        return Deep([{"n": neuron, "s": synapse}, (zeros,)], {"none": None, "empty": ()})

    def __call__(self, x, state):
        neuron, synapse = state.layers[0]["n"], state.layers[0]["s"]
        (trace,) = state.layers[1]
        i = 0.5 * synapse.i + self.weight @ x
        a = 0.9 * neuron.a + 0.1 * neuron.v
        v = 0.7 * neuron.v + jnp.concatenate([i, i[:1]]) - self.couple * a
        trace = 0.6 * trace + v
        layers = [{"n": Neuron(v, a), "s": eqx.tree_at(lambda s: s.i, synapse, i)}, (trace,)]
        return trace, Deep(layers, state.extra)


@model
def Columns(x, state, weight):
    """Membrane and adaptation are columns of one array, updated in place."""
    v = 0.7 * state[:, 0] - 0.2 * state[:, 1] + weight @ x
    state = state.at[:, 1].multiply(0.9).at[:, 1].add(0.1 * state[:, 0]).at[:, 0].set(v)
    return jnp.tanh(v), state


@model
def RingBuffer(x, state, weight):
    """A ring buffer: an integer points at the oldest entry, and moves."""
    buffer, i = state
    old = buffer[i]
    buffer = buffer.at[i].set(0.3 * old + weight @ x)
    return old, (buffer, (i + 1) % len(buffer))


@model
def SlicedRingBuffer(x, state, weight, delays):
    """The same by dynamic slices, and with a delay for each neuron."""
    buffer, i = state
    buffer = lax.dynamic_update_slice_in_dim(buffer, (weight @ x)[None], i, axis=0)
    steps, n = buffer.shape
    late = buffer[(i - jnp.asarray(delays)) % steps, jnp.arange(n)]
    return late, (buffer, (i + 1) % steps)


@model
def LearnedDelay(x, line, weight, delay):
    """Delays are parameters: the line is read by interpolation."""
    line = jnp.concatenate([(weight @ x)[None], line[:-1]])
    taps = jnp.arange(float(len(line)))[:, None]
    kernel = jax.nn.softmax(-((taps - delay[None, :]) ** 2), axis=0)
    return jnp.sum(kernel * line, axis=0), line


@model
def SharedScalar(x, state, weight, rate):
    """A modulator that all neurons share: it reads their mean, and scales their drive."""
    v, dopamine = state
    v = 0.7 * v + (1.0 + dopamine) * (weight @ x)
    dopamine = rate * dopamine + jnp.mean(v)
    return v, (v, dopamine)


@model
def Refractory(x, state, weight):
    """Integers count the steps until a neuron may fire again; a flag remembers that it has fired."""
    v, wait, ever = state
    v = jnp.where(wait > 0, 0.9 * v, 0.7 * v + weight @ x)
    fired = v > 0.5
    v = jnp.where(fired, v - 0.5, v)
    wait = jnp.where(fired, 2, jnp.maximum(wait - 1, 0))
    return jnp.tanh(v), (v, wait, ever | fired)


@model
def Noisy(x, state, weight, sigma, dropout):
    """Noise and dropout, by a key in the state."""
    h, key = state
    key, noise_key, drop_key = jax.random.split(key, 3)
    noise = jax.random.normal(noise_key, h.shape)
    current = dropout(weight @ x, key=drop_key)
    h = 0.7 * h + current + sigma * noise
    return h, (h, key)


@model
def Spectral(x, state, layer):
    """Spectral normalisation: its power iteration is a state."""
    h, state = state
    current, state = layer(x, state)
    h = 0.7 * h + current
    return h, (h, state)


@model
def Bystanders(x, state, weight):
    """States that nothing changes, that no weight reaches, that reach nothing, that have no size."""
    trace = 0.5 * state["trace"] + x
    h = 0.7 * state["h"] + weight @ trace + state["fixed"]
    sink = state["sink"] + h
    return h, {**state, "trace": trace, "h": h, "sink": sink}


@model
def Groups(x, state, weights):
    """Three groups of different size and block."""
    one, two, three = (w @ x for w in weights)
    h = np.array([0.7, 0.6]) * state["h"] + one
    v = 0.8 * state["v"] - 0.3 * state["u"] + two
    u = 0.9 * state["u"] + v
    line = jnp.concatenate([three[None], state["line"][:-1]])
    return (h, v, line[-1]), {"h": h, "v": v, "u": u, "line": line}


@model
def Swapped(x, state, weight):
    """Two leaves change places at each step."""
    a, b = state
    return a, (0.9 * b, 0.7 * a + weight @ x)


@model
def Packed(x, flat, weight, gain):
    """All states of two layers in one flat vector."""
    one, two = flat[:3].reshape(3), flat[3:].reshape(2, 3)
    one = 0.7 * one + weight @ x
    two = 0.8 * two + gain[:, None] * one[None, :]
    return two, jnp.concatenate([one, two.ravel()])
