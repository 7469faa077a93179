"""Models to test with, by name (`named`): networks that a `Spec` describes, and others.

A model is ``model(x, state) -> (y, new_state)`` with ``model.init_state()`` and ``model.n_in``. Its step is written
once, in ``step(x, state, ops)``: each use of a parameter goes through ``ops``, so that an oracle can cut and perturb
there. With `PLAIN` it is plain JAX.
"""

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import loss, spike  # noqa: F401

# Hooks ---------------------------------------------------------------------------------------------------------------


class Plain:
    """How a step uses its parameters: `w` depends on parameters alone and meets data `x` in `fn`."""

    def mix(self, name, fn, x, w):
        """A contraction, convolution or gather: linear in `w`."""
        return fn(x, w)

    def elem(self, name, fn, x, w):
        """An element-wise op."""
        return fn(x, w)

    def state(self, name, value):
        """A new state value, as soon as it is computed."""
        return value


class Marked(Plain):
    """Marks each weight where it is used; the only thing here that needs `etpc`."""

    def mix(self, name, fn, x, w):
        import etpc

        return fn(x, etpc.mark(w))

    elem = mix


PLAIN = Plain()


class Model(eqx.Module):
    def __call__(self, x, state):
        return self.step(x, state, PLAIN)


# Surrogate gradients: wide, so that the networks are alive ----------------------------------------------------------


@jax.custom_jvp
def spike_over(v, threshold):
    return (v > threshold).astype(v.dtype)


@spike_over.defjvp
def _(primals, tangents):
    v, threshold = primals
    out = (tangents[0] - tangents[1]) / (1 + (v - threshold) ** 2)
    return spike_over(v, threshold), out.astype(v.dtype)


@jax.custom_vjp
def spike_vjp(v):
    return (v > 0).astype(v.dtype)


spike_vjp.defvjp(lambda v: (spike_vjp(v), v), lambda v, g: (g / (1 + v**2),))

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
WEIGHTS = ("plain", "masked", "signed", "normalised", "low_rank")
CONTRACTIONS = {  # how the effective weight (O, I) is laid out, and used
    "w_x": (lambda w: w, lambda x, w: w @ x),
    "x_w": (lambda w: w.T, lambda x, w: x @ w),
    "einsum": (lambda w: w, lambda x, w: jnp.einsum("oi,i->o", w, x)),
    "dot_transposed": (lambda w: w.T, lambda x, w: jnp.dot(w.T, x)),
    "batched": (lambda w: w.T[None], lambda x, w: jnp.einsum("gi,gio->go", x[None], w)[0]),
}


def _ring(n):
    return (np.roll(np.eye(n), 1, 0) + np.roll(np.eye(n), -1, 0)) * (n > 1)


@dataclasses.dataclass(frozen=True)
class Layer:
    kind: Literal["leaky", "chain", "lif", "alif", "delay", "mingru"] = "leaky"
    size: int = 3
    recurrent: Literal["none", "separate", "fused", "gated"] = "separate"
    bias: bool = True
    tau: Literal["fixed", "neuron"] = "fixed"
    synapse: Literal["none", "new"] = (
        "none"  # a state of the current, of which the new value is read
    )
    couple: str = "none"
    split: Literal["split", "slice"] = "split"  # how the gates of one fused weight are read
    depth: int = 2  # stages of a chain, length of a delay line
    reset: Literal["soft", "hard", "late"] = "soft"  # late: by the spike of the old state


@dataclasses.dataclass(frozen=True)
class Spec:
    layers: tuple[Layer, ...] = (Layer(),)
    n_in: int = 2
    mlp: bool = False
    readout: Literal["new", "old", "leaky", "spike", "op", "op and old"] = "new"
    seed: int = 0


def build(spec: Spec) -> "Network":
    return Network(spec)


# Parameters ----------------------------------------------------------------------------------------------------------


