"""The oracle agrees with literal equations of each rule, and with BPTT where a rule is exact."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import models, oracle
from tests.helpers import alive, by_path, distance
from tests.models import Layer, Spec

T = 6
INEXACT = (  # a recurrent weight, a gate, a layer or a readout state above, an MLP below
    *("lif", "alif", "mingru_recurrent", "gru", "lstm", "reset_gate"),
    *("two_layer_lif", "leaky_readout", "op_readout", "gated_op_readout", "mlp"),
)
EXACT = tuple(name for name in models.ALL_NAMED if name not in INEXACT)
SPIKING = ("lif", "lif_feedforward", "alif", "two_layer_lif", "hard_reset_spike")


def same(a, b):
    return distance(a, b) < 1e-10


def gradient(model, algo, B=None, T=T, **options):
    data = models.data(model, T, B)
    return oracle.gradient(model, *data, models.loss, algo, batched=B is not None, **options)


def check(model):
    """What must hold for any model. Returns the structure."""
    bptt = gradient(model, "bptt")
    assert all(np.isfinite(g).all() for g in by_path(bptt).values())
    assert alive(bptt, 1e-4)
    # RTRL is BPTT, whatever the window, and so is one full window.
    assert same(gradient(model, "rtrl", window=1), bptt)
    assert same(gradient(model, "rtrl", window=4), bptt)
    assert same(gradient(model, "d_rtrl", backprop="full"), bptt)
    assert same(gradient(model, "es_d_rtrl", backprop="full"), bptt)
    # An op that nothing escapes from has the gradient of BPTT.
    structure = oracle.structure(model, models.data(model, T)[0][0])
    exact = [op for op, is_exact in structure.exact.items() if is_exact]
    full = gradient(model, "rtrl", by_op=True)
    for options in ({}, {"window": 2, "backprop": "full"}):
        cut = gradient(model, "d_rtrl", by_op=True, **options)
        assert same(full | {op: cut[op] for op in exact}, full)
    return structure


QUICK = ("mingru", "delay", "summed")


@pytest.mark.slow
@pytest.mark.parametrize("name", models.ALL_NAMED)
def test_named(name):
    model = models.named(name)
    structure = check(model)
    assert all(structure.exact.values()) == (name in EXACT)
    # A control: where the rule is not exact, it shows.
    bptt = gradient(model, "bptt")
    assert (distance(gradient(model, "d_rtrl"), bptt) > 1e-4) == (name in INEXACT)
    assert all(np.any(g != 0) for g in by_path(bptt).values())


@pytest.mark.parametrize("name", SPIKING)
def test_spiking_networks_are_alive(name):
    model = models.named(name)
    xs, _ = models.data(model, 20)
    state, spikes = model.init_state(), collections.defaultdict(list)
    for x in xs:
        _, state = model.step(x, state, models.PLAIN)
        # A leaky readout has a state after those of the layers.
        layers = zip(model.spec.layers, state, strict=False)
        for number, (layer, of_layer) in enumerate(layers):
            if layer.kind in models.SPIKING:
                values = models.values_of_layer(layer, of_layer)
                spikes[number].append(values["v"] > 0.5 if layer.reset == "late" else values["z"])
    for number, of_layer in spikes.items():
        assert 0.05 < np.mean(of_layer) < 0.9, number


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_the_step_of_a_wrapped_cell_is_its_call(name):
    model = models.named(name)
    state = jax.tree.map(lambda a: a + 0.3, model.init_state())
    x = models.data(model)[0][0]
    jax.tree.map(np.testing.assert_allclose, model(x, state), model.step(x, state, models.PLAIN))


def test_marking_changes_nothing():
    model = models.named("alif")
    x, state = models.data(model)[0][0], model.init_state()
    marked = model.step(x, state, models.Marked())
    jax.tree.map(np.testing.assert_array_equal, marked, model(x, state))


# Literal equations ---------------------------------------------------------------------------------------------------

A = np.exp(-1 / 3)


def rates(*sizes, recurrent="none", readout="new"):
    """Layers h' = A h + (1 - A) tanh(W x + U h) without bias."""
    made = tuple(Layer(size=n, recurrent=recurrent, bias=False) for n in sizes)
    return models.build(Spec(made, readout=readout, seed=3))


def run(model):
    """W, U, R, and for each step x, the old state, tanh' of the first layer, the new state and dl/dy."""
    p = jax.tree.map(np.asarray, model.layers[0])
    W, U = p["w0"]["w"], p["u0"]["w"] if "u0" in p else np.zeros(())
    R = np.asarray(model.io["out"])
    xs, targets = models.data(model, T)
    state, steps = model.init_state(), []
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        h = np.asarray(state[0][0])
        slope = 1 - np.tanh(W @ x + (U @ h if U.ndim else 0)) ** 2
        y, state = model(jnp.asarray(x), state)
        steps.append((x, h, slope, state, 2 * (np.asarray(y) - target)))
    return W, U, R, steps


