"""Models to test with, by name (`named`): networks that a `Spec` describes, and others.

A model is ``model(x, state) -> (y, new_state)`` with ``model.init_state()`` and ``model.n_in``.
"""

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tests import helpers
from tests.helpers import loss, spike  # noqa: F401

# Spec ----------------------------------------------------------------------------------------------------------------

SPIKING = ("lif", "alif")
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


@dataclasses.dataclass(frozen=True)
class Layer:
    kind: Literal["leaky", "chain", "lif", "alif", "delay", "mingru"] = "leaky"
    size: int = 3
    recurrent: Literal["none", "separate", "fused", "gated"] = "separate"
    synapse: bool = (
        False  # spiking neurons have a state of their current, of which they read the new value
    )
    couple: str = "none"  # of the states of a leaky layer
    split: Literal["split", "slice"] = "split"  # how the gates of one fused weight are read
    depth: int = 2  # stages of a chain, length of a delay line
    reset: Literal["soft", "hard", "late"] = "soft"  # late: by the spike of the old state


@dataclasses.dataclass(frozen=True)
class Spec:
    layers: tuple[Layer, ...] = (Layer(),)
    mlp: bool = False
    readout: Literal["new", "old", "leaky", "spike", "op", "op and old"] = "new"
    seed: int = 0


# Parameters ----------------------------------------------------------------------------------------------------------


class Draw:
    """Draws parameters in order, from one seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def weight(self, n_out, n_in, scale=1.0):
        return jnp.asarray(scale * self.rng.normal(size=(n_out, n_in)) / np.sqrt(n_in))

    def vector(self, low, high, *shape):
        return jnp.asarray(self.rng.uniform(low, high, shape))


def layer_parameters(layer: Layer, n_in, draw: Draw):
    n, spiking = layer.size, layer.kind in SPIKING
    rows = 2 * n if layer.kind == "mingru" else n
    p = {}
    if layer.recurrent == "fused":
        p["w0"] = draw.weight(rows, n_in + n, 0.9)
    else:
        p["w0"] = draw.weight(rows, n_in, 1.5 if spiking else 1.0)
        if layer.recurrent != "none":
            p["u0"] = draw.weight(rows, n, 0.7)
    p["b0"] = draw.vector(0.2, 0.6, rows) if spiking else draw.vector(-0.3, 0.3, rows)
    if layer.recurrent == "gated":
        p["r"] = draw.weight(n, n, 0.8)
    if layer.kind == "alif":
        p["tau"] = draw.vector(1.0, 4.0, n)
        p["threshold"] = draw.vector(0.4, 0.7)
        p["beta"] = draw.vector(0.1, 0.4)
    return p


# Layers: (p, layer, x, old states) -> (new states, output, output of the last op) ------------------------------------


def current_of(p, layer, x, h):
    """The input of a layer; `h`: what the recurrent weight reads."""
    if layer.recurrent == "gated":
        h = jax.nn.sigmoid(p["r"] @ h) * h
    if layer.recurrent == "fused":
        return p["w0"] @ jnp.concatenate([x, h]) + p["b0"]
    current = p["w0"] @ x
    if layer.recurrent != "none":
        current = current + p["u0"] @ h
    return current + p["b0"]


def leak(p, h, current):
    """h' = a h + (1 - a) current, with a = exp(-1/tau)."""
    a = jnp.exp(-1 / p["tau"]) if "tau" in p else float(np.exp(-1 / 3))
    return a * h + (1 - a) * current


def leaky(p, layer, x, old):
    current = current_of(p, layer, x, old["h"])
    h = leak(p, COUPLINGS[layer.couple](old["h"]), jnp.tanh(current))
    return {"h": h}, h, current


def chain(p, layer, x, old):
    """Stages that low-pass each other; each reads the new value of the one before."""
    new, read = {}, (current := current_of(p, layer, x, old[f"h{layer.depth - 1}"]))
    for i in range(layer.depth):
        new[f"h{i}"] = read = leak(p, old[f"h{i}"], read)
    return new, read, current