class Draw:
    """Draws parameters in order, from one seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def weight(self, n_out, n_in, form="plain", scale=1.0):
        w = scale * self.rng.normal(size=(n_out, n_in)) / np.sqrt(n_in)
        if form == "low_rank":
            a, b = self.rng.normal(size=(n_out, 2)), self.rng.normal(size=(2, n_in))
            return {"a": jnp.asarray(a), "b": jnp.asarray(scale * b / np.sqrt(2 * n_in))}
        if form == "normalised":
            return {
                "w": jnp.asarray(w),
                "g": jnp.asarray(scale * self.rng.uniform(0.5, 1, (n_out, 1))),
            }
        return {"w": jnp.asarray(w)}

    def vector(self, n, low, high):
        return jnp.asarray(self.rng.uniform(low, high, () if n is None else (n,)))


def effective(p: dict, form):
    """The effective weight (O, I) of a form of weight; masks and signs are constants."""
    if form == "low_rank":
        return p["a"] @ p["b"]
    if form == "normalised":
        return p["g"] * p["w"] / jnp.sqrt(0.1 + jnp.sum(p["w"] ** 2, axis=1, keepdims=True))
    i = np.arange(p["w"].size).reshape(p["w"].shape)
    if form == "masked":
        return p["w"] * (i % 3 != 1)
    if form == "signed":
        return jnp.abs(p["w"]) * np.where(i % 4 == 2, -1.0, 1.0)
    return p["w"]


def layer_parameters(layer: Layer, n_in, draw: Draw):
    n, spiking = layer.size, layer.kind in SPIKING
    rows = 2 * n if layer.kind == "mingru" else n
    p = {}
    if layer.recurrent == "fused":
        p["w0"] = draw.weight(rows, n_in + n, "plain", 1.5 if spiking else 0.9)
    else:
        p["w0"] = draw.weight(rows, n_in, "plain", 1.5 if spiking else 1.0)
        if layer.recurrent != "none":
            p["u0"] = draw.weight(rows, n, "plain", 0.7)
    if layer.bias:
        p["b0"] = draw.vector(rows, 0.2, 0.6) if spiking else draw.vector(rows, -0.3, 0.3)
    if layer.recurrent == "gated":
        p["r"] = draw.weight(n, n, "plain", 0.8)
    if layer.tau != "fixed":
        p["tau"] = draw.vector(n, 1.0, 4.0)
    if layer.kind == "alif":
        p["threshold"] = draw.vector(None, 0.4, 0.7)
        p["beta"] = draw.vector(None, 0.1, 0.4)
    return p


# Layers: (p, layer, ops, x, old states) -> (new states, output, output of the last op) ------------------------------


class Scope:
    """`ops`, with one layer's name before each name."""

    def __init__(self, ops, prefix):
        self.ops, self.prefix = ops, prefix

    def mix(self, name, fn, x, w):
        return self.ops.mix(f"{self.prefix}.{name}", fn, x, w)

    def elem(self, name, fn, x, w):
        return self.ops.elem(f"{self.prefix}.{name}", fn, x, w)

    def state(self, name, value):
        return self.ops.state(f"{self.prefix}.{name}", value)


def add(x, b):
    return x + b


def times(x, w):
    return x * w


def matvec(x, w):
    return w @ x


def current_of(p, layer, ops, x, h):
    """The input of a layer; `h`: what the recurrent weight reads."""
    if layer.recurrent == "gated":
        h = jax.nn.sigmoid(ops.mix("r", matvec, h, p["r"]["w"])) * h
    if layer.recurrent == "fused":
        current = ops.mix("w0", matvec, jnp.concatenate([x, h]), p["w0"]["w"])
    else:
        current = ops.mix("w0", matvec, x, p["w0"]["w"])
        if layer.recurrent != "none":
            current = current + ops.mix("u0", matvec, h, p["u0"]["w"])
    return ops.elem("b0", add, current, p["b0"]) if layer.bias else current


def leak(p, layer, ops, name, h, current, couple=True):
    """h' = a f(h) + (1 - a) current, with a = exp(-1/tau)."""
    h = COUPLINGS[layer.couple](h) if couple else h
    if layer.tau == "fixed":
        a = float(np.exp(-1 / 3))
        return a * h + (1 - a) * current
    a = jnp.exp(-1 / p["tau"])
    return ops.elem(f"{name}.a", times, h, a) + ops.elem(f"{name}.1-a", times, current, 1 - a)


def synapse(layer, ops, current, old):
    """The current, or the new value of the state that low-passes it."""
    if layer.synapse == "none":
        return {}, current
    g = ops.state("g", 0.6 * old["g"] + 0.5 * current)
    return {"g": g}, g


def leaky(p, layer, ops, x, old):
    current = current_of(p, layer, ops, x, old["h"])
    new, current_read = synapse(layer, ops, current, old)
    h = ops.state("h", leak(p, layer, ops, "h", old["h"], jnp.tanh(current_read)))
    return new | {"h": h}, h, current


