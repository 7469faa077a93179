"""Traces that are sums of filtered inputs: exact in any precision, for all parameters, in every kind of window."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import etpc
from etpc.traces import Filtered, Full
from tests.helpers import loss, normal
from tests.marks import few

T, B, I, N = 12, 2, 6, 8


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
WINDOWS = {
    "one step": {"window": 1},
    "five steps": {"window": 5},
    "exact": {"window": 5, "backprop": "full"},
    "look-back": {"window": 2, "lookback": 5},
}


def programs(name, rule=None, model=MODEL, **options):
    """A program with filtered inputs, one with whole traces, and the operation of the first."""
    rule = rule or etpc.ES_D_RTRL(rank=STEPS[name][3], **options)
    filtered = program(name, rule, model)
    full = program(name, etpc.D_RTRL(**options), model, passes=())
    return filtered, full, op_of(filtered, name)


def program(name, rule, model=MODEL, passes=None):
    step, state, *_ = STEPS[name]
    x = normal(I).astype(model["w"].dtype)
    state = jax.tree.map(lambda a: a.astype(x.dtype) if a.dtype == float else a, state)
    return etpc.compile(model, rule, inputs=x, state=state, step=step, passes=passes)


def op_of(program, name):
    path = f"['{STEPS[name][2]}']"
    return next(p for p in program.ops if p.path == path and p.op.kind.data is not None)


def gradients(program, calls=1, model=MODEL, batch=B):
    """In several calls, with one example that begins anew before the last one."""
    xs = normal(T, *(() if batch is None else (batch,)), I, seed=1)
    targets = jnp.full(xs.shape[:-1], 0.3)
    run, carry, total = program.value_and_grad(loss, "sum"), program.init(batch), None
    for n, at in enumerate(np.split(np.arange(T), calls)):
        if n and n == calls - 1:
            carry = program.reset(carry, jnp.arange(batch) == 1)
        (_, carry), grads = run(model, xs[at], targets[at], carry)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return total


@functools.cache
def bptt(name):
    step, state, *_ = STEPS[name]
    xs, targets = normal(T, B, I, seed=1), jnp.full((T, B), 0.3)
    options = {"state": state, "step": step, "reduction": "sum", "batch_size": B}
    return etpc.bptt(MODEL, xs, targets, loss, **options)[1]


def close(one, other, tolerance=1e-9):
    for path, found in one.items():
        b = other[path]
        size = max(np.abs(b).max(initial=0), 1e-300)
        np.testing.assert_allclose(found, b, rtol=0, atol=tolerance * size, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_it_is_the_whole_trace(name):
    count = STEPS[name][4]
    low, full, op = programs(name, window=4)
    assert isinstance(op.form, Filtered)
    assert op.form.count(op.block) == count
    assert op.exact
    two = name in ("two groups", "two leaks")
    assert ("in only 2 ways" if two else "all outputs decay alike") in op.choice
    assert ("one filtered copy of" if count == 1 else f"{count} filtered copies of") in op.choice
    assert op.trace_bytes < next(p for p in full.ops if p.op.number == op.op.number).trace_bytes
    exact = lambda key: low.claims[f"['{key}']"].holds_exactly
    close({key: g for key, g in gradients(low).items() if exact(key)}, bptt(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "windows", "calls", "batch"),
    [
        (name, windows, *((2, B), (1, None))[n % 2])
        for n, (windows, name) in enumerate(itertools.product(WINDOWS, STEPS))
    ],
)
def test_in_every_kind_of_window(name, windows, calls, batch):
    """In two calls, with a reset between them; or of one example without a batch axis: each in two of the windows."""
    low, full, op = programs(name, **WINDOWS[windows])
    assert isinstance(op.form, Filtered)
    weight = STEPS[name][2]  # a rank of one is not enough for others
    of_both = (gradients(each, calls, batch=batch)[weight] for each in (low, full))
    close(*({weight: found} for found in of_both))


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


@pytest.mark.parametrize("name", few(STEPS, "synapse", "leaky readout"))
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_it(rule, name):
    found, op = under(rule, name)
    count = STEPS[name][4]
    if rule == "decay" and op.form == etpc.algorithms.Decay(0.9):
        # the decay's factors are smaller than two filtered inputs
        assert count == 2
        return
    assert isinstance(op.form, Filtered)
    assert op.form.count(op.block) == count
    assert found.claims[op.path].claim == "exact"


@pytest.mark.parametrize(
    ("rule", "name"),
    few(
        [
            *(
                (rule, [*STEPS][(n + k) % len(STEPS)])
                for k in (0, 4)
                for n, rule in enumerate(RULES)
            ),
            *(("RTRL", "synapse"), ("credit", "synapse"), ("rank", "leaky readout")),
        ],
        *(("RTRL", "synapse"), ("credit", "synapse"), ("rank", "leaky readout")),
    ),
)
def test_the_gradient_under_every_rule(rule, name):
    """As BPTT would have it, but where the step before enters through another weight; each rule with a few steps."""
    found, op = under(rule, name)
    if isinstance(op.form, Filtered):
        close({STEPS[name][2]: gradients(found)[STEPS[name][2]]}, bptt(name))


def under(rule, name):
    found = program(name, RULES[rule])
    return found, op_of(found, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("every", [1, 3])
def test_it_is_the_whole_trace_while_the_weights_move(name, every):
    """All parameters are updated at a large rate, also those that D and F depend on."""
    found, full, op = programs(name, etpc.D_RTRL())
    assert isinstance(op.form, Filtered)
    xs, targets = normal(T, B, I, seed=1), jnp.full((T, B), 0.3)
    moved, losses = [], []
    for each in (found, full):
        learner = etpc.online(each, loss, optax.sgd(0.1), every=every)
        opt_state, carry = learner.init(MODEL, batch_size=B)
        model, _, _, by_update = learner.update(MODEL, opt_state, carry, xs, targets)
        moved.append(model)
        losses.append(by_update)
    change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), moved[0], MODEL)
    assert change[STEPS[name][2]] > 0.05
    moving = max(change[k] for k in ("a", "gain", "two"))
    assert moving > 0.01 or name in ("one gate", "unread spikes")  # which read none of them
    close(moved[0], moved[1], 1e-11)
    np.testing.assert_allclose(*losses, rtol=1e-11)


SMALL = [
    ("synapse", None),
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
    program, _, op = programs(name, rule, model=single(MODEL), window=3)
    assert op.exact
    xs, targets = normal(T, I, seed=1), jnp.full(T, 0.3)
    run = program.value_and_grad(loss, "sum")
    for gain in (1e-4, 1e-7):
        moved = {**MODEL, "gain": jnp.geomspace(1, gain, N)[::-1]}
        _, found = run(*single((moved, xs, targets)), program.init())
        _, bptt = etpc.bptt(moved, xs, targets, loss, state=state, step=step, reduction="sum")
        # each output by itself: their gradients are of different sizes too
        size = np.abs(bptt[weight]).max(1, keepdims=True)
        assert np.abs((found[weight] - bptt[weight]) / size).max() < 1e-5


@pytest.mark.slow
def test_it_is_shown_as_the_whole_trace():
    low, full, op = programs("direct synapse", window=3)
    xs = normal(T, I, seed=1)
    shown = []
    for program in (low, full):
        _, carry = program.scan(MODEL, xs, program.init())
        p, trace = next(
            (p, trace)
            for p, trace in zip(program.plan.carried, carry.traces, strict=True)
            if p.op.number == op.op.number
        )
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


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (squashed, "entered by factors that differ"),
        (each_gain, "entered by factors that differ"),
        (constant_gains, "entered by factors that differ"),
        (by_state, "transitions of its outputs differ"),
    ],
)
def test_what_is_not_proved(step, why):
    """Transitions, or what enters, that differ from output to output."""
    compiled = functools.partial(
        etpc.compile, MODEL, inputs=normal(I), state=ZEROS, step=step, weights=lambda m: m["w"]
    )
    (whole,), (low,) = compiled(etpc.D_RTRL()).ops, compiled(etpc.ES_D_RTRL(rank=1)).ops
    assert whole.form == Full()
    assert why in whole.trace.found.why_not
    assert isinstance(low.form, etpc.algorithms.LowRank)
    assert not low.exact


def test_one_output_that_differs_takes_a_filtered_input_of_its_own():
    rule = etpc.ES_D_RTRL(rank=2)
    program = etpc.compile(MODEL, rule, inputs=normal(I), state=ZEROS, step=other)
    op = next(p for p in program.ops if p.path == "['w']")
    assert isinstance(op.form, Filtered)
    assert op.form.count(op.block) == 2
    assert op.trace_shape == (I, 2)


@pytest.mark.parametrize(("leaks", "form"), [(1, Filtered), (2, etpc.algorithms.Full)])
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
