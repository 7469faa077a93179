"""Hidden states of every layout, and ways in which states act on each other."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


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


class Stacked(eqx.Module):
    """Membrane and adaptation are rows of one array."""

    weight: jax.Array

    def __call__(self, x, state):
        v, a = state
        v, a = 0.7 * v - 0.2 * a + self.weight @ x, 0.9 * a + 0.1 * v
        return jnp.tanh(v), jnp.stack([v, a])


class Columns(eqx.Module):
    """The same as columns, updated in place."""

    weight: jax.Array

    def __call__(self, x, state):
        v = 0.7 * state[:, 0] - 0.2 * state[:, 1] + self.weight @ x
        state = state.at[:, 1].multiply(0.9).at[:, 1].add(0.1 * state[:, 0]).at[:, 0].set(v)
        return jnp.tanh(v), state


class Delay(eqx.Module):
    """A delay line: what comes in, comes out three steps later."""

    weight: jax.Array

    def __call__(self, x, line):
        v = 0.3 * line[-1] + self.weight @ x
        return line[-1], jnp.concatenate([v[None], line[:-1]])


class RolledDelay(eqx.Module):
    weight: jax.Array

    def __call__(self, x, line):
        v = 0.3 * line[-1] + self.weight @ x
        return line[-1], jnp.roll(line, 1, axis=0).at[0].set(v)


class RingBuffer(eqx.Module):
    """A ring buffer: an integer points at the oldest entry, and moves."""

    weight: jax.Array

    def __call__(self, x, state):
        buffer, i = state
        old = buffer[i]
        buffer = buffer.at[i].set(0.3 * old + self.weight @ x)
        return old, (buffer, (i + 1) % len(buffer))


class SlicedRingBuffer(eqx.Module):
    """The same by dynamic slices, and with a delay for each neuron."""

    weight: jax.Array
    delays: tuple = eqx.field(static=True)

    def __call__(self, x, state):
        buffer, i = state
        buffer = lax.dynamic_update_slice_in_dim(buffer, (self.weight @ x)[None], i, axis=0)
        steps, n = buffer.shape
        late = buffer[(i - jnp.asarray(self.delays)) % steps, jnp.arange(n)]
        return late, (buffer, (i + 1) % steps)


class LearnedDelay(eqx.Module):
    """Delays are parameters: the line is read by interpolation."""

    weight: jax.Array
    delay: jax.Array

    def __call__(self, x, line):
        line = jnp.concatenate([(self.weight @ x)[None], line[:-1]])
        taps = jnp.arange(float(len(line)))[:, None]
        kernel = jax.nn.softmax(-((taps - self.delay[None, :]) ** 2), axis=0)
        return jnp.sum(kernel * line, axis=0), line


ORDER = np.array([2, 0, 3, 1])
INHIBITION = np.full((4, 4), -0.2) + 0.9 * np.eye(4)


def permuted(h):
    return h[ORDER]


def reversed_(h):
    return h[::-1]


def sorted_(h):
    return jnp.sort(h)


def cumulated(h):
    return 0.5 * jnp.cumsum(h)


def centred(h):
    return h - jnp.mean(h)


def inhibited(h):
    return INHIBITION @ h


def rolled(h):
    return jnp.roll(h, 1)


def normalised(h):
    return h / jnp.sqrt(1.0 + jnp.sum(h**2))


def winner(h):
    return jnp.where(h == jnp.max(h), h, 0.5 * h)


def neighbours(h):
    return jnp.convolve(h, np.array([0.25, 0.5, 0.25]), mode="same")


def diffused(h):
    padded = jnp.pad(h, 1, mode="edge")
    return h + 0.2 * (padded[2:] - 2 * h + padded[:-2])


def pooled(h):
    return jnp.repeat(lax.reduce_window(h, -jnp.inf, lax.max, (2,), (2,), "VALID"), 2)


def scattered(h):
    return jnp.zeros(4).at[np.array([0, 0, 1, 3])].add(h)


def fourier(h):
    return jnp.fft.irfft(jnp.fft.rfft(h) * np.array([1.0, 0.5, 0.25]), n=4)


class SharedScalar(eqx.Module):
    """A modulator that all neurons share: it reads their mean, and scales their drive."""

    weight: jax.Array
    rate: jax.Array

    def __call__(self, x, state):
        v, dopamine = state
        v = 0.7 * v + (1.0 + dopamine) * (self.weight @ x)
        dopamine = self.rate * dopamine + jnp.mean(v)
        return v, (v, dopamine)


class Refractory(eqx.Module):
    """Integers count the steps until a neuron may fire again; a flag remembers that it has fired."""

    weight: jax.Array

    def __call__(self, x, state):
        v, wait, ever = state
        v = jnp.where(wait > 0, 0.9 * v, 0.7 * v + self.weight @ x)
        fired = v > 0.5
        v = jnp.where(fired, v - 0.5, v)
        wait = jnp.where(fired, 2, jnp.maximum(wait - 1, 0))
        return jnp.tanh(v), (v, wait, ever | fired)


class Noisy(eqx.Module):
    """Noise and dropout, by a key in the state."""

    weight: jax.Array
    sigma: jax.Array
    dropout: eqx.nn.Dropout

    def __call__(self, x, state):
        h, key = state
        key, noise_key, drop_key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, h.shape)
        current = self.dropout(self.weight @ x, key=drop_key)
        h = 0.7 * h + current + self.sigma * noise
        return h, (h, key)


class NoisyByInput(eqx.Module):
    """The key of each step is an input."""

    weight: jax.Array

    def __call__(self, x, h):
        x, key = x
        h = 0.7 * h + (self.weight * jax.random.bernoulli(key, 0.7, self.weight.shape)) @ x
        return h, h


class Stateful(eqx.Module):
    """Layers that keep their state by an index into `eqx.nn.State`."""

    weight: jax.Array
    membrane: eqx.nn.StateIndex
    count: eqx.nn.StateIndex

    def __init__(self, weight):
        self.weight = weight
        self.membrane = eqx.nn.StateIndex(jnp.zeros(len(weight)))
        self.count = eqx.nn.StateIndex(jnp.zeros((), jnp.int32))

    def __call__(self, x, state):
        v = 0.7 * state.get(self.membrane) + self.weight @ x
        state = state.set(self.membrane, v)
        return v, state.set(self.count, state.get(self.count) + 1)


class Spectral(eqx.Module):
    """Spectral normalisation: its power iteration is a state."""

    layer: eqx.nn.SpectralNorm

    def __call__(self, x, state):
        h, state = state
        current, state = self.layer(x, state)
        h = 0.7 * h + current
        return h, (h, state)


class Bystanders(eqx.Module):
    """States that nothing changes, that no weight reaches, that reach nothing, that have no size."""

    weight: jax.Array

    def __call__(self, x, state):
        trace = 0.5 * state["trace"] + x
        h = 0.7 * state["h"] + self.weight @ trace + state["fixed"]
        sink = state["sink"] + h
        return h, {**state, "trace": trace, "h": h, "sink": sink}


class Groups(eqx.Module):
    """Three groups of different size and block."""

    weights: tuple[jax.Array, ...]

    def __call__(self, x, state):
        one, two, three = (w @ x for w in self.weights)
        h = 0.7 * state["h"] + one
        v = 0.8 * state["v"] - 0.3 * state["u"] + two
        u = 0.9 * state["u"] + v
        line = jnp.concatenate([three[None], state["line"][:-1]])
        return (h, v, line[-1]), {"h": h, "v": v, "u": u, "line": line}


class Swapped(eqx.Module):
    """Two leaves change places at each step."""

    weight: jax.Array

    def __call__(self, x, state):
        a, b = state
        return a, (0.9 * b, 0.7 * a + self.weight @ x)


class Old(eqx.Module):
    """The output reads the old state, and the input too."""

    weight: jax.Array
    gain: jax.Array

    def __call__(self, x, h):
        return {"old": self.gain * h, "x": x, "n": None}, 0.7 * h + self.weight @ x


class Packed(eqx.Module):
    """All states of two layers in one flat vector."""

    weight: jax.Array
    gain: jax.Array

    def __call__(self, x, flat):
        one, two = flat[:3].reshape(3), flat[3:].reshape(2, 3)
        one = 0.7 * one + self.weight @ x
        two = 0.8 * two + self.gain[:, None] * one[None, :]
        return two, jnp.concatenate([one, two.ravel()])
