"""Models to test with, by name (`named`): networks that a step with parameters describes, and others.

A model is ``model(x, state) -> (y, new_state)`` with ``model.init_state()`` and ``model.n_in``.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tests import helpers
from tests.helpers import loss, spike  # noqa: F401

COUPLINGS = {
    "none": lambda h: h,
    "reverse": lambda h: h[::-1],
    "permute": lambda h: h[np.random.default_rng(0).permutation(len(h))],
    "roll": lambda h: jnp.roll(h, 1),
    "mean_free": lambda h: h - jnp.mean(h),
    "lateral": lambda h: h - 0.2 * jnp.asarray(_ring(len(h))) @ h,
    "cumsum": lambda h: 0.6 * jnp.cumsum(h),
    "sort": jnp.sort,
}


def _ring(n):
    return (np.roll(np.eye(n), 1, 0) + np.roll(np.eye(n), -1, 0)) * (n > 1)


class Draw:
    """Draws parameters in order, from one seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def weight(self, n_out, n_in, scale=1.0):
        return jnp.asarray(scale * self.rng.normal(size=(n_out, n_in)) / np.sqrt(n_in))

    def vector(self, low, high, *shape):
        return jnp.asarray(self.rng.uniform(low, high, shape))


class Network(eqx.Module):
    """A step `(p, x, states) -> (y, new states)` of parameters and states by name, which begin at zero."""

    p: dict[str, Any]
    step: Callable = eqx.field(static=True)
    shapes: tuple = eqx.field(static=True)
    n_in: int = eqx.field(static=True, default=2)

    def init_state(self):
        return {name: jnp.zeros(shape) for name, shape in self.shapes}

    def __call__(self, x, state):
        return self.step(self.p, x, state)


# Layers --------------------------------------------------------------------------------------------------------------


def layer(draw, rows=3, n_in=2, size=3, recurrent=True, fused=False, spiking=False):
    """Its parameters."""
    p = {}
    if fused:
        p["fused"] = draw.weight(rows, n_in + size, 0.9)
    else:
        p["w"] = draw.weight(rows, n_in, 1.5 if spiking else 1.0)
        p |= {"u": draw.weight(rows, size, 0.7)} if recurrent else {}
    return p | {"b": draw.vector(0.2, 0.6, rows) if spiking else draw.vector(-0.3, 0.3, rows)}


def current_of(p, x, h=None):
    """The input of a layer; `h`: what the recurrent weight reads, if there is one."""
    if "fused" in p:
        return p["fused"] @ jnp.concatenate([x, h]) + p["b"]
    if "gate" in p:
        h = jax.nn.sigmoid(p["gate"] @ h) * h
    current = p["w"] @ x
    return current + p["b"] if "u" not in p else current + p["u"] @ h + p["b"]


def leak(h, current, a=float(np.exp(-1 / 3))):
    return a * h + (1 - a) * current


def leaky(p, x, s, couple="none", read="new"):
    """What is read: the new state, the old one, or the input of the layer, with the old state or without."""
    current = current_of(p, x, s["h"])
    h = leak(COUPLINGS[couple](s["h"]), jnp.tanh(current))
    if read.startswith("op"):
        return jnp.tanh(current) + (s["h"] if read == "op and old" else 0), {"h": h}
    return p["out"] @ {"new": h, "old": s["h"]}[read], {"h": h}


def encoded(p, x, s):
    return leaky(p, jnp.tanh(p["mlp"] @ x), s)


def cascade(p, x, s):
    """Stages that low-pass each other; each reads the new value of the one before."""
    new, read = {}, current_of(p, x)
    for name, h in s.items():
        new[name] = read = leak(h, read)
    return p["out"] @ read, new


def delay(p, x, s):
    """A rate neuron that is driven by its own past: a buffer of past values, the newest first."""
    h = leak(s["past"][-1], jnp.tanh(current_of(p, x)))
    return p["out"] @ h, {"past": jnp.concatenate([h[None], s["past"][:-1]])}


