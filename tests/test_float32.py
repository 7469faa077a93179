"""Gradients in float32 at the sizes that people use: rounding is all that float64 does better."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.traces import Filtered
from tests import single
from tests.fuzz import grammar
from tests.marks import few
from tests.zoo.check import model, normal, squared, weights

W = 10


def parts(h, count):
    return h.reshape(count, -1)


NORMS = {
    "layer": lambda h: (h - h.mean()) * jax.lax.rsqrt(h.var() + 1e-3),
    "rms": lambda h: h * jax.lax.rsqrt((h * h).mean() + 1e-3),
    "group": lambda h: jax.vmap(NORMS["layer"])(parts(h, 2)).reshape(h.shape),
    "softmax": lambda h: len(h) * jax.nn.softmax(h),
    "length": lambda h: h / (1e-3 + jnp.sqrt((h * h).sum() + 1e-6)),
    "largest": lambda h: h / (1.0 + jnp.abs(h).max()),
    "mean": lambda h: h - h.mean(),
    "logsumexp": lambda h: h - jax.nn.logsumexp(h),
}
RULES = {
    "D-RTRL": etpc.D_RTRL(window=W),
    "step by step": etpc.D_RTRL(window=1),
    "full windows": etpc.D_RTRL(window=W, backprop="full"),
    "look-back": etpc.D_RTRL(window=W // 2, lookback=W),
    "RTRL": etpc.RTRL(window=W),
    "decay": etpc.ES_D_RTRL(decay=0.9, window=W),
    "rank": etpc.ES_D_RTRL(rank=2, window=W),
    "directions": etpc.CreditRTRL(q=2, rank=None, window=W),
    "SnAp": etpc.SnAp(1, window=W),
}


@dataclasses.dataclass(frozen=True)
class Normalised:
    """A leaky layer whose state is normalised, or a recurrent one."""

    norm: str
    recurrent: bool = False

    def parameters(self, size):
        p = {"leak": weights(size), "gain": 1 + 0.1 * weights(size, seed=3), "w": weights(size, 4)}
        return p | ({"r": weights(size, size, seed=4)} if self.recurrent else {})

    def step(self, p, x, h):
        drive = p["w"] @ x + (p["r"] @ jnp.tanh(h) if self.recurrent else 0)
        h = p["gain"] * NORMS[self.norm](jax.nn.sigmoid(p["leak"]) * h + jnp.tanh(drive))
        return h, h


def check_norm(norm, rule, size, batch, steps, recurrent=False):
    net = Normalised(norm, recurrent)
    xs, targets = normal(batch, 4, steps=steps), normal(batch, size, steps=steps, seed=1)
    start = 0.1 * weights(size, seed=9)
    found = single.errors(
        net.parameters(size), {rule: RULES[rule]}, xs, targets, start, net.step, squared
    )
    assert not single.wrong(found)
    return found


@pytest.mark.parametrize(
    ("norm", "rule"),
    few(
        [(norm, rule) for norm in NORMS for rule in RULES],
        ("layer", "D-RTRL"),
    ),
)
def test_states_that_are_normalised(norm, rule):
    """16 units, 64 examples, windows of 10 steps: B W H = 10,240."""
    recurrent = rule in ("RTRL", "directions", "SnAp", "look-back")
    check_norm(norm, rule, size=16, batch=64, steps=2 * W, recurrent=recurrent)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["D-RTRL", "step by step", "full windows", "RTRL", "rank"])
@pytest.mark.parametrize("norm", ["layer", "softmax"])
def test_a_million_numbers_in_a_window(norm, rule):
    check_norm(norm, rule, size=16, batch=8192, steps=2 * W)


class Stack(eqx.Module):
    """Two gated layers with a norm between them."""

    first: eqx.nn.GRUCell
    norm: eqx.nn.LayerNorm
    second: eqx.nn.GRUCell

    def __call__(self, x, state):
        a = self.first(x, state[0])
        b = self.second(self.norm(a), state[1])
        return b, (a, b)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch", [64, 1024])
def test_a_norm_between_two_layers(rule, batch):
    keys = jax.random.split(jax.random.key(0))
    net = Stack(
        eqx.nn.GRUCell(4, 8, key=keys[0]),
        eqx.nn.LayerNorm(8),
        eqx.nn.GRUCell(8, 8, key=keys[1]),
    )
    xs, targets = normal(batch, 4, steps=2 * W), normal(batch, 8, steps=2 * W, seed=1)
    start = (0.1 * weights(8), 0.1 * weights(8, seed=1))
    call = lambda model, x, state: model(x, state)
    assert not single.wrong(
        single.errors(net, {rule: RULES[rule]}, xs, targets, start, call, squared)
    )


LAYERS = (
    *("LIF", "ALIF", "GIF", "QIF", "EIF", "AdEx", "Izhikevich", "ResonateAndFire"),
    *("VanillaRNN", "IndRNN", "GRU", "MGU", "LSTM", "MinGRU", "MinLSTM", "LRU", "S5"),
    *("two layers of LIF", "GRU, wide readout"),
)
LAYER_RULES = ("D-RTRL", "step by step", "full windows", "decay", "rank")


def check_layer(name, rule, size, batch):
    from benchmarks import cells
    from benchmarks.network import loss

    net, xs, targets = cells.example(name, size, 2 * W, batch)
    call = lambda model, x, state: model(x, state)
    algos = {rule: RULES[rule]}
    assert not single.wrong(single.errors(net, algos, xs, targets, net.init_state(), call, loss))


@pytest.mark.slow
@pytest.mark.parametrize("rule", LAYER_RULES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name, rule):
    """64 units and 64 examples: B W H = 40,960."""
    check_layer(name, rule, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LIF", "GRU", "MinGRU"])
def test_layers_with_a_million_numbers_in_a_window(name):
    check_layer(name, "D-RTRL", 256, 400)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_drawn_models(seed):
    # not of indices of eight bits, of which JAX has a wrong derivative on CPUs
    kinds = [kind for kind in grammar.KINDS if "bytes" not in kind]
    program = grammar.random_program(np.random.default_rng(seed), kinds=kinds)
    net = grammar.DrawnModel(program)
    xs = grammar.data(program, 2 * W)
    batch = 1 + 10_000 // (W * max(1, len(jax.tree.leaves(net.init_state()))))
    xs = single.batches(xs, 2 * W, batch)
    targets = normal(batch, steps=2 * W, seed=1)
    call = lambda model, x, state: model(x, state)
    algos = {name: RULES[name] for name in ("D-RTRL", "full windows")}
    found = single.errors(net, algos, xs, targets, net.init_state(), call, squared)
    assert not single.wrong(found)


@model
def Cascade(x, state, into, leak, gain, out, slow):
    """A synapse and a membrane, of which half of the neurons have a gain of 1e-4, and a leaky readout."""
    g, v, r = state
    half = lambda pair: jnp.repeat(pair, len(v) // 2)
    g = slow[0] * g + into @ x
    v = half(leak) * v + half(gain) * g
    r = slow[1] * r + out @ jnp.tanh(v / jax.lax.stop_gradient(half(gain)))
    return r, (g, v, r)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [name for name in RULES if name != "directions"])
def test_filtered_inputs_with_small_gains(rule):
    """Which are not reduced: modes that are found from squares would be lost below a gain of about 3e-4."""
    pair = lambda *values: jnp.asarray(values, jnp.float64)
    net = Cascade(weights(16, 4), pair(0.9, 0.7), pair(1.0, 1e-4), weights(6, 16), pair(0.8, 0.9))
    xs, targets = normal(64, 4, steps=2 * W), normal(64, 6, steps=2 * W, seed=1)
    state = (jnp.zeros(16), jnp.zeros(16), jnp.zeros(6))
    call = lambda model, x, state: model(x, state)
    program = etpc.compile(net, RULES[rule], inputs=xs[0, 0], state=state)
    found = {op.path: isinstance(op.form, Filtered) for op in program.ops}
    assert found[".out"]
    assert found[".into"] or rule not in ("D-RTRL", "step by step", "full windows", "look-back")
    assert not single.wrong(
        single.errors(net, {rule: RULES[rule]}, xs, targets, state, call, squared)
    )
