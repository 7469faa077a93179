"""BPTT of any model, and D-RTRL of common cells, as one would write them by hand in JAX.

D-RTRL is the cell's own transition, and one product for each gradient.

A cell is a plain function of arrays, `step(weights, x, state) -> (y, state)`, for one example. Its rule is
`learn(weights, state, traces, x, target) -> (grads, state, traces, loss)` for a batch at one step, with the loss
`sum((y - target)**2)` averaged over the batch. All have a linear readout. A trace that belongs to inputs and
outputs has the axes of its weight, [B, O, I], one of a vector [B, O].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from etpc.surrogate import SuperSpike

Weights = dict[str, Array]
State = tuple[Array, ...]
Grads = dict[str, Array]

spike = SuperSpike()
LEAK, ADAPTATION, STRENGTH = 0.9, 0.98, 0.3
SCALE = 3.0
"""Of the input weights of spiking cells, so that they spike."""


def loss(y: Array, target: Array) -> Array:
    """The squared error of one example at one step."""
    return jnp.sum((y - target) ** 2)


def bptt(
    model: Any,
    xs: Array,
    targets: Array,
    loss: Callable[[Any, Any], Array],
    *,
    checkpoint: bool = False,
    unroll: int = 1,
) -> tuple[Array, Any]:
    """The loss of a batch of sequences [T, B, ...], summed over time, and its gradient: what every time is
    compared with. With `checkpoint`, each step is computed again in the backward pass; `unroll` steps are in the body
    of the loop."""
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def total(arrays: Any) -> Array:
        model = eqx.combine(arrays, static)

        def step(state: Any, data: tuple[Array, Array]) -> tuple[Any, Array]:
            x, target = data
            y, state = jax.vmap(model)(x, state)
            return state, jax.vmap(loss)(y, target).mean()

        batch = xs.shape[1]
        start = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape)), model.init_state())
        step = jax.checkpoint(step, prevent_cse=False) if checkpoint else step
        return jax.lax.scan(step, start, (xs, targets), unroll=unroll)[1].sum()

    return jax.value_and_grad(total)(arrays)


class Cell(NamedTuple):
    """A cell, its weights, and its rule by hand."""

    name: str
    weights: Callable[[Array, int, int, int], Weights]
    """From a key and the numbers of inputs, units and outputs."""
    state: Callable[[int], State]
    """From the number of units."""
    step: Callable[[Weights, Array, State], tuple[Array, State]]
    learn: Callable[..., tuple[Grads, State, Any, Array]]
    traces: Callable[[Weights, int, int], Any]
    """From the weights, the number of units and the batch size."""


# --- what the rules share ---


def normal(key: Array, *shape: int, scale: float = 1.0) -> Array:
    return scale * jax.random.normal(key, shape) / shape[-1] ** 0.5


def readout(weights: Weights, h: Array, target: Array) -> tuple[Array, Array, Array]:
    """The loss, its derivative by the readout's weights, and by what is read, [B, O]."""
    y = h @ weights["out"].T
    error = y - target
    signal = 2 * error / len(h)
    return (error**2).sum() / len(h), signal.T @ h, signal @ weights["out"]


def injected(decay: Array, trace: Array, factor: Array, x: Array) -> Array:
    """A trace [B, O, I] after a step: moved by `decay` [B, O], with `factor` [B, O] times `x` [B, I] added."""
    return decay[:, :, None] * trace + factor[:, :, None] * x[:, None, :]


def read(signal: Array, trace: Array) -> Array:
    """The gradient [O, I] of weights with a trace [B, O, I]: a product for each example, which XLA puts into one
    loop; it takes two to six times longer for a sum over the leading axis or an einsum."""
    terms = [s[:, None] * eps for s, eps in zip(signal, trace, strict=True)]
    return functools.reduce(jnp.add, terms)