def mingru(p, x, s, halves=lambda a: (a[: len(a) // 2], a[len(a) // 2 :])):
    z, candidate = halves(current_of(p, x, s["h"]))
    z = jax.nn.sigmoid(z)
    h = (1 - z) * s["h"] + z * jnp.tanh(candidate)
    return p["out"] @ h, {"h": h}


def lif(p, x, s):
    """The reset is by the spike of the old state."""
    z = spike(s["v"] - 0.5)
    v = leak(s["v"], 3 * current_of(p, x, z)) - 0.5 * z
    return p["out"] @ spike(v - 0.5), {"v": v}


def hard_reset(p, x, s):
    v = leak(s["v"], 3 * current_of(p, x))
    z = spike(v - 0.5)
    return p["out"] @ z, {"v": v * (1 - z), "z": z}


def alif(p, x, s):
    a = 0.8 * s["a"] + 0.2 * s["z"]
    v = leak(s["v"], 3 * current_of(p, x, s["z"]), jnp.exp(-1 / p["tau"]))
    z = spike(v - a * p["beta"] - p["threshold"])
    return p["out"] @ z, {"v": v - 0.5 * z, "a": a, "z": z}


def two_layers(p, x, s):
    """Of LIF neurons; those of the second have a state of their current, of which they read the new value."""
    v = leak(s["v"], 3 * current_of(p["first"], x, s["z"]))
    z = spike(v - 0.5)
    g = 0.6 * s["g"] + 0.5 * current_of(p["second"], z, s["z2"])
    v2 = leak(s["v2"], 3 * g)
    z2 = spike(v2 - 0.5)
    new = {"v": v - 0.5 * z, "z": z, "v2": v2 - 0.5 * z2, "z2": z2, "g": g}
    return p["out"] @ z2, new


def leaky_readout(step, p, x, s):
    y, new = step(p, x, s)
    y = 0.7 * s["r"] + y
    return y, new | {"r": y}


def conv(p, x, s):
    """A one-dimensional convolution into leaky neurons: one weight element is used at many positions."""
    current = jax.lax.conv_general_dilated(x[None, None], p["kernel"], (1,), "SAME")[0]
    h = 0.7 * s["h"] + jnp.tanh(current)
    return p["out"] @ h.ravel(), {"h": h}


def summed(p, x, s):
    """W h written as an element-wise product and a sum: nothing is cut, so D is dense and the trace exact."""
    h = 0.7 * s["h"] + 0.3 * jnp.tanh(p["w"] @ x + jnp.sum(p["u"] * s["h"][None], axis=1))
    return p["out"] @ h, {"h": h}


# Models with other states or inputs ----------------------------------------------------------------------------------


class Cell(eqx.Module):
    """A cell of Equinox and a readout of the first of its states."""

    cell: Any
    out: jax.Array
    n_in = 2

    def __init__(self, cell):
        self.cell, self.out = cell(2, 3, key=jax.random.key(0)), Draw(0).weight(2, 3)

    def init_state(self):
        zeros = jnp.zeros(self.cell.hidden_size)
        return (zeros, zeros) if isinstance(self.cell, eqx.nn.LSTMCell) else zeros

    def __call__(self, x, state):
        h, state = helpers.cell(self.cell, x, state)
        return self.out @ h, state


class Ring(eqx.Module):
    """A delay of three steps in a ring buffer: an integer state says where to write."""

    w: jax.Array
    out: jax.Array
    n_in = 2

    def __init__(self):
        draw = Draw(0)
        self.w, self.out = draw.weight(3, 2), draw.weight(2, 3)

    def init_state(self):
        return {"buffer": jnp.zeros((3, 3)), "i": jnp.zeros((), jnp.int32)}

    def __call__(self, x, state):
        buffer, i = state["buffer"], state["i"]
        h = 0.8 * buffer[(i + 1) % 3] + jnp.tanh(self.w @ x)
        return self.out @ h, {"buffer": buffer.at[i].set(h), "i": (i + 1) % 3}


class Embedding(eqx.Module):
    """A table of vectors that is read by a number, before a leaky layer."""

    table: jax.Array
    out: jax.Array
    n_in = 4

    def __init__(self):
        draw = Draw(0)
        self.table, self.out = draw.weight(4, 3), draw.weight(2, 3)

    def init_state(self):
        return jnp.zeros(3)

    def __call__(self, x, h):
        h = 0.7 * h + self.table[x]
        return self.out @ h, h


# Named models --------------------------------------------------------------------------------------------------------


def one(step, shapes=(("h", 3),), more=lambda draw: {}, out=True, **options):
    """A network of one layer, with `more` parameters, and a readout."""

    def make():
        draw = Draw(0)
        p = layer(draw, **options) | more(draw)
        return Network(p | ({"out": draw.weight(2, 3)} if out else {}), step, shapes)

    return make


def of_two_layers():
    draw = Draw(1)
    p = {"first": layer(draw, spiking=True), "second": layer(draw, 2, 3, 2, spiking=True)}
    shapes = ("v", 3), ("z", 3), ("v2", 2), ("z2", 2), ("g", 2), ("r", 2)
    return Network(p | {"out": draw.weight(2, 2)}, TWO_LAYERS, shapes)


def of_conv():
    draw = Draw(0)
    p = {"kernel": draw.weight(2, 3)[:, None], "out": draw.weight(2, 10)}
    return Network(p, conv, (("h", (2, 5)),), 5)


def of_summed():
    draw = Draw(0)
    p = {"w": draw.weight(3, 2), "u": draw.weight(3, 3, 0.7), "out": draw.weight(2, 3)}
    return Network(p, summed, (("h", 3),))


partial = functools.partial
V, Z, R = ("v", 3), ("z", 3), ("r", 2)
FORWARD = {"recurrent": False}
SPIKING = {"spiking": True}
TWO_LAYERS = partial(leaky_readout, two_layers)
GATE = lambda draw: {"gate": draw.weight(3, 3, 0.8)}
ADAPTATION = lambda draw: {
    "tau": draw.vector(1.0, 4.0, 3),
    "threshold": draw.vector(0.4, 0.7),
    "beta": draw.vector(0.1, 0.4),
}
NAMED = {
    "lif": one(lif, (V,), **SPIKING),
    "lif_feedforward": one(lif, (V,), **SPIKING, **FORWARD),
    "leaky_readout": one(partial(leaky_readout, lif), (V, R), **SPIKING, **FORWARD),
    "alif": one(partial(leaky_readout, alif), (V, ("a", 3), Z, R), ADAPTATION, **SPIKING),
    "mingru": one(
        partial(mingru, halves=partial(jnp.split, indices_or_sections=2)), rows=6, **FORWARD
    ),
    "mingru_recurrent": one(mingru, rows=6, fused=True),
    "delay": one(delay, (("past", (3, 3)),), **FORWARD),
    "two_layer_lif": of_two_layers,
    "cascade": one(cascade, (("h0", 3), ("h1", 3), ("h2", 3)), **FORWARD),
    "reset_gate": one(leaky, more=GATE),
    "permuted": one(partial(leaky, couple="permute"), **FORWARD),
    "sorted": one(partial(leaky, couple="sort"), **FORWARD),
    "cumulated": one(partial(leaky, couple="cumsum"), **FORWARD),
    "mean_free": one(partial(leaky, couple="mean_free"), **FORWARD),
    "mlp": one(encoded, more=lambda draw: {"mlp": draw.weight(3, 2)}, n_in=3, **FORWARD),
    "op_readout": one(partial(leaky, read="op"), out=False),
    "gated_op_readout": one(partial(leaky, read="op and old"), more=GATE, out=False),
    "old_readout": one(partial(leaky, read="old"), **FORWARD),
    "hard_reset_spike": one(hard_reset, (V, Z), **SPIKING, **FORWARD),
    "gru": lambda: Cell(eqx.nn.GRUCell),
    "lstm": lambda: Cell(eqx.nn.LSTMCell),
    "ring": Ring,
    "embedding": Embedding,
    "conv": of_conv,
    "summed": of_summed,
}
ALL_NAMED = tuple(NAMED)


def named(name):
    return NAMED[name]()


def data(model, T=5, B=None, seed=0):
    """Inputs and targets, with leading axes T and, where given, B."""
    rng = np.random.default_rng(seed + 1)
    lead = (T,) if B is None else (T, B)
    if isinstance(model, Embedding):
        xs = jnp.asarray(rng.integers(0, model.n_in, lead))
    else:
        xs = jnp.asarray(rng.normal(0.3, 1, (*lead, model.n_in)))
    x = xs[(0,) * len(lead)]
    y, _ = jax.eval_shape(model, x, model.init_state())
    return xs, jnp.asarray(rng.normal(0, 0.5, (*lead, *y.shape)))
