"""Traces that are sums of filtered inputs: where that is proved, for all parameters, and where it is not.

`tests.passes` has their gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc.forms import Filtered, Full, LowRank
from etpc.plan import PASSES
from tests.helpers import loss, normal, spike
from tests.marks import first

T, I, N = 12, 6, 8


def synapse(m, x, s):
    g, v = s
    g = 0.8 * g + m["w"] @ x
    v = m["a"] * v + m["gain"][0] * g
    return v / lax.stop_gradient(m["gain"][0]), (g, v)


def direct_synapse(m, x, s):
    """F enters two states, with gains of their own."""
    g, v = s
    new = m["w"] @ x
    g = 0.8 * g + m["two"][0] * new
    v = m["a"] * v + 0.1 * g + m["two"][1] * new
    return jnp.tanh(v), (g, v)


def two_groups(m, x, h):
    gain = jnp.repeat(m["gain"][:2], N // 2)
    h = jnp.repeat(m["two"], N // 2) * h + gain * (m["w"] @ x)
    return jnp.tanh(h / lax.stop_gradient(gain)), h


def one_gate(m, x, h):
    """D and F depend on the input, and are those of all outputs."""
    h = jax.nn.sigmoid(x[0]) * h + jnp.tanh(x[1]) * (m["w"] @ x)
    return jnp.tanh(h), h


def two_leaks(m, x, h):
    """Every other output has the same transition, and all are entered in the same way."""
    h = jnp.tile(m["two"], N // 2) * h + m["w"] @ x
    return jnp.tanh(h), h


def detached_reset(m, x, v):
    """A spiking layer whose reset is no path of influence, with one learned leak and one learned gain."""
    z = etpc.surrogate.ReluGrad()(v - 0.5)
    v = m["a"] * v + 3 * m["gain"][1] * (m["w"] @ x) - lax.stop_gradient(z)
    return m["out"] @ etpc.surrogate.ReluGrad()(v - 0.5), v


def leaky_readout(m, x, s):
    h, r = s
    h = m["gain"] * h / 2 + m["w"] @ x
    r = m["a"] * r + m["out"] @ jnp.tanh(h)
    return r, (h, r)


def unread_spikes(m, x, s):
    """A state that nothing reads is not followed, so that its derivative, which differs, counts for nothing."""
    v, _ = s
    v = 0.9 * v + m["w"] @ x
    z = jnp.tanh(v)
    return m["out"] @ z, (v, z)


def rotated(m, x, h):
    h = (0.5 + 0.4j) * jnp.tanh(x[0]) * h + m["gain"][0] * (m["z"] @ x.astype(complex))
    return jnp.tanh(jnp.stack([h.real, h.imag])), h


def convolved(m, x, h):
    new = lax.conv(x[None, None], m["kernel"], (1,), "SAME")[0]  # [3, I]
    h = m["a"] * h + m["gain"][1] * new
    return jnp.tanh(h), h


ZEROS = jnp.zeros(N)
MODEL = {
    "w": normal(N, I) / 2,
    "out": normal(4, N, seed=2) / 2,
    "z": normal(N, I) + 1j * normal(N, I, seed=3),
    "kernel": normal(3, 1, 3, seed=5),
    "a": jnp.asarray(0.7),
    "two": jnp.asarray([0.9, 0.6]),
    "gain": jnp.linspace(0.5, 1.5, N),
}
PAIR = (ZEROS, ZEROS)
# the step, its state, the weight, the rank that is asked for, and how many filtered inputs it gets
STEPS = {
    "synapse": (synapse, PAIR, "w", 2, 2),
    "direct synapse": (direct_synapse, PAIR, "w", 3, 2),
    "two groups": (two_groups, ZEROS, "w", 2, 2),
    "two leaks": (two_leaks, ZEROS, "w", 2, 2),
    "detached reset": (detached_reset, ZEROS, "w", 1, 1),
    "leaky readout": (leaky_readout, (ZEROS, jnp.zeros(4)), "out", 1, 1),
    "one gate": (one_gate, ZEROS, "w", 1, 1),
    "unread spikes": (unread_spikes, PAIR, "w", 1, 1),
    "rotated": (rotated, ZEROS.astype(complex), "z", 2, 2),
    "convolved": (convolved, jnp.zeros((3, I)), "kernel", 1, 1),
}
RULES = {
    "D-RTRL": etpc.D_RTRL(window=4),
    "RTRL": etpc.RTRL(window=4),
    "SnAp": etpc.SnAp(2, window=1),
    "decay": etpc.ES_D_RTRL(decay=0.9, window=4),
    "rank": etpc.ES_D_RTRL(rank=2, window=4),
    "rank of RTRL": etpc.RTRL(rank=2, window=4),
    "credit": etpc.CreditRTRL(window=4),
    "credit, whole": etpc.CreditRTRL(rank=None, window=4),
}


OWN = tuple(name for name in PASSES if name != "commute")
"""A product whose data is filtered before it has no trace."""


def program(name, rule, model=MODEL, passes=None):
    step, state, *_ = STEPS[name]
    x = normal(I).astype(model["w"].dtype)
    state = jax.tree.map(lambda a: a.astype(x.dtype) if a.dtype == float else a, state)
    passes = OWN if passes is None else passes
    return etpc.compile(model, rule, inputs=x, state=state, step=step, passes=passes)


def op_of(program, name):
    path = f"['{STEPS[name][2]}']"
    return next(p for p in program.ops if p.path == path and p.op.kind.data is not None)


@pytest.mark.parametrize("name", STEPS)
def test_how_many_filtered_inputs_there_are(name):
    _, _, _, rank, count = STEPS[name]
    op = op_of(program(name, etpc.ES_D_RTRL(rank=rank, window=4)), name)
    assert isinstance(op.form, Filtered)
    assert op.form.count(op.block) == count
    assert op.exact
    two = name in ("two groups", "two leaks")
    assert ("in only 2 ways" if two else "all outputs decay alike") in op.choice
    assert ("one filtered copy of" if count == 1 else f"{count} filtered copies of") in op.choice
    assert op.trace_bytes < op_of(program(name, etpc.D_RTRL(), passes=()), name).trace_bytes


@pytest.mark.parametrize("name", first(["synapse", "leaky readout"]))
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_it(rule, name):
    found = program(name, RULES[rule])
    op, count = op_of(found, name), STEPS[name][4]
    if rule == "decay" and op.form == etpc.algorithms.Decay(0.9):
        # the decay's factors are smaller than two filtered inputs
        assert count == 2
        return
    assert isinstance(op.form, Filtered)
    assert op.form.count(op.block) == count
    assert found.claims[op.path].claim == "exact"


SMALL = [
    ("synapse", etpc.ES_D_RTRL(rank=2, window=3)),
    ("synapse", etpc.D_RTRL(window=3)),
    ("two groups", etpc.D_RTRL(window=3)),
    ("two groups", etpc.ES_D_RTRL(decay=0.9, window=3)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rule"), SMALL)
def test_small_gains_in_float32(name, rule):
    """Compiled at gains of one, and run at gains that differ by many orders of magnitude, against BPTT in float64."""
    step, state, weight, *_ = STEPS[name]
    single = lambda tree: jax.tree.map(
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a.astype(jnp.complex64), tree
    )
    low = program(name, rule, single(MODEL))
    assert op_of(low, name).exact
    xs, targets = normal(T, I, seed=1), jnp.full(T, 0.3)
    run = low.value_and_grad(loss, "sum")
    for gain in (1e-4, 1e-7):
        moved = {**MODEL, "gain": jnp.geomspace(1, gain, N)[::-1]}
        _, found = run(*single((moved, xs, targets)), low.init())
        _, bptt = etpc.bptt(moved, xs, targets, loss, state=state, step=step, reduction="sum")
        # each output by itself: their gradients are of different sizes too
        size = np.abs(bptt[weight]).max(1, keepdims=True)
        assert np.abs((found[weight] - bptt[weight]) / size).max() < 1e-5


@pytest.mark.slow
def test_it_is_shown_as_the_whole_trace():
    name, rule = "direct synapse", etpc.D_RTRL(window=3)
    low, full = program(name, rule), program(name, rule, passes=())
    shown = []
    for each in (low, full):
        _, carry = each.scan(MODEL, normal(T, I, seed=1), each.init())
        traces = zip(each.ir.traces, carry.traces, strict=True)
        p, trace = next((p, trace) for p, trace in traces if p.op.path == "['w']")
        shown.append(p.form.shown(p.site, trace)["trace"])
    assert shown[0].shape == shown[1].shape
    np.testing.assert_allclose(*shown, rtol=0, atol=1e-9 * np.abs(shown[1]).max())
    assert "all outputs decay alike, so 2 filtered copies of the inputs replace" in str(low)


def other(m, x, h):
    decay = jnp.concatenate([jnp.full(1, m["two"][0]), jnp.full(N - 1, m["two"][1])])
    h = decay * h + m["w"] @ x
    return h, h


def squashed(m, x, h):
    h = 0.9 * h + jnp.tanh(m["w"] @ x)
    return h, h


def each_gain(m, x, h):
    h = 0.9 * h + m["gain"] * (m["w"] @ x)
    return h, h


def constant_gains(m, x, h):
    h = 0.9 * h + np.linspace(0.5, 1.5, N) * (m["w"] @ x)
    return h, h


def by_state(m, x, h):
    h = jax.nn.sigmoid(jnp.tanh(h)) * h + m["w"] @ x
    return h, h


def its_own_decay(m, x, h):
    h = m["gain"] / 2 * h + m["w"] @ x
    return h, h


def hard_reset(m, x, v):
    v = 0.9 * v * (1 - lax.stop_gradient(spike(v - 1))) + m["w"] @ x
    return v * spike(v - 1), v


def soft_reset(m, x, v):
    v = 0.9 * (v - spike(v - 1)) + m["w"] @ x
    return v * spike(v - 1), v


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (squashed, "entered by factors that differ"),
        (each_gain, "entered by factors that differ"),
        (constant_gains, "entered by factors that differ"),
        (by_state, "transitions of its outputs differ"),
        (its_own_decay, "transitions of its outputs differ"),
        (hard_reset, "transitions of its outputs differ"),
        (soft_reset, "transitions of its outputs differ"),
    ],
)
def test_what_is_not_proved(step, why):
    """Transitions, or what enters, that differ from output to output."""
    compiled = functools.partial(
        etpc.compile, MODEL, inputs=normal(I), state=ZEROS, step=step, weights=lambda m: m["w"]
    )
    (whole,), (low,) = compiled(etpc.D_RTRL()).ops, compiled(etpc.ES_D_RTRL(rank=1)).ops
    assert whole.form == Full()
    assert why in compiled(etpc.D_RTRL()).explain("['w']", 1000)
    assert isinstance(low.form, LowRank)
    assert not low.exact


def test_one_output_that_differs_takes_a_filtered_input_of_its_own():
    rule = etpc.ES_D_RTRL(rank=2)
    program = etpc.compile(MODEL, rule, inputs=normal(I), state=ZEROS, step=other)
    op = next(p for p in program.ops if p.path == "['w']")
    assert isinstance(op.form, Filtered)
    assert op.form.count(op.block) == 2
    assert op.trace_shape == (2, I)


@pytest.mark.parametrize(("leaks", "form"), [(1, Filtered), (2, Full)])
def test_what_would_save_too_little_stays_whole(leaks, form):
    """Three outputs that leak in one or two ways; and a rule that takes the whole trace where that is as small agrees
    with what is carried."""
    leak = jnp.asarray([0.9, 0.8, 0.8] if leaks == 2 else [0.9] * 3)
    model, options = normal(3, I), dict(inputs=normal(I), state=jnp.zeros(3))
    step = lambda w, x, h: (leak * h + w @ x,) * 2
    (op,) = etpc.compile(model, **options, step=step).ops
    assert isinstance(op.form, form)
    assert op.trace_bytes == 8 * I * (1 if leaks == 1 else 3)
    (chosen,) = etpc.compile(model, etpc.ES_D_RTRL(decay=0.9), **options, step=step).ops
    assert isinstance(chosen.form, Filtered if leaks == 1 else etpc.algorithms.Decay)


# the decay of each neuron as a function of two scalars, and whether a rank of 2 is proved from it
C = np.linspace(0.1, 1.0, N)
DECAYS_OF = {
    "one scalar": (lambda a, b: jax.nn.sigmoid(a), True),
    "two scalars": (lambda a, b: jnp.concatenate([jnp.full(3, a), jnp.full(5, b)]), True),
    "two minima": (
        lambda a, b: jnp.concatenate(
            [jnp.full(3, jnp.minimum(a, 0.9)), jnp.full(5, jnp.minimum(b, 0.9))]
        ),
        True,
    ),
    "a softplus": (lambda a, b: jnp.exp(-1 / jax.nn.softplus(a)), True),
    "two constants": (lambda a, b: jax.nn.sigmoid(a) * np.repeat([0.9, 0.7], [3, 5]), True),
    "a mean": (lambda a, b: jnp.mean(jax.nn.sigmoid(jnp.stack([a, b]))), True),
    "clipped": (lambda a, b: jnp.clip(jnp.full(N, a), 0.0, 0.9), True),
    "moved around": (lambda a, b: jnp.roll(jnp.full((N, 1), jnp.tanh(a)).T[0], 1), True),
    "spread by a scalar": (lambda a, b: jnp.exp(-0.2 - a * C), False),
    "spread behind a step": (lambda a, b: jnp.where(a > 0, C, 0.9), False),
    "spread behind a relu": (lambda a, b: 0.9 - 0.5 * C * jax.nn.relu(a), False),
    "each a maximum": (lambda a, b: jnp.maximum(0.1 * a, C * (a > 1)) + 0.0 * b, False),
    "a product with zero": (lambda a, b: 0.9 + a * b * (C - C[0]) * 0.1, False),
    "rounded": (lambda a, b: 0.9 - 0.1 * jnp.round(a) * C, False),
}


@pytest.mark.parametrize("a", [0.0, 5.0])
@pytest.mark.parametrize("name", DECAYS_OF)
def test_a_proof_is_for_all_parameters(name, a):
    """Whatever the values are at which the model is compiled, equal ones among them."""
    decay, proved = DECAYS_OF[name]

    def step(m, x, h):
        h = decay(m["a"], m["b"]) * h + m["w"] @ x
        return h, h

    model = {"a": jnp.asarray(a), "b": jnp.asarray(a), "w": MODEL["w"]}
    program = etpc.compile(
        model, etpc.ES_D_RTRL(rank=2), inputs=normal(I), state=ZEROS, step=step, weights="all"
    )
    (op,) = (op for op in program.ops if op.path == "['w']")
    assert op.exact is proved
    assert isinstance(op.form, Filtered if proved else LowRank)
