"""Gradients in float32 at the sizes that people use: rounding is all that float64 does better."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from etpc.forms import Filtered
from tests import single
from tests.fuzz import grammar
from tests.helpers import call
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
    "SnAp": etpc.SnAp(1, window=1),
    "KF-RTRL": etpc.KFRTRL(window=W),
    "UORO": etpc.UORO(window=W),
    "fixed leak": etpc.RFLO(0.8, "symmetric", window=W),
    "presynaptic": etpc.OTTT(0.8, window=W),
    "low-passed": etpc.EProp(kappa=0.8, window=W),
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


FOR_RECURRENT = ("look-back", "RTRL", "directions", "SnAp", "KF-RTRL", "UORO")
"""Rules that only differ from others where influence passes from unit to unit."""
FOR_ANY = tuple(name for name in RULES if name not in FOR_RECURRENT)


def chosen(names):
    return {name: RULES[name] for name in names}


def check_norm(norm, rules, size, batch, steps):
    net = Normalised(norm, recurrent=rules == FOR_RECURRENT)
    xs, targets = normal(batch, 4, steps=steps), normal(batch, size, steps=steps, seed=1)
    start = 0.1 * weights(size, seed=9)
    found = single.errors(
        net.parameters(size), chosen(rules), xs, targets, start, net.step, squared
    )
    assert not single.wrong(found)


@pytest.mark.parametrize("norm", few(["layer", "softmax"], "layer"))
def test_states_that_are_normalised(norm):
    """16 units, 64 examples, windows of 10 steps: B W H = 10,240."""
    check_norm(norm, ("D-RTRL",), size=16, batch=64, steps=2 * W)


@pytest.mark.slow
@pytest.mark.parametrize("rules", [FOR_ANY, FOR_RECURRENT], ids=["any", "recurrent"])
@pytest.mark.parametrize("norm", NORMS)
def test_states_that_are_normalised_under_every_rule(norm, rules):
    check_norm(norm, rules, size=16, batch=64, steps=2 * W)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "softmax"])
def test_a_million_numbers_in_a_window(norm):
    rules = ("D-RTRL", "step by step", "full windows", "rank")
    check_norm(norm, rules, size=16, batch=6400, steps=2 * W)


@model
def Stack(x, state, first, norm, second):
    """Two gated layers with a norm between them."""
    a = first(x, state[0])
    b = second(norm(a), state[1])
    return b, (a, b)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [64, 1024])
def test_a_norm_between_two_layers(batch):
    keys = jax.random.split(jax.random.key(0))
    net = Stack(
        eqx.nn.GRUCell(4, 8, key=keys[0]), eqx.nn.LayerNorm(8), eqx.nn.GRUCell(8, 8, key=keys[1])
    )
    xs, targets = normal(batch, 4, steps=2 * W), normal(batch, 8, steps=2 * W, seed=1)
    start = (0.1 * weights(8), 0.1 * weights(8, seed=1))
    assert not single.wrong(single.errors(net, RULES, xs, targets, start, call, squared))


LAYERS = (
    *("LIF", "ALIF", "GIF", "QIF", "EIF", "AdEx", "Izhikevich", "ResonateAndFire"),
    *("VanillaRNN", "IndRNN", "GRU", "MGU", "LSTM", "MinGRU", "MinLSTM", "LRU", "S5"),
    *("two layers of LIF", "GRU, wide readout"),
)


def check_layer(name, rules, size, batch):
    from benchmarks import cells
    from benchmarks.network import loss

    net, xs, targets = cells.example(name, size, 2 * W, batch)
    state = net.init_state()
    assert not single.wrong(single.errors(net, chosen(rules), xs, targets, state, call, loss))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name):
    """64 units and 64 examples: B W H = 40,960."""
    check_layer(name, FOR_ANY, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("linear", [True, False])
def test_recurrent_trace_units(linear):
    net = nn.RTU(4, 64, linear, dtype=jnp.float64, key=jax.random.key(0))
    xs, targets = normal(64, 4, steps=2 * W), normal(64, 128, steps=2 * W, seed=1)
    found = single.errors(net, chosen(FOR_ANY), xs, targets, net.init_state(), call, squared)
    assert not single.wrong(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LIF", "GRU", "MinGRU"])
def test_layers_with_a_million_numbers_in_a_window(name):
    check_layer(name, ("D-RTRL",), 256, 400)


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
    algos = chosen(("D-RTRL", "full windows"))
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
def test_filtered_inputs_with_small_gains_under_every_rule():
    """Which are not reduced: modes that are found from squares would be lost below a gain of about 3e-4."""
    rules = [name for name in RULES if name != "directions"]
    pair = lambda *values: jnp.asarray(values, jnp.float64)
    net = Cascade(weights(16, 4), pair(0.9, 0.7), pair(1.0, 1e-4), weights(6, 16), pair(0.8, 0.9))
    xs, targets = normal(64, 4, steps=2 * W), normal(64, 6, steps=2 * W, seed=1)
    state = (jnp.zeros(16), jnp.zeros(16), jnp.zeros(6))
    own_forms = ("KF-RTRL", "fixed leak", "presynaptic")
    for rule in rules:
        program = etpc.compile(net, RULES[rule], inputs=xs[0, 0], state=state)
        found = {op.path: isinstance(op.form, Filtered) for op in program.ops}
        if rule in ("RTRL", "SnAp"):  # hold the filtered inputs as states, and no trace of `.out`
            assert ".out" not in found
            assert "filtered(.out)" in str(program)
        else:
            assert found[".out"] != (rule in own_forms)
        assert found[".into"] or rule in ("RTRL", "SnAp", "UORO", "low-passed", *own_forms)
    assert not single.wrong(single.errors(net, chosen(rules), xs, targets, state, call, squared))