@pytest.mark.slow
def test_truncated_d_rtrl_of_a_recurrent_layer():
    model = rates(3, recurrent="separate")
    W, U, R, steps = run(model)
    eps_w, eps_u = np.zeros(W.shape), np.zeros(U.shape)  # one neuron, one row
    grad_w, grad_u = np.zeros(W.shape), np.zeros(U.shape)
    for x, h, slope, _, dy in steps:
        eps_w = A * eps_w + (1 - A) * np.outer(slope, x)
        eps_u = A * eps_u + (1 - A) * np.outer(slope, h)
        grad_w += (dy @ R)[:, None] * eps_w
        grad_u += (dy @ R)[:, None] * eps_u
    grads = gradient(model, "d_rtrl", window=2).layers[0]
    np.testing.assert_allclose(grads["w0"]["w"], grad_w, rtol=1e-11)
    np.testing.assert_allclose(grads["u0"]["w"], grad_u, rtol=1e-11)


@pytest.mark.slow
def test_credit_flows_through_the_next_layer_of_the_same_step():
    model = rates(3, 2)
    W, _, R, steps = run(model)
    V = np.asarray(model.layers[1]["w0"]["w"])
    eps, grad = np.zeros(W.shape), np.zeros(W.shape)
    for x, _, slope, new, dy in steps:
        eps = A * eps + (1 - A) * np.outer(slope, x)
        above = (1 - A) * (1 - np.tanh(V @ np.asarray(new[0][0])) ** 2)
        grad += (((dy @ R) * above) @ V)[:, None] * eps
    np.testing.assert_allclose(gradient(model, "d_rtrl").layers[0]["w0"]["w"], grad, rtol=1e-11)


@pytest.mark.parametrize("decay", [0.5, 0.95])
@pytest.mark.parametrize("readout", ["new", "old"])
def test_es_d_rtrl_as_the_design_writes_it(decay, readout):
    model = rates(3, recurrent="separate", readout=readout)
    W, _, R, steps = run(model)
    eps_x, eps_f, grad = np.zeros(W.shape[1]), np.zeros(W.shape[0]), np.zeros(W.shape)
    for t, (x, _, slope, _, dy) in enumerate(steps, start=1):
        if readout == "old" and t > 1:
            grad += np.outer((dy @ R) * eps_f, eps_x) / (1 - decay ** (t - 1))
        eps_x = decay * eps_x + x
        eps_f = decay * A * eps_f + (1 - decay) * (1 - A) * slope
        if readout == "new":
            grad += np.outer((dy @ R) * eps_f, eps_x) / (1 - decay**t)
    ours = gradient(model, "es_d_rtrl", decay=decay).layers[0]["w0"]["w"]
    np.testing.assert_allclose(ours, grad, rtol=1e-11)


# Knobs ---------------------------------------------------------------------------------------------------------------


def test_es_d_rtrl_without_decay_is_d_rtrl_for_a_constant_input():
    model = rates(3)
    xs, targets = models.data(model, T)
    xs = jnp.broadcast_to(xs[:1], xs.shape)
    run = lambda xs, algo, **o: oracle.gradient(model, xs, targets, models.loss, algo, **o)
    assert same(run(xs, "es_d_rtrl", decay=1.0), run(xs, "d_rtrl"))
    assert not same(run(xs, "es_d_rtrl", decay=0.9), run(xs, "d_rtrl"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lif", "gru"])
def test_each_knob_turns_something(name):
    model = models.named(name)
    reference = gradient(model, "es_d_rtrl")
    for options in ({"decay": 0.5}, {"window": 2, "backprop": "full"}, {"reduction": "mean"}):
        assert distance(gradient(model, "es_d_rtrl", **options), reference) > 1e-4
    exact = [gradient(model, "d_rtrl", window=w, backprop="full") for w in (1, 2, T)]
    assert all(distance(a, b) > 1e-4 for a, b in itertools.combinations(exact, 2))
    assert distance(exact[0], gradient(model, "d_rtrl")) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("algo", oracle.ALGORITHMS)
def test_a_batch_is_the_mean_of_its_examples(algo):
    model = models.named("mingru_recurrent")
    xs, targets = models.data(model, T, B=3)
    each = [oracle.gradient(model, xs[:, b], targets[:, b], models.loss, algo) for b in range(3)]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *each)
    assert same(gradient(model, algo, B=3), mean)
    assert same(gradient(model, algo, B=3, reduction="mean"), jax.tree.map(lambda g: g / T, mean))


# Structure -----------------------------------------------------------------------------------------------------------


def block_sizes(model):
    structure = oracle.structure(model, models.data(model)[0][0])
    return {op: int(block.sum(axis=0).max()) for op, block in structure.block.items()}


def test_block_sizes_are_those_of_the_design():
    assert block_sizes(models.named("lstm"))["hh"] == 2
    assert block_sizes(models.build(models.one(kind="lif", reset="late")))["layer0.w0"] == 1
    assert block_sizes(models.build(models.one(kind="alif", reset="late")))["layer0.w0"] == 2
    assert block_sizes(models.named("delay"))["layer0.w0"] == 3
    assert block_sizes(models.named("ring"))["w"] == 3
    assert block_sizes(models.named("mean_free"))["layer0.w0"] == 3
    assert block_sizes(models.named("gru"))["out"] == 0


def test_what_escapes_is_named():
    structure = oracle.structure(models.named("lif"), jnp.zeros(2))
    assert structure.escapes["layer0.w0"] == ("layer0.u0",)
    assert structure.escapes["out"] == ()
    assert structure.to_state == {"layer0.w0", "layer0.u0"}
    # A readout with a state is a cut op like any other: what is below it is not exact.
    structure = oracle.structure(models.named("leaky_readout"), jnp.zeros(2))
    assert structure.escapes["layer0.w0"] == ("out",)