def delay(p, layer, x, old):
    """A rate neuron that is driven by its own past: a buffer of past values, the newest first."""
    current = current_of(p, layer, x, old["past"][-1])
    h = leak(p, old["past"][-1], jnp.tanh(current))
    return {"past": jnp.concatenate([h[None], old["past"][:-1]])}, h, current


def spiking(p, layer, x, old):
    late, new = layer.reset == "late", {}

    def fire(v, a):
        return spike(v - 0.5 if a is None else v - a * p["beta"] - p["threshold"])

    z_old = fire(old["v"], old.get("a")) if late else old["z"]
    read = current = current_of(p, layer, x, z_old)
    if layer.synapse:
        new["g"] = read = 0.6 * old["g"] + 0.5 * current
    if layer.kind == "alif":
        new["a"] = 0.8 * old["a"] + 0.2 * z_old
    v = leak(p, old["v"], 3 * read)
    if late:
        new["v"] = v - 0.5 * z_old
        return new, fire(new["v"], new.get("a")), current
    z = fire(v, new.get("a"))
    reset = {"soft": lambda: v - 0.5 * z, "hard": lambda: v * (1 - z)}[layer.reset]
    return new | {"v": reset(), "z": z}, z, current


def mingru(p, layer, x, old):
    current, n = current_of(p, layer, x, old["h"]), layer.size
    z, candidate = jnp.split(current, 2) if layer.split == "split" else (current[:n], current[n:])
    z = jax.nn.sigmoid(z)
    h = (1 - z) * old["h"] + z * jnp.tanh(candidate)
    return {"h": h}, h, candidate


STEPS = dict(leaky=leaky, chain=chain, delay=delay, lif=spiking, alif=spiking, mingru=mingru)


def state_names(layer: Layer):
    """The layer's states, and the number of rows of each (0: a vector)."""
    if layer.kind not in SPIKING:
        return {
            "chain": {f"h{i}": 0 for i in range(layer.depth)},
            "delay": {"past": layer.depth},
        }.get(layer.kind, {"h": 0})
    names = {"v": 0} | ({"a": 0} if layer.kind == "alif" else {})
    names |= {} if layer.reset == "late" else {"z": 0}
    return names | ({"g": 0} if layer.synapse else {})


def values_of_layer(layer: Layer, state):
    return dict(zip(state_names(layer), state, strict=True))


# The network ---------------------------------------------------------------------------------------------------------


class Network(eqx.Module):
    layers: list
    io: dict[str, Any]
    spec: Spec = eqx.field(static=True)
    n_in = 2

    def __init__(self, spec: Spec):
        draw = Draw(spec.seed)
        sizes = [3 if spec.mlp else self.n_in, *(layer.size for layer in spec.layers)]
        pairs = zip(spec.layers, sizes[:-1], strict=True)
        self.layers = [layer_parameters(layer, n, draw) for layer, n in pairs]
        io = {"mlp": draw.weight(3, self.n_in)} if spec.mlp else {}
        if not spec.readout.startswith("op"):
            io["out"] = draw.weight(2, sizes[-1])
        self.io = io
        self.spec = dataclasses.replace(spec, seed=0)  # the same program for every seed

    def init_state(self):
        def zeros(layer):
            n = layer.size
            return tuple(jnp.zeros((d, n) if d else n) for d in state_names(layer).values())

        layers = tuple(map(zeros, self.spec.layers))
        return (*layers, jnp.zeros(2)) if self.spec.readout == "leaky" else layers

    def __call__(self, x, state):
        spec, new_state = self.spec, []
        if spec.mlp:
            x = jnp.tanh(self.io["mlp"] @ x)
        for i, layer in enumerate(spec.layers):
            old = values_of_layer(layer, state[i])
            new, x, last_op = STEPS[layer.kind](self.layers[i], layer, x, old)
            new_state.append(tuple(new[name] for name in state_names(layer)))
        main = f"h{layer.depth - 1}" if layer.kind == "chain" else next(iter(state_names(layer)))
        main_old, main_new = (jnp.atleast_2d(values[main])[0] for values in (old, new))
        if spec.readout.startswith("op"):
            y = jnp.tanh(last_op[: layer.size])
            return y + main_old if spec.readout == "op and old" else y, tuple(new_state)
        read = {"old": main_old, "new": main_new}.get(spec.readout, x)
        y = self.io["out"] @ read
        if spec.readout == "leaky":
            y = 0.7 * state[-1] + y
            new_state.append(y)
        return y, tuple(new_state)