def chain(p, layer, ops, x, old):
    """Stages that low-pass each other; each reads the new value of the one before."""
    new, read = {}, (current := current_of(p, layer, ops, x, old[f"h{layer.depth - 1}"]))
    for i in range(layer.depth):
        name = f"h{i}"
        read = ops.state(name, leak(p, layer, ops, name, old[name], read, couple=i == 0))
        new[name] = read
    return new, read, current


def delay(p, layer, ops, x, old):
    """A rate neuron that is driven by its own past: a buffer of past values, the newest first."""
    current = current_of(p, layer, ops, x, old["past"][-1])
    h = leak(p, layer, ops, "h", old["past"][-1], jnp.tanh(current))
    h = ops.state("h", h)
    past = ops.state("past", jnp.concatenate([h[None], old["past"][:-1]]))
    return {"past": past}, h, current


def spiking(p, layer, ops, x, old):
    late = layer.reset == "late"
    adapt = layer.kind == "alif"

    def fire(name, v, a):
        if not adapt:
            return spike(v - 0.5)
        v = v - ops.elem(f"{name}.beta", times, a, p["beta"])
        return spike(ops.elem(f"{name}.threshold", lambda v, w: v - w, v, p["threshold"]))

    z_old = fire("old", old["v"], old.get("a")) if late else old["z"]
    current = current_of(p, layer, ops, x, z_old)
    new, read = synapse(layer, ops, current, old)
    if adapt:
        new["a"] = ops.state("a", 0.8 * old["a"] + 0.2 * z_old)
    v = leak(p, layer, ops, "v", old["v"], 3 * read)
    if late:
        new["v"] = ops.state("v", v - 0.5 * z_old)
        return new, fire("new", new["v"], new.get("a")), current
    z = fire("new", v, new.get("a"))
    if adapt or layer.recurrent != "none":  # else no step reads the last one: it is no hidden state
        z = ops.state("z", z)
    reset = {
        "soft": lambda: v - 0.5 * z,
        "hard": lambda: v * (1 - z),
    }[layer.reset]
    return new | {"v": ops.state("v", reset()), "z": z}, z, current


def mingru(p, layer, ops, x, old):
    current, n = current_of(p, layer, ops, x, old["h"]), layer.size
    z, candidate = jnp.split(current, 2) if layer.split == "split" else (current[:n], current[n:])
    z, h = jax.nn.sigmoid(z), COUPLINGS[layer.couple](old["h"])
    h = ops.state("h", (1 - z) * h + z * jnp.tanh(candidate))
    return {"h": h}, h, candidate


STEPS = dict(leaky=leaky, chain=chain, delay=delay, lif=spiking, alif=spiking, mingru=mingru)


def state_names(layer: Layer):
    """The layer's states, and the number of rows of each (0: a vector)."""
    names = {
        "chain": {f"h{i}": 0 for i in range(layer.depth)},
        "delay": {"past": layer.depth},
    }.get(layer.kind, {"h": 0})
    if layer.kind in SPIKING:
        names = {"v": 0} | ({"a": 0} if layer.kind == "alif" else {})
        names |= {} if layer.reset == "late" else {"z": 0}
    has_synapse = layer.synapse != "none" and layer.kind in ("leaky", *SPIKING)
    return names | ({"g": 0} if has_synapse else {})


def state_of_layer(layer: Layer, values: dict):
    return tuple(values[name] for name in state_names(layer))


def values_of_layer(layer: Layer, state):
    return dict(zip(state_names(layer), state, strict=True))


# The network ---------------------------------------------------------------------------------------------------------