def zeros(batch: int, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
    return tuple(jnp.zeros((batch, *shape)) for shape in shapes)


# --- recurrent trace units: two real states a unit, and a ReLU that reads them ---


def rtu_weights(key: Array, inputs: int, units: int, outputs: int) -> Weights:
    keys = jax.random.split(key, 5)
    return {
        "nu": jnp.log(-jnp.log(jax.random.uniform(keys[0], (units,), minval=0.8, maxval=0.99))),
        "theta": jax.random.uniform(keys[1], (units,), maxval=jnp.pi / 4),
        "w1": normal(keys[2], units, inputs),
        "w2": normal(keys[3], units, inputs),
        "out": normal(keys[4], outputs, 2 * units),
    }


def rtu_transition(weights: Weights) -> tuple[Array, Array, Array]:
    r = jnp.exp(-jnp.exp(weights["nu"]))
    return r * jnp.cos(weights["theta"]), r * jnp.sin(weights["theta"]), jnp.sqrt(1 - r**2)


def rtu_step(weights: Weights, x: Array, state: State) -> tuple[Array, State]:
    a, b = state
    c, s, gain = rtu_transition(weights)
    new = (c * a - s * b + gain * (weights["w1"] @ x), c * b + s * a + gain * (weights["w2"] @ x))
    return weights["out"] @ jax.nn.relu(jnp.concatenate(new)), new


def rtu_traces(weights: Weights, units: int, batch: int) -> Any:
    inputs = weights["w1"].shape[1]
    by_weight = zeros(batch, *[(units, inputs)] * 4)
    return by_weight, zeros(batch, *[(units,)] * 6)


def rtu_learn(weights: Weights, state: State, traces: Any, x: Array, target: Array):
    (c, s, gain), pull = jax.vjp(rtu_transition, weights)
    (a, b), (by_weight, by_vector) = state, traces
    w1x, w2x = x @ weights["w1"].T, x @ weights["w2"].T
    new = (c * a - s * b + gain * w1x, c * b + s * a + gain * w2x)
    h = jnp.concatenate(new, 1)
    error, out, by_h = readout(weights, jax.nn.relu(h), target)
    bars = by_h * (h > 0)
    bar_a, bar_b = jnp.split(bars, 2, 1)
    a1, b1, a2, b2 = by_weight  # of the states a and b, by w1 and by w2
    added, over = gain[:, None] * x[:, None, :], (slice(None), None)
    a1, b1 = c[over] * a1 - s[over] * b1 + added, c[over] * b1 + s[over] * a1
    a2, b2 = c[over] * a2 - s[over] * b2, c[over] * b2 + s[over] * a2 + added
    ac, bc, as_, bs, ag, bg = by_vector  # by the cosine, the sine and the gain
    ac, bc = c * ac - s * bc + a, c * bc + s * ac + b
    as_, bs = c * as_ - s * bs - b, c * bs + s * as_ + a
    ag, bg = c * ag - s * bg + w1x, c * bg + s * ag + w2x
    total = lambda of_a, of_b: (bar_a * of_a + bar_b * of_b).sum(0)
    (grads,) = pull((total(ac, bc), total(as_, bs), total(ag, bg)))
    grads["w1"] = read(bar_a, a1) + read(bar_b, b1)
    grads["w2"] = read(bar_a, a2) + read(bar_b, b2)
    grads["out"] = out
    return grads, new, ((a1, b1, a2, b2), (ac, bc, as_, bs, ag, bg)), error


# --- linear recurrent units: a complex diagonal recurrence, read linearly ---


def lru_step(weights: Weights, x: Array, state: State) -> tuple[Array, State]:
    (h,) = state
    c, s, gain = rtu_transition(weights)
    w = jax.lax.complex(weights["w1"], weights["w2"])
    h = jax.lax.complex(c, s) * h + gain * (w @ x)
    return weights["out"] @ jnp.concatenate([h.real, h.imag]), (h,)


def lru_traces(weights: Weights, units: int, batch: int) -> Any:
    by_weight, by_vector = zeros(batch, (units, weights["w1"].shape[1]), (units,))
    complex_zeros = lambda a: jax.lax.complex(a, a)
    return complex_zeros(by_weight), complex_zeros(by_vector), complex_zeros(by_vector)


def lru_learn(weights: Weights, state: State, traces: Any, x: Array, target: Array):
    (c, s, gain), pull = jax.vjp(rtu_transition, weights)
    ((h,), (by_weight, by_decay, by_gain)) = state, traces
    decay = jax.lax.complex(c, s)
    wx = jax.lax.complex(x @ weights["w1"].T, x @ weights["w2"].T)
    new = decay * h + gain * wx
    error, out, by_h = readout(weights, jnp.concatenate([new.real, new.imag], 1), target)
    bar = jax.lax.complex(*jnp.split(by_h, 2, 1))
    by_weight = decay[:, None] * by_weight + gain[:, None] * x[:, None, :]
    by_decay, by_gain = decay * by_decay + h, decay * by_gain + wx
    of_decay = (bar.conj() * by_decay).sum(0)
    (grads,) = pull((of_decay.real, -of_decay.imag, (bar.conj() * by_gain).real.sum(0)))
    of_w = read(bar.conj(), by_weight)
    grads |= {"w1": of_w.real, "w2": -of_w.imag, "out": out}
    return grads, (new,), (by_weight, by_decay, by_gain), error


# --- minimal gated recurrent units: gates that read the input alone ---


def mingru_weights(key: Array, inputs: int, units: int, outputs: int) -> Weights:
    keys = jax.random.split(key, 3)
    return {
        "gate": normal(keys[0], units, inputs),
        "gate_bias": jnp.zeros(units),
        "value": normal(keys[1], units, inputs),
        "value_bias": jnp.zeros(units),
        "out": normal(keys[2], outputs, units),
    }


def mingru_step(weights: Weights, x: Array, state: State) -> tuple[Array, State]:
    (h,) = state
    z = jax.nn.sigmoid(weights["gate"] @ x + weights["gate_bias"])
    h = (1 - z) * h + z * (weights["value"] @ x + weights["value_bias"])
    return weights["out"] @ h, (h,)


def mingru_traces(weights: Weights, units: int, batch: int) -> Any:
    return zeros(batch, *[(units, weights["gate"].shape[1])] * 2, *[(units,)] * 2)


def mingru_learn(weights: Weights, state: State, traces: Any, x: Array, target: Array):
    ((h,), (gate, value, gate_bias, value_bias)) = state, traces
    z = jax.nn.sigmoid(x @ weights["gate"].T + weights["gate_bias"])
    candidate = x @ weights["value"].T + weights["value_bias"]
    new = (1 - z) * h + z * candidate
    error, out, bar = readout(weights, new, target)
    decay, of_gate = 1 - z, (candidate - h) * z * (1 - z)
    gate, value = injected(decay, gate, of_gate, x), injected(decay, value, z, x)
    gate_bias, value_bias = decay * gate_bias + of_gate, decay * value_bias + z
    grads = {
        "gate": read(bar, gate),
        "value": read(bar, value),
        "gate_bias": (bar * gate_bias).sum(0),
        "value_bias": (bar * value_bias).sum(0),
        "out": out,
    }
    return grads, (new,), (gate, value, gate_bias, value_bias), error


# --- leaky integrate-and-fire neurons, and the same with an adaptive threshold ---


def lif_weights(key: Array, inputs: int, units: int, outputs: int) -> Weights:
    keys = jax.random.split(key, 3)
    return {
        "in": normal(keys[0], units, inputs, scale=SCALE),
        "rec": normal(keys[1], units, units),
        "bias": jnp.zeros(units),
        "out": normal(keys[2], outputs, units),
    }


def lif_step(weights: Weights, x: Array, state: State) -> tuple[Array, State]:
    (v,) = state
    z = spike(v - 1)
    v = LEAK * v - z + weights["in"] @ x + weights["rec"] @ z + weights["bias"]
    return weights["out"] @ spike(v - 1), (v,)


def lif_traces(weights: Weights, units: int, batch: int) -> Any:
    inputs = weights["in"].shape[1]
    return zeros(batch, (units, inputs), (units, units), (units,))


def lif_learn(weights: Weights, state: State, traces: Any, x: Array, target: Array):
    ((v,), (of_in, of_rec, of_bias)) = state, traces
    z, slope = spike_and_slope(v - 1)
    new = LEAK * v - z + x @ weights["in"].T + z @ weights["rec"].T + weights["bias"]
    z_new, slope_new = spike_and_slope(new - 1)
    error, out, by_z = readout(weights, z_new, target)
    bar, decay = by_z * slope_new, LEAK - slope
    one = jnp.ones_like(decay)
    of_in, of_rec = injected(decay, of_in, one, x), injected(decay, of_rec, one, z)
    of_bias = decay * of_bias + 1
    grads = {"in": read(bar, of_in), "rec": read(bar, of_rec), "bias": (bar * of_bias).sum(0)}
    return {**grads, "out": out}, (new,), (of_in, of_rec, of_bias), error


def spike_and_slope(v: Array) -> tuple[Array, Array]:
    """The spikes of potentials, and their surrogate derivative."""
    return jax.jvp(spike, (v,), (jnp.ones_like(v),))


def alif_step(weights: Weights, x: Array, state: State) -> tuple[Array, State]:
    v, a = state
    z = spike(v - 1 - STRENGTH * a)
    v = LEAK * v - z + weights["in"] @ x + weights["rec"] @ z + weights["bias"]
    a = ADAPTATION * a + z
    return weights["out"] @ spike(v - 1 - STRENGTH * a), (v, a)


def alif_traces(weights: Weights, units: int, batch: int) -> Any:
    return lif_traces(weights, units, batch), lif_traces(weights, units, batch)


def alif_learn(weights: Weights, state: State, traces: Any, x: Array, target: Array):
    ((v, a), (of_v, of_a)) = state, traces
    z, slope = spike_and_slope(v - 1 - STRENGTH * a)
    v_new = LEAK * v - z + x @ weights["in"].T + z @ weights["rec"].T + weights["bias"]
    a_new = ADAPTATION * a + z
    z_new, slope_new = spike_and_slope(v_new - 1 - STRENGTH * a_new)
    error, out, by_z = readout(weights, z_new, target)
    bar_v, bar_a = by_z * slope_new, -STRENGTH * by_z * slope_new
    vv, va = LEAK - slope, STRENGTH * slope
    av, aa = slope, ADAPTATION - STRENGTH * slope

    def moved(of_v: Array, of_a: Array, added: Array) -> tuple[Array, Array]:
        over = (..., None) if of_v.ndim == 3 else (...,)
        return (
            vv[over] * of_v + va[over] * of_a + added,
            av[over] * of_v + aa[over] * of_a,
        )

    new = [
        moved(of_v[0], of_a[0], x[:, None, :]),
        moved(of_v[1], of_a[1], z[:, None, :]),
        moved(of_v[2], of_a[2], jnp.ones_like(v)),
    ]
    of_v, of_a = (tuple(part) for part in zip(*new, strict=True))
    grads = {
        "in": read(bar_v, of_v[0]) + read(bar_a, of_a[0]),
        "rec": read(bar_v, of_v[1]) + read(bar_a, of_a[1]),
        "bias": (bar_v * of_v[2] + bar_a * of_a[2]).sum(0),
        "out": out,
    }
    return grads, (v_new, a_new), (of_v, of_a), error


# --- generalised integrate-and-fire neurons: two currents that a spike sets off, and a threshold that follows ---

KEPT, SET_OFF = (0.8, 0.95), (0.5, -0.4)
"""Of the two currents: what a step keeps, and what a spike adds to the half that it leaves."""
FOLLOWS, RAISED = 0.05, 0.3
"""How the threshold follows the potential, and by how much a spike raises it."""


def gif_state(units: int) -> State:
    return (*(jnp.zeros(units),) * 3, jnp.ones(units))


def gif_step(weights: Weights, x: Array, state: State) -> tuple[Array, State]:
    v, one, two, threshold = state
    z = spike(v - threshold)
    reset = v - z
    one, two = one + z * (SET_OFF[0] - 0.5 * one), two + z * (SET_OFF[1] - 0.5 * two)
    v = LEAK * reset + one + two + weights["in"] @ x + weights["rec"] @ z + weights["bias"]
    threshold = LEAK * (threshold + RAISED * z) + (1 - LEAK) + FOLLOWS * reset
    new = v, KEPT[0] * one, KEPT[1] * two, threshold
    return weights["out"] @ spike(v - threshold), new


def gif_traces(weights: Weights, units: int, batch: int) -> Any:
    return (lif_traces(weights, units, batch),) * 4


def gif_learn(weights: Weights, state: State, traces: Any, x: Array, target: Array):
    v, *currents, threshold = state
    z, slope = spike_and_slope(v - threshold)
    reset = v - z
    one, two = (i + z * (a - 0.5 * i) for i, a in zip(currents, SET_OFF, strict=True))
    v_new = LEAK * reset + one + two + x @ weights["in"].T + z @ weights["rec"].T + weights["bias"]
    threshold_new = LEAK * (threshold + RAISED * z) + (1 - LEAK) + FOLLOWS * reset
    z_new, slope_new = spike_and_slope(v_new - threshold_new)
    error, out, by_z = readout(weights, z_new, target)
    bar = by_z * slope_new  # of the potential; that of the threshold is its negative
    left, first, second = (
        1 - 0.5 * z,
        *(a - 0.5 * i for i, a in zip(currents, SET_OFF, strict=True)),
    )

    def moved(old: tuple[Array, ...], added: Array) -> tuple[Array, ...]:
        over = (..., None) if old[0].ndim == 3 else (...,)
        of_v, of_one, of_two, of_threshold = old
        of_z = slope[over] * (of_v - of_threshold)
        of_reset = of_v - of_z
        of_one = left[over] * of_one + first[over] * of_z
        of_two = left[over] * of_two + second[over] * of_z
        return (
            LEAK * of_reset + of_one + of_two + added,
            KEPT[0] * of_one,
            KEPT[1] * of_two,
            LEAK * (of_threshold + RAISED * of_z) + FOLLOWS * of_reset,
        )

    added = x[:, None, :], z[:, None, :], jnp.ones_like(v)
    by_weight = [moved(old, a) for old, a in zip(zip(*traces, strict=True), added, strict=True)]
    of_in, of_rec, of_bias = (of_v - of_threshold for of_v, _, _, of_threshold in by_weight)
    grads = {"in": read(bar, of_in), "rec": read(bar, of_rec), "bias": (bar * of_bias).sum(0)}
    new = v_new, KEPT[0] * one, KEPT[1] * two, threshold_new
    return {**grads, "out": out}, new, tuple(zip(*by_weight, strict=True)), error


# --- gated recurrent units and long short-term memory, whose matrices of old states are cut ---


GRU_GATES = ("reset", "update", "new")
LSTM_GATES = ("input", "forget", "value", "output")


def gated_weights(
    gates: Sequence[str], key: Array, inputs: int, units: int, outputs: int
) -> Weights:
    keys = iter(jax.random.split(key, 2 * len(gates) + 1))
    weights = {f"in_{n}": normal(next(keys), units, inputs) for n in gates}
    weights |= {f"rec_{n}": normal(next(keys), units, units) for n in gates}
    weights |= {f"bias_{n}": jnp.zeros(units) for n in gates}
    return {**weights, "out": normal(next(keys), outputs, units)}


def gated_traces(gates: Sequence[str], weights: Weights, units: int, batch: int) -> Any:
    inputs = weights[f"in_{gates[0]}"].shape[1]
    traces = {f"in_{n}": jnp.zeros((batch, units, inputs)) for n in gates}
    traces |= {f"rec_{n}": jnp.zeros((batch, units, units)) for n in gates}
    return traces | {f"bias_{n}": jnp.zeros((batch, units)) for n in gates}


def gated_grads(
    traces: Any,
    decay: Array,
    factors: dict[str, tuple[Array, Array]],
    bar: Array,
    x: Array,
    h: Array,
) -> tuple[Any, Grads]:
    """The traces of gates after a step, and the gradients that they give with the credit `bar` [B, O].

    `factors` has, for each gate, the immediate Jacobian by what the input adds to it and by what the old
    output adds, [B, O] each.
    """
    after: dict[str, Array] = {}
    grads: Grads = {}
    for name, (of_in, of_rec) in factors.items():
        after[f"in_{name}"] = injected(decay, traces[f"in_{name}"], of_in, x)
        after[f"rec_{name}"] = injected(decay, traces[f"rec_{name}"], of_rec, h)
        after[f"bias_{name}"] = decay * traces[f"bias_{name}"] + of_in
        grads[f"in_{name}"] = read(bar, after[f"in_{name}"])
        grads[f"rec_{name}"] = read(bar, after[f"rec_{name}"])
        grads[f"bias_{name}"] = (bar * after[f"bias_{name}"]).sum(0)
    return after, grads


def gru_step(weights: Weights, x: Array, state: State) -> tuple[Array, State]:
    (h,) = state
    into = lambda n: weights[f"in_{n}"] @ x + weights[f"bias_{n}"]
    r = jax.nn.sigmoid(into("reset") + weights["rec_reset"] @ h)
    z = jax.nn.sigmoid(into("update") + weights["rec_update"] @ h)
    n = jnp.tanh(into("new") + r * (weights["rec_new"] @ h))
    h = (1 - z) * n + z * h
    return weights["out"] @ h, (h,)


def gru_learn(weights: Weights, state: State, traces: Any, x: Array, target: Array):
    (h,) = state
    into = lambda n: x @ weights[f"in_{n}"].T + weights[f"bias_{n}"]
    r = jax.nn.sigmoid(into("reset") + h @ weights["rec_reset"].T)
    z = jax.nn.sigmoid(into("update") + h @ weights["rec_update"].T)
    recurrent = h @ weights["rec_new"].T
    n = jnp.tanh(into("new") + r * recurrent)
    new = (1 - z) * n + z * h
    error, out, bar = readout(weights, new, target)
    of_new = (1 - z) * (1 - n**2)
    of_reset, of_update = of_new * recurrent * r * (1 - r), (h - n) * z * (1 - z)
    factors = {
        "reset": (of_reset, of_reset),
        "update": (of_update, of_update),
        "new": (of_new, of_new * r),
    }
    after, grads = gated_grads(traces, z, factors, bar, x, h)
    return {**grads, "out": out}, (new,), after, error


def lstm_step(weights: Weights, x: Array, state: State) -> tuple[Array, State]:
    h, c = state
    gate = lambda n: weights[f"in_{n}"] @ x + weights[f"rec_{n}"] @ h + weights[f"bias_{n}"]
    i, f, o = (jax.nn.sigmoid(gate(n)) for n in ("input", "forget", "output"))
    c = f * c + i * jnp.tanh(gate("value"))
    h = o * jnp.tanh(c)
    return weights["out"] @ h, (h, c)


def lstm_learn(weights: Weights, state: State, traces: Any, x: Array, target: Array):
    h, c = state
    gate = lambda n: x @ weights[f"in_{n}"].T + h @ weights[f"rec_{n}"].T + weights[f"bias_{n}"]
    i, f, o = (jax.nn.sigmoid(gate(n)) for n in ("input", "forget", "output"))
    g = jnp.tanh(gate("value"))
    c_new = f * c + i * g
    squashed = jnp.tanh(c_new)
    h_new = o * squashed
    error, out, by_h = readout(weights, h_new, target)
    bar = by_h * o * (1 - squashed**2)
    factors = {"input": g * i * (1 - i), "forget": c * f * (1 - f), "value": i * (1 - g**2)}
    both = {name: (factor, factor) for name, factor in factors.items()}
    after, grads = gated_grads(traces, f, both, bar, x, h)
    now = by_h * squashed * o * (1 - o)  # the output gate acts in its own step alone
    grads |= {"in_output": now.T @ x, "rec_output": now.T @ h, "bias_output": now.sum(0)}
    grads["out"] = out
    return grads, (h_new, c_new), after, error


one_state = lambda units: (jnp.zeros(units),)
two_states = lambda units: (jnp.zeros(units), jnp.zeros(units))
complex_state = lambda units: (jnp.zeros(units, complex),)

CELLS = (
    Cell("RTU", rtu_weights, two_states, rtu_step, rtu_learn, rtu_traces),
    Cell("LRU", rtu_weights, complex_state, lru_step, lru_learn, lru_traces),
    Cell("MinGRU", mingru_weights, one_state, mingru_step, mingru_learn, mingru_traces),
    Cell("LIF", lif_weights, one_state, lif_step, lif_learn, lif_traces),
    Cell("ALIF", lif_weights, two_states, alif_step, alif_learn, alif_traces),
    Cell("GIF", lif_weights, gif_state, gif_step, gif_learn, gif_traces),
    Cell(
        *("GRU", functools.partial(gated_weights, GRU_GATES), one_state, gru_step, gru_learn),
        functools.partial(gated_traces, GRU_GATES),
    ),
    Cell(
        *("LSTM", functools.partial(gated_weights, LSTM_GATES), two_states, lstm_step, lstm_learn),
        functools.partial(gated_traces, LSTM_GATES[:3]),
    ),
)
