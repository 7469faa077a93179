"""Small recurrent networks, each of which is written once: as an Equinox model here, and for braintrace in `peers.py`.

Every product of data and weight is a `dense(x, w)`: `x @ w` here, and the operation of braintrace there.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

N_IN, N_HIDDEN, N_OUT = 4, 6, 3

State = dict[str, Array]
Weights = dict[str, np.ndarray]


@jax.custom_jvp
def spike(v: Array) -> Array:
    """Heaviside step of the distance to threshold, with a surrogate gradient that is nowhere zero."""
    return (v > 0.0).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1.0 + 2.0 * jnp.abs(v)) ** 2


class Model(eqx.Module):
    """One array field for each weight that its step `(x, state, dense, *weights)` takes.

    The state is a dict of vectors whose sizes are `sizes`.
    """

    sizes: ClassVar[dict[str, int]]
    step: ClassVar[Callable[..., tuple[Array, State]]]

    def init_state(self) -> State:
        return {name: jnp.zeros(size) for name, size in self.sizes.items()}

    def __call__(self, x: Array, state: State) -> tuple[Array, State]:
        return self.step(x, state, jnp.matmul, *vars(self).values())


def network(**sizes: int) -> Callable[[Callable[..., tuple[Array, State]]], type[Model]]:
    """A class of networks by its step, and the sizes of its states."""

    def made(step: Callable[..., tuple[Array, State]]) -> type[Model]:
        names = list(inspect.signature(step).parameters)[3:]
        inside = {"__annotations__": dict.fromkeys(names, Array), "__doc__": step.__doc__}
        inside |= {"__module__": step.__module__, "sizes": sizes, "step": staticmethod(step)}
        return type(step.__name__, (Model,), inside)

    return made


@network(v=N_HIDDEN, a=N_HIDDEN, r=N_OUT)
def ALIF(x, state, dense, w_in, w_rec, w_out):
    """Recurrent LIF neurons with an adapting threshold."""
    z = spike(state["v"] - 1.0 - 0.3 * state["a"])
    a = 0.95 * state["a"] + z
    v = 0.9 * state["v"] - z + dense(x, w_in) + dense(z, w_rec)
    r = 0.8 * state["r"] + dense(spike(v - 1.0 - 0.3 * a), w_out)
    return r, {"v": v, "a": a, "r": r}


@network(g=N_HIDDEN, v=N_HIDDEN, r=N_OUT)
def Conductance(x, state, dense, w_in, w_rec, w_out):
    """Conductance-based synapses and a membrane that reads the new conductance."""
    z = spike(state["v"] - 1.0)
    g = 0.7 * state["g"] + dense(x, w_in) + dense(z, w_rec)
    v = 0.9 * state["v"] - z + 0.2 * g * (3.0 - state["v"])
    r = 0.8 * state["r"] + dense(spike(v - 1.0), w_out)
    return r, {"g": g, "v": v, "r": r}


@network(h=N_HIDDEN, r=N_OUT)
def RNN(x, state, dense, w_in, w_rec, w_out, bias):
    """Leaky tanh rate units with a bias."""
    pre = dense(x, w_in) + dense(state["h"], w_rec) + bias
    h = 0.7 * state["h"] + 0.3 * jnp.tanh(pre)
    r = 0.8 * state["r"] + dense(h, w_out)
    return r, {"h": h, "r": r}


@network(h=N_HIDDEN)
def Vanilla(x, state, dense, w_in, w_rec, w_out):
    """A network without memory of its own: all of it is in the recurrent matrix."""
    h = jnp.tanh(dense(x, w_in) + dense(state["h"], w_rec))
    return dense(h, w_out), {"h": h}


@network(h=N_HIDDEN, r=N_OUT)
def Gated(x, state, dense, w_gate, w_cand, w_out):
    """A gated rate network whose gate reaches the state through no other weight (minimal GRU)."""
    xh = jnp.concatenate([x, state["h"]], -1)
    z = jax.nn.sigmoid(dense(xh, w_gate))
    h = (1.0 - z) * state["h"] + z * jnp.tanh(dense(xh, w_cand))
    r = 0.8 * state["r"] + dense(h, w_out)
    return r, {"h": h, "r": r}


@network(v=N_HIDDEN)
def LearnedLeak(x, state, dense, w_in, leak, threshold):
    """LIF neurons with a learned leak and threshold; no recurrent weights, the spikes are the output."""
    z = spike(state["v"] - threshold)
    v = jax.nn.sigmoid(leak) * state["v"] - z * threshold + dense(x, w_in)
    return spike(v - 1.0), {"v": v}


@network(a=N_HIDDEN, b=N_HIDDEN, c=N_HIDDEN)
def Cascade(x, state, dense, w_in):
    """A filter and two states after it, each a function of the new value of the one before."""
    a = 0.7 * state["a"] + dense(x, w_in)
    b = jnp.tanh(a)
    c = jnp.sin(b)
    return c, {"a": a, "b": b, "c": c}


@network(h=N_HIDDEN)
def GRU(x, state, dense, w_gate, w_reset, w_cand, w_out):
    """A GRU with a linear readout that no state follows. Its reset gate reaches the state through `w_cand`."""
    xh = jnp.concatenate([x, state["h"]], -1)
    z = jax.nn.sigmoid(dense(xh, w_gate))
    reset = jax.nn.sigmoid(dense(xh, w_reset))
    cand = jnp.tanh(dense(jnp.concatenate([x, reset * state["h"]], -1), w_cand))
    h = (1.0 - z) * state["h"] + z * cand
    return dense(h, w_out), {"h": h}


@network(c=N_HIDDEN, h=N_HIDDEN)
def LSTM(x, state, dense, w_i, w_g, w_f, w_o):
    """An LSTM, its hidden state the output; h' reads the new cell state c'."""
    xh = jnp.concatenate([x, state["h"]], -1)
    i, g, f, o = (dense(xh, w) for w in (w_i, w_g, w_f, w_o))
    c = jax.nn.sigmoid(f + 1.0) * state["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h, {"c": c, "h": h}


@network(h=N_HIDDEN)
def Permuted(x, state, dense, w_in):
    """A leaky state that is rolled by one neuron at every step; nothing is approximate about it."""
    h = 0.9 * jnp.tanh(jnp.roll(state["h"], 1, -1)) + dense(x, w_in)
    return h, {"h": h}


@network(h=N_HIDDEN)
def MeanFree(x, state, dense, w_in):
    """A leaky state from which the population mean is subtracted at every step."""
    mean = jnp.mean(state["h"], -1, keepdims=True)
    h = 0.9 * (state["h"] - mean) + jnp.tanh(dense(x, w_in))
    return h, {"h": h}


# --- weights ---------------------------------------------------------------------------------------------------------

# Shape and standard deviation of each weight, large enough for every network to be alive.
_WEIGHTS: dict[str, tuple[tuple[int, ...], float]] = {
    "w_in": ((N_IN, N_HIDDEN), 0.6),
    "w_rec": ((N_HIDDEN, N_HIDDEN), 0.5),
    "w_out": ((N_HIDDEN, N_OUT), 0.5),
    "bias": ((N_HIDDEN,), 0.3),
    "leak": ((N_HIDDEN,), 1.0),
    "threshold": ((N_HIDDEN,), 0.2),
} | dict.fromkeys(
    ("w_gate", "w_reset", "w_cand", "w_i", "w_g", "w_f", "w_o"), ((N_IN + N_HIDDEN, N_HIDDEN), 0.5)
)


def random_weights(cls: type[Model], seed: int = 0) -> Weights:
    """Weights of one network by name; thresholds and leaks around 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for field in dataclasses.fields(cls):
        shape, std = _WEIGHTS[field.name]
        mean = 1.0 if field.name in ("leak", "threshold") else 0.0
        weights[field.name] = mean + std * rng.standard_normal(shape)
    return weights