class Network(Model):
    layers: list
    io: dict[str, Any]
    spec: Spec = eqx.field(static=True)

    def __init__(self, spec: Spec):
        draw = Draw(spec.seed)
        sizes = [3 if spec.mlp else spec.n_in, *(layer.size for layer in spec.layers)]
        pairs = zip(spec.layers, sizes[:-1], strict=True)
        self.layers = [layer_parameters(layer, n, draw) for layer, n in pairs]
        io = {"mlp": draw.weight(3, spec.n_in)["w"]} if spec.mlp else {}
        if not spec.readout.startswith("op"):
            io["out"] = draw.weight(2, sizes[-1])["w"]
        self.io = io
        self.spec = dataclasses.replace(spec, seed=0)  # the same program for every seed

    @property
    def n_in(self):
        return self.spec.n_in

    def init_state(self):
        def zeros(layer):
            n = layer.size
            return {k: jnp.zeros((d, n) if d else n) for k, d in state_names(layer).items()}

        layers = [state_of_layer(layer, zeros(layer)) for layer in self.spec.layers]
        return (*layers, jnp.zeros(2)) if self.spec.readout == "leaky" else tuple(layers)

    def step(self, x, state, ops):
        spec, new_state = self.spec, []
        if spec.mlp:
            x = jnp.tanh(ops.mix("mlp", matvec, x, self.io["mlp"]))
        for i, layer in enumerate(spec.layers):
            old = values_of_layer(layer, state[i])
            scope = Scope(ops, f"layer{i}")
            new, x, last_op = STEPS[layer.kind](self.layers[i], layer, scope, x, old)
            new_state.append(state_of_layer(layer, new))
        main = f"h{layer.depth - 1}" if layer.kind == "chain" else next(iter(state_names(layer)))
        main_old, main_new = (jnp.atleast_2d(values[main])[0] for values in (old, new))
        if spec.readout.startswith("op"):
            y = jnp.tanh(last_op[: layer.size])
            return y + main_old if spec.readout == "op and old" else y, tuple(new_state)
        read = {"old": main_old, "new": main_new}.get(spec.readout, x)
        y = ops.mix("out", matvec, read, self.io["out"])
        if spec.readout == "leaky":
            y = ops.state("y", 0.7 * state[-1] + y)
            new_state.append(y)
        return y, tuple(new_state)


# Models that a spec cannot say ---------------------------------------------------------------------------------------


class Gru(Model):
    """`eqx.nn.GRUCell` and a readout."""

    cell: eqx.nn.GRUCell
    out: jax.Array
    n_in: int = eqx.field(static=True)

    def __init__(self, n_in=2, n=3, seed=0):
        self.n_in, self.cell = n_in, eqx.nn.GRUCell(n_in, n, key=jax.random.key(seed))
        self.out = Draw(seed).weight(2, n)["w"]

    def init_state(self):
        return jnp.zeros(self.cell.hidden_size)

    def __call__(self, x, h):
        h = self.cell(x, h)
        return self.out @ h, h

    def step(self, x, h, ops):
        c, matvec = self.cell, lambda x, w: w @ x
        i = jnp.split(ops.elem("b", add, ops.mix("ih", matvec, x, c.weight_ih), c.bias), 3)
        g = jnp.split(ops.mix("hh", matvec, h, c.weight_hh), 3)
        reset, z = jax.nn.sigmoid(i[0] + g[0]), jax.nn.sigmoid(i[1] + g[1])
        new = jnp.tanh(i[2] + reset * ops.elem("b_n", add, g[2], c.bias_n))
        h = ops.state("h", new + z * (h - new))
        return ops.mix("out", matvec, h, self.out), h


class Lstm(Model):
    """`eqx.nn.LSTMCell` and a readout."""

    cell: eqx.nn.LSTMCell
    out: jax.Array
    n_in: int = eqx.field(static=True)

    def __init__(self, n_in=2, n=3, seed=0):
        self.n_in, self.cell = n_in, eqx.nn.LSTMCell(n_in, n, key=jax.random.key(seed))
        self.out = Draw(seed).weight(2, n)["w"]

    def init_state(self):
        return jnp.zeros(self.cell.hidden_size), jnp.zeros(self.cell.hidden_size)

    def __call__(self, x, state):
        state = self.cell(x, state)
        return self.out @ state[0], state

    def step(self, x, state, ops):
        cell, matvec, (h, c) = self.cell, lambda x, w: w @ x, state
        lin = ops.mix("ih", matvec, x, cell.weight_ih) + ops.mix("hh", matvec, h, cell.weight_hh)
        i, f, g, o = jnp.split(ops.elem("b", add, lin, cell.bias), 4)
        c = ops.state("c", jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g))
        h = ops.state("h", jax.nn.sigmoid(o) * jnp.tanh(c))
        return ops.mix("out", matvec, h, self.out), (h, c)