# Models that a spec cannot say ---------------------------------------------------------------------------------------


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


class Conv(eqx.Module):
    """A one-dimensional convolution into leaky neurons: one weight element is used at many positions."""

    kernel: jax.Array
    out: jax.Array
    n_in = 5

    def __init__(self):
        draw = Draw(0)
        self.kernel, self.out = draw.weight(2, 3)[:, None], draw.weight(2, 10)

    def init_state(self):
        return jnp.zeros((2, 5))

    def __call__(self, x, h):
        current = jax.lax.conv_general_dilated(x[None, None], self.kernel, (1,), "SAME")[0]
        h = 0.7 * h + jnp.tanh(current)
        return self.out @ h.ravel(), h


class Summed(eqx.Module):
    """W h written as an element-wise product and a sum: nothing is cut, so D is dense and the trace exact."""

    w: jax.Array
    u: jax.Array
    out: jax.Array
    n_in = 2

    def __init__(self):
        draw = Draw(0)
        self.w, self.u, self.out = draw.weight(3, 2), draw.weight(3, 3, 0.7), draw.weight(2, 3)

    def init_state(self):
        return jnp.zeros(3)

    def __call__(self, x, h):
        current = self.w @ x + jnp.sum(self.u * h[None], axis=1)
        h = 0.7 * h + 0.3 * jnp.tanh(current)
        return self.out @ h, h


# Named models --------------------------------------------------------------------------------------------------------


def one(readout="new", **layer):
    return Spec((Layer(**layer),), readout=readout)


NAMED = {
    "lif": one(kind="lif", reset="late", readout="spike"),
    "lif_feedforward": one(kind="lif", reset="late", recurrent="none", readout="spike"),
    "leaky_readout": one(kind="lif", reset="late", recurrent="none", readout="leaky"),
    "alif": one(kind="alif", readout="leaky"),
    "mingru": one(kind="mingru", recurrent="none", split="split"),
    "mingru_recurrent": one(kind="mingru", recurrent="fused", split="slice"),
    "delay": one(kind="delay", depth=3, recurrent="none"),
    "two_layer_lif": Spec(
        (Layer("lif", 3), Layer("lif", 2, synapse=True)), readout="leaky", seed=1
    ),
    "cascade": one(kind="chain", depth=3, recurrent="none"),
    "reset_gate": one(kind="leaky", recurrent="gated"),
    "permuted": one(couple="permute", recurrent="none"),
    "sorted": one(couple="sort", recurrent="none"),
    "cumulated": one(couple="cumsum", recurrent="none"),
    "mean_free": one(couple="mean_free", recurrent="none"),
    "mlp": Spec((Layer(recurrent="none"),), mlp=True),
    "op_readout": one(readout="op"),
    "gated_op_readout": one(recurrent="gated", readout="op and old"),
    "old_readout": one(readout="old", recurrent="none"),
    "hard_reset_spike": one(kind="lif", reset="hard", recurrent="none", readout="spike"),
}
CLASSES = {
    "gru": lambda: Cell(eqx.nn.GRUCell),
    "lstm": lambda: Cell(eqx.nn.LSTMCell),
    "ring": Ring,
    "embedding": Embedding,
    "conv": Conv,
    "summed": Summed,
}


def named(name):
    return CLASSES[name]() if name in CLASSES else Network(NAMED[name])


ALL_NAMED = (*NAMED, *CLASSES)


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
