"""Small recurrent networks as plain Equinox models. `peers.py` writes the same ones for braintrace.

Every product of data and weight goes through `dense`, so that a dense reference can cut or perturb exactly those
products; called as `model(x, state)`, which is all that etpc asks for, they are plain `x @ w`.
"""

import dataclasses
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
Dense = Callable[[str, Array, Array], Array]


@jax.custom_jvp
def spike(v: Array) -> Array:
    """Heaviside step of the distance to threshold, with a surrogate gradient that is nowhere zero."""
    return (v > 0.0).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1.0 + 2.0 * jnp.abs(v)) ** 2


def plain_dense(name: str, x: Array, w: Array) -> Array:
    """The product of data and weight that a model computes on its own."""
    return x @ w


class Model(eqx.Module):
    """One array field per weight; the state is a dict of vectors whose sizes are `sizes`."""

    sizes: ClassVar[dict[str, int]]

    def init_state(self) -> State:
        return {name: jnp.zeros(size) for name, size in self.sizes.items()}


class ALIF(Model):
    """Recurrent LIF neurons with an adapting threshold."""

    w_in: Array
    w_rec: Array
    w_out: Array

    sizes = {"v": N_HIDDEN, "a": N_HIDDEN, "r": N_OUT}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        z = spike(state["v"] - 1.0 - 0.3 * state["a"])
        a = 0.95 * state["a"] + z
        v = 0.9 * state["v"] - z + dense("w_in", x, self.w_in) + dense("w_rec", z, self.w_rec)
        r = 0.8 * state["r"] + dense("w_out", spike(v - 1.0 - 0.3 * a), self.w_out)
        return r, {"v": v, "a": a, "r": r}


class Conductance(Model):
    """Conductance-based synapses and a membrane that reads the new conductance."""

    w_in: Array
    w_rec: Array
    w_out: Array

    sizes = {"g": N_HIDDEN, "v": N_HIDDEN, "r": N_OUT}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        z = spike(state["v"] - 1.0)
        g = 0.7 * state["g"] + dense("w_in", x, self.w_in) + dense("w_rec", z, self.w_rec)
        v = 0.9 * state["v"] - z + 0.2 * g * (3.0 - state["v"])
        r = 0.8 * state["r"] + dense("w_out", spike(v - 1.0), self.w_out)
        return r, {"g": g, "v": v, "r": r}


class RNN(Model):
    """Leaky tanh rate units with a bias."""

    w_in: Array
    w_rec: Array
    w_out: Array
    bias: Array

    sizes = {"h": N_HIDDEN, "r": N_OUT}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        pre = dense("w_in", x, self.w_in) + dense("w_rec", state["h"], self.w_rec) + self.bias
        h = 0.7 * state["h"] + 0.3 * jnp.tanh(pre)
        r = 0.8 * state["r"] + dense("w_out", h, self.w_out)
        return r, {"h": h, "r": r}


class Vanilla(Model):
    """A network without memory of its own: all of it is in the recurrent matrix."""

    w_in: Array
    w_rec: Array
    w_out: Array

    sizes = {"h": N_HIDDEN}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        h = jnp.tanh(dense("w_in", x, self.w_in) + dense("w_rec", state["h"], self.w_rec))
        return dense("w_out", h, self.w_out), {"h": h}


class Gated(Model):
    """A gated rate network whose gate reaches the state through no other weight (minimal GRU)."""

    w_gate: Array
    w_cand: Array
    w_out: Array

    sizes = {"h": N_HIDDEN, "r": N_OUT}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        xh = jnp.concatenate([x, state["h"]])
        z = jax.nn.sigmoid(dense("w_gate", xh, self.w_gate))
        h = (1.0 - z) * state["h"] + z * jnp.tanh(dense("w_cand", xh, self.w_cand))
        r = 0.8 * state["r"] + dense("w_out", h, self.w_out)
        return r, {"h": h, "r": r}


class LearnedLeak(Model):
    """LIF neurons with a learned leak and threshold; no recurrent weights, the spikes are the output."""

    w_in: Array
    leak: Array
    threshold: Array

    sizes = {"v": N_HIDDEN}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        z = spike(state["v"] - self.threshold)
        v = (
            jax.nn.sigmoid(self.leak) * state["v"]
            - z * self.threshold
            + dense("w_in", x, self.w_in)
        )
        return spike(v - 1.0), {"v": v}


class Cascade(Model):
    """A filter and two states after it, each a function of the new value of the one before."""

    w_in: Array

    sizes = {"a": N_HIDDEN, "b": N_HIDDEN, "c": N_HIDDEN}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        a = 0.7 * state["a"] + dense("w_in", x, self.w_in)
        b = jnp.tanh(a)
        c = jnp.sin(b)
        return c, {"a": a, "b": b, "c": c}


class GRU(Model):
    """A GRU with a linear readout that no state follows. Its reset gate reaches the state through `w_cand`."""

    w_gate: Array
    w_reset: Array
    w_cand: Array
    w_out: Array

    sizes = {"h": N_HIDDEN}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        xh = jnp.concatenate([x, state["h"]])
        z = jax.nn.sigmoid(dense("w_gate", xh, self.w_gate))
        reset = jax.nn.sigmoid(dense("w_reset", xh, self.w_reset))
        cand = jnp.tanh(dense("w_cand", jnp.concatenate([x, reset * state["h"]]), self.w_cand))
        h = (1.0 - z) * state["h"] + z * cand
        return dense("w_out", h, self.w_out), {"h": h}


class LSTM(Model):
    """An LSTM, its hidden state the output; h' reads the new cell state c'."""

    w_i: Array
    w_g: Array
    w_f: Array
    w_o: Array

    sizes = {"c": N_HIDDEN, "h": N_HIDDEN}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        xh = jnp.concatenate([x, state["h"]])
        i, g, f, o = (dense(name, xh, getattr(self, name)) for name in ("w_i", "w_g", "w_f", "w_o"))
        c = jax.nn.sigmoid(f + 1.0) * state["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h, {"c": c, "h": h}


class Permuted(Model):
    """A leaky state that is rolled by one neuron at every step; nothing is approximate about it."""

    w_in: Array

    sizes = {"h": N_HIDDEN}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        h = 0.9 * jnp.tanh(jnp.roll(state["h"], 1)) + dense("w_in", x, self.w_in)
        return h, {"h": h}


class MeanFree(Model):
    """A leaky state from which the population mean is subtracted at every step."""

    w_in: Array

    sizes = {"h": N_HIDDEN}

    def __call__(self, x: Array, state: State, dense: Dense = plain_dense) -> tuple[Array, State]:
        h = 0.9 * (state["h"] - jnp.mean(state["h"])) + jnp.tanh(dense("w_in", x, self.w_in))
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


def build(cls: type[Model], weights: Weights) -> Model:
    """The Equinox model with these weights."""
    return cls(**{name: jnp.asarray(w) for name, w in weights.items()})