class Ring(Model):
    """A delay of d steps in a ring buffer: an integer state says where to write."""

    w: jax.Array
    out: jax.Array
    d: int = eqx.field(static=True)
    n_in: int = eqx.field(static=True)

    def __init__(self, n_in=2, n=3, d=3, seed=0):
        draw = Draw(seed)
        self.w, self.out = draw.weight(n, n_in)["w"], draw.weight(2, n)["w"]
        self.d, self.n_in = d, n_in

    def init_state(self):
        return {"buffer": jnp.zeros((self.d, len(self.w))), "i": jnp.zeros((), jnp.int32)}

    def step(self, x, state, ops):
        matvec, buffer, i = lambda x, w: w @ x, state["buffer"], state["i"]
        h = 0.8 * buffer[(i + 1) % self.d] + jnp.tanh(ops.mix("w", matvec, x, self.w))
        h = ops.state("h", h)
        buffer = ops.state("buffer", buffer.at[i].set(h))
        y = ops.mix("out", matvec, h, self.out)
        return y, {"buffer": buffer, "i": (i + 1) % self.d}


class Embedding(Model):
    """A table of vectors that is read by a number, before a leaky layer."""

    table: jax.Array
    out: jax.Array
    n_in: int = eqx.field(static=True)

    def __init__(self, n_in=4, n=3, seed=0):
        draw = Draw(seed)
        self.table, self.out, self.n_in = draw.weight(n_in, n)["w"], draw.weight(2, n)["w"], n_in

    def init_state(self):
        return jnp.zeros(self.table.shape[1])

    def step(self, x, h, ops):
        h = ops.state("h", 0.7 * h + ops.mix("table", lambda i, w: w[i], x, self.table))
        return ops.mix("out", lambda x, w: w @ x, h, self.out), h


class Conv(Model):
    """A one-dimensional convolution into leaky neurons: one weight element is used at many positions."""

    kernel: jax.Array
    out: jax.Array
    n_in: int = eqx.field(static=True)

    def __init__(self, n_in=5, channels=2, seed=0):
        draw = Draw(seed)
        self.kernel = draw.weight(channels, 3)["w"][:, None]
        self.out, self.n_in = draw.weight(2, channels * n_in)["w"], n_in

    def init_state(self):
        return jnp.zeros((len(self.kernel), self.n_in))

    def step(self, x, h, ops):
        def conv(x, w):
            return jax.lax.conv_general_dilated(x[None, None], w, (1,), "SAME")[0]

        h = ops.state("h", 0.7 * h + jnp.tanh(ops.mix("kernel", conv, x, self.kernel)))
        return ops.mix("out", lambda x, w: w @ x, h.ravel(), self.out), h


class Summed(Model):
    """W h written as an element-wise product and a sum: nothing is cut, so D is dense and the trace exact."""

    w: jax.Array
    u: jax.Array
    out: jax.Array
    n_in: int = eqx.field(static=True)

    def __init__(self, n_in=2, n=3, seed=0):
        draw = Draw(seed)
        self.w, self.u = draw.weight(n, n_in)["w"], draw.weight(n, n, scale=0.7)["w"]
        self.out, self.n_in = draw.weight(2, n)["w"], n_in

    def init_state(self):
        return jnp.zeros(len(self.w))

    def step(self, x, h, ops):
        current = ops.mix("w", lambda x, w: w @ x, x, self.w)
        current = current + jnp.sum(ops.elem("u", lambda h, u: u * h[None], h, self.u), axis=1)
        h = ops.state("h", 0.7 * h + 0.3 * jnp.tanh(current))
        return ops.mix("out", lambda x, w: w @ x, h, self.out), h


# Named models --------------------------------------------------------------------------------------------------------


def one(readout="new", **layer):
    return Spec((Layer(**layer),), readout=readout)


NAMED = {
    "lif": one(kind="lif", reset="late", readout="spike"),
    "lif_feedforward": one(kind="lif", reset="late", recurrent="none", readout="spike"),
    "leaky_readout": one(kind="lif", reset="late", recurrent="none", readout="leaky"),
    "alif": one(kind="alif", tau="neuron", readout="leaky"),
    "mingru": one(kind="mingru", recurrent="none", split="split"),
    "mingru_recurrent": one(kind="mingru", recurrent="fused", split="slice"),
    "delay": one(kind="delay", depth=3, recurrent="none"),
    "two_layer_lif": Spec(
        (Layer("lif", 3), Layer("lif", 2, synapse="new")), readout="leaky", seed=1
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
    "gru": Gru,
    "lstm": Lstm,
    "ring": Ring,
    "embedding": Embedding,
    "conv": Conv,
    "summed": Summed,
}


def named(name) -> Model:
    return CLASSES[name]() if name in CLASSES else build(NAMED[name])


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
