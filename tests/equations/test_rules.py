"""The equations of each rule against its definition and its program."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("sympy")

import etpc
from etpc import nn
from etpc.forms import Trace
from etpc.rules import KroneckerFactor
from tests.equations.test_equations import CELLS, difference, dloss, run
from tests.helpers import cell, loss, normal
from tests.marks import few
from tests.test_styles import Layer, network, spike

T, KEY = 7, jax.random.key(0)
RULES = {
    "d_rtrl": etpc.D_RTRL(),
    "rtrl": etpc.RTRL(),
    "decay": etpc.ES_D_RTRL(decay=0.8, everywhere=True),
    "two decays": etpc.ES_D_RTRL(decay=(0.6, 0.9), everywhere=True),
    "decay where smaller": etpc.ES_D_RTRL(decay=0.8),
    "e-prop": etpc.EProp(),
    "kappa": etpc.EProp(kappa=0.7),
    "random feedback": etpc.EProp("random"),
    "ostl": etpc.OSTL(),
    "rflo": etpc.RFLO(0.8),
    "rflo, symmetric": etpc.RFLO(0.8, "symmetric"),
    "ottt": etpc.OTTT(0.8),
    "otpe": etpc.OTPE(0.8),
    "snap1": etpc.SnAp(1),
    "snap2": etpc.SnAp(2),
    "full windows": etpc.D_RTRL(backprop="full", window=2),
    "full windows, decay": etpc.ES_D_RTRL(decay=0.8, everywhere=True, backprop="full", window=3),
    "full windows, e-prop": etpc.EProp(backprop="full", window=2),
    "full windows, rflo": etpc.RFLO(0.8, backprop="full", window=2),
    "look-back": etpc.D_RTRL(lookback=4, window=2),
    "tbptt": etpc.TBPTT(3),
    "tbptt, rolling": etpc.TBPTT(4, every=2),
}


class ReadOut(eqx.Module):
    """Recurrent neurons, and a leaky readout."""

    w: jax.Array
    r: jax.Array
    out: jax.Array
    layer: Layer

    def init_state(self):
        return (jnp.zeros(3),) * 3, jnp.zeros(3), jnp.zeros(2)

    def __call__(self, x, state):
        z, neurons = self.layer(self.w @ x + self.r @ state[1], state[0])
        y = 0.7 * state[2] + self.out @ z
        return y, (neurons, z, y)


def convolved(model, x, v):
    """Neurons without a layer, behind a convolution."""
    v = 0.9 * v + jnp.convolve(x, model[0], mode="same")
    z = spike(v - 0.4)
    return model[1] @ z, v * (1 - z)


def neurons(early, **kind):
    weights = 0.8 * normal(3, 3), 0.4 * normal(3, 3, seed=1), normal(2, 3, seed=2)
    return ReadOut(*weights, Layer(early=early, **kind)), 3, {}


def read(name):
    """A cell of Equinox, whose first state is weighted."""
    made, state = CELLS[name]()

    def step(model, x, state):
        h, state = cell(model[0], x, state)
        return model[1](h), state

    return (made, eqx.nn.Linear(3, 2, key=KEY)), 2, dict(state=state, step=step)


MODELS = {
    "reset in the step": lambda: neurons(True, reset="hard"),
    "reset in the step, differentiated": lambda: neurons(True, reset="live"),
    "reset in the next step": lambda: neurons(False, reset="soft"),
    "adaptive": lambda: neurons(True, reset="live", adaptive=True),
    "two layers": lambda: (network(True, reset="hard"), 3, {}),
    "two adaptive layers": lambda: (network(True, reset="soft", adaptive=True), 3, {}),
    "feedback": lambda: (network(True, reset="live", adaptive=True, back=True), 3, {}),
    "synapses": lambda: (network(True, reset="hard", synapse=True, leaky=False), 3, {}),
    "GRU": lambda: read("GRU"),
    "LSTM": lambda: read("LSTM"),
    "complex": lambda: (
        *(nn.Sequential([nn.RTU(2, 3, key=KEY), eqx.nn.Linear(6, 2, key=KEY)]), 2, {}),
    ),
    "convolution": lambda: (
        *([normal(3), normal(2, 5)], 5),
        dict(state=jnp.zeros(5), step=convolved),
    ),
}
CASES = [(model, rule) for model in MODELS for rule in RULES]


@pytest.mark.parametrize(
    ("name", "rule"),
    few(
        CASES,
        ("adaptive", "rflo"),
        ("adaptive", "look-back"),
    ),
)
def test_equations_are_those_of_the_rule(name, rule):
    model, inputs, called = MODELS[name]()
    xs = np.abs(normal(T, inputs, seed=4))
    program = etpc.compile(model, RULES[rule], inputs=xs[0], **called)
    _, grads, given = run(program, model, xs)
    args = model, xs, jnp.cos(2.0 * jnp.arange(T)), loss, RULES[rule]
    _, wanted = etpc.reference(*args, reduction="sum", **called)
    assert min(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-3
    assert difference(given.gradient, grads) < 1e-9
    assert difference(given.gradient, wanted) < 1e-9


def test_what_the_step_does_not_store_is_a_state_that_nothing_follows():
    text = str(
        etpc.compile(network(True, reset="hard"), RULES["kappa"], inputs=jnp.zeros(3)).equations(
            ".u"
        )
    )
    for line in (
        "h_1_0' = v*(1 - stop(fires))",
        "L_fires = dl_dy @ out",
        "epsilon_v_u' = 0.9*epsilon_h_1_0_u + x_2^T",
        "epsilon_h_1_0_u' = (1 - stop(fires))*epsilon_v_u'",
        "epsilonbar_v_u' = epsilon_v_u' + kappa*epsilonbar_v_u",
        "e_u = psi(u_3)*epsilonbar_v_u'",
        "g_u += L_fires*e_u    (through and past)",
    ):
        assert line in text, (line, text)


@pytest.mark.parametrize("name", few([n for n in MODELS if n != "convolution"], "adaptive"))
def test_one_pair_of_factors_is_that_of_the_program_for_the_same_signs(name):
    model, inputs, called = MODELS[name]()
    xs, targets = np.abs(normal(T, inputs, seed=4)), jnp.cos(2.0 * jnp.arange(T))
    program = etpc.compile(model, etpc.KFRTRL(window=1), inputs=xs[0], **called)
    drawn = [node.form for node in program.ir.traces if isinstance(node.form, KroneckerFactor)]
    signs = [
        form.signs(jnp.array([t]), (1, 1, 1, 2)).reshape(2) for t in range(T) for form in drawn
    ]
    equations, in_order = program.equations(), iter(np.concatenate(signs))
    equations._module["signs"] = lambda count: np.array([next(in_order)])
    _, grads = program.value_and_grad(loss, "sum")(model, xs, targets, program.init())
    given = equations.evaluate(model, xs, targets, dloss)
    assert difference(given.gradient, grads) < 1e-9
    assert next(in_order, None) is None
    _, mean = etpc.reference(model, xs, targets, loss, etpc.KFRTRL(), reduction="sum", **called)
    assert difference(given.gradient, mean) > 1e-3


def test_pairs_of_several_groups_are_printed_and_not_run():
    model, inputs, called = MODELS["convolution"]()
    equations = etpc.compile(model, etpc.KFRTRL(), inputs=jnp.zeros(inputs), **called).equations()
    assert "p_1_" in str(equations)
    with pytest.raises(etpc.UnsupportedError, match="5 groups"):
        equations.to_numpy()


@pytest.mark.parametrize("rule", [etpc.OK(), type("Mine", (etpc.OK,), {"name": "mine"})()])
def test_what_reduces_a_trace_to_a_rank_is_printed(rule):
    called = dict(inputs=jnp.zeros(3))
    optimal = str(etpc.compile(neurons(True, reset="live")[0], rule, **called).equations(".r"))
    assert "e_h_1_r' = least_variance(2, E_h_1_r, E_h_0_0_r, E_h_2_r)" in optimal
    leading = etpc.ES_D_RTRL(rank=2, everywhere=True)
    text = str(etpc.compile(neurons(True, reset="live")[0], leading, **called).equations(".r"))
    assert "E_h_0_0_r = 0.9*e_h_0_0_r + h_1^T - E_h_1_r" in text
    assert "e_h_0_0_r' = leading_modes(2, E_h_0_0_r, E_h_1_r)" in text


def test_credit_through_windows_is_printed():
    model = neurons(True, reset="live")[0]
    text = str(etpc.compile(model, etpc.TBPTT(4, every=2), inputs=jnp.zeros(3)).equations())
    for line in (
        "windows of 2 steps and 2 before it, whose losses do not count",
        "c_I_out = P_h_2' + dl_dy",
        "P_h_2 = 0.7*P_h_2' + 0.7*dl_dy",
        "g_r += c_I_r*h_1^T    (through)",
        "what was before a window  (of .w, .r, .out)",
    ):
        assert line in text, (line, text)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (etpc.CreditRTRL(), "directions"),
        (etpc.UORO(), "directions"),
    ],
)
def test_other_rules_are_refused(rule, why):
    program = etpc.compile(neurons(True, reset="hard")[0], rule, inputs=jnp.zeros(3))
    with pytest.raises(etpc.UnsupportedError, match=f"equations of .*{why}"):
        program.equations()


class Unsaid(Trace):
    exact = True
    init = lambda self, site, batch: (jnp.zeros(batch),)
    past = lambda self, site, start, carry: []
    move = lambda self, site, passage, path, carry, start: carry


def test_a_form_that_does_not_say_what_it_means_is_refused(monkeypatch):
    monkeypatch.setattr(etpc.OTTT, "trace_form", lambda self, kind: Unsaid())
    program = etpc.compile(neurons(True, reset="hard")[0], etpc.OTTT(), inputs=jnp.zeros(3))
    with pytest.raises(etpc.UnsupportedError, match=r"trace of .*Unsaid.*does not say what it"):
        program.equations()
