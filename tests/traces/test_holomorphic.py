"""Complex states whose trace is one complex number where real ones would be two, against backpropagation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc.traces import Full, Holomorphic, bytes_of
from tests.helpers import loss, normal, online

O, I, T, B = 5, 4, 16, 3


def of_complex(*shape, seed):
    return normal(*shape, seed=seed) + 1j * normal(*shape, seed=seed + 100)


MODEL = {
    "w": 0.3 * of_complex(O, I, seed=1),
    "leak": 0.8 * jnp.exp(1j * normal(O, seed=2)),
    "out": of_complex(1, O, seed=3),
    "gain": 1 + 0.1 * normal(O, seed=4),
}
ONE = jnp.zeros(O, complex)


def linear(m, x, h):
    h = m["leak"] * h + m["gain"] * (m["w"] @ x)
    return (m["out"] @ h).real, h


def squashed(m, x, h):
    h = m["leak"] * h + jnp.tanh(m["w"] @ x + 0.1 * h)
    return (m["out"] @ h).real, h


def cascade(m, x, state):
    g, h = state
    g = 0.9j * g + m["w"] @ x
    h = m["leak"] * h + g
    return (m["out"] @ h).real, (g, h)


def parts_read(m, x, h):
    """The output reads the real and the imaginary part, and the step before."""
    new = m["leak"] * h + x @ m["w"].T
    return jnp.sum(new.real * h.imag + new.imag, keepdims=True), new


def conjugated(m, x, h):
    h = m["leak"] * h.conj() + m["w"] @ x
    return (m["out"] @ h).real, h


def bounded(m, x, h):
    h = m["leak"] * h / (1 + jnp.abs(h)) + m["w"] @ x
    return (m["out"] @ h).real, h


def real_part_alone(m, x, h):
    h = jax.lax.complex(0.5 * m["gain"] * h.real, 0.7 * m["gain"] * h.imag) + m["w"] @ x
    return (m["out"] @ h).real, h


def beside_a_real_state(m, x, state):
    h, r = state
    h = m["leak"] * h + m["w"] @ x
    r = 0.8 * r + h.real
    return (m["out"] @ h).real + r.sum(keepdims=True), (h, r)


STEPS = {
    "linear": (linear, ONE, True),
    "squashed": (squashed, ONE, True),
    "cascade": (cascade, (ONE, ONE), True),
    "parts are read": (parts_read, ONE, True),
    "conjugated": (conjugated, ONE, False),
    "bounded": (bounded, ONE, False),
    "parts apart": (real_part_alone, ONE, False),
    "a real state": (beside_a_real_state, (ONE, jnp.zeros(O)), False),
}
RULES = {
    "step by step": etpc.D_RTRL(window=1),
    "windows": etpc.D_RTRL(window=4),
    "full windows": etpc.D_RTRL(window=4, backprop="full"),
    "look-back": etpc.D_RTRL(window=2, lookback=4),
    "RTRL": etpc.RTRL(window=4),
}


def traced(name, rule, passes=None):
    step, state, _ = STEPS[name]
    return etpc.compile(MODEL, rule, inputs=jnp.zeros(I), state=state, step=step, passes=passes)


@functools.cache
def bptt(name):
    step, state, _ = STEPS[name]
    options = dict(batch_size=B, reduction="sum", state=state, step=step)
    return etpc.bptt(MODEL, *data(), loss, **options)[1]


def data():
    return normal(T, B, I, seed=5), normal(T, B, 1, seed=6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"),
    list(itertools.product(STEPS, RULES)),
)
def test_gradient(name, rule):
    """By backpropagation, in two calls."""
    program = traced(name, RULES[rule])
    found = online(program, MODEL, *data(), program.init(B), loss, calls=2)
    for key, wanted in bptt(name).items():
        size = np.abs(wanted).max() + 1e-12
        np.testing.assert_allclose(found[key], wanted, rtol=0, atol=1e-11 * size)


@pytest.mark.parametrize("rule", ["windows", "full windows", "RTRL"])
@pytest.mark.parametrize("name", STEPS)
def test_half_of_the_bytes(name, rule):
    """Of those of the whole trace of both parts."""
    proved = STEPS[name][2]
    for op in traced(name, RULES[rule]).ops:
        if jnp.issubdtype(op.trace.dtype, complex):
            assert isinstance(op.form, Holomorphic) == proved
            assert op.trace.bytes * (2 if proved else 1) == bytes_of(Full(), op.trace.site)


def test_a_real_weight_is_complex_where_it_acts():
    """A real gain of a complex state is converted first; its gradient is pulled back from the complex one."""
    assert all(isinstance(op.form, Holomorphic) for op in traced("linear", RULES["windows"]).ops)


@pytest.mark.slow
def test_while_the_weights_move():
    moved = []
    for passes in (None, ()):
        learner = etpc.online(traced("linear", etpc.D_RTRL(), passes), loss, optax.sgd(0.05))
        moved.append(learner.update(MODEL, *learner.init(MODEL, B), *data())[0])
    assert np.abs(moved[0]["leak"] - MODEL["leak"]).max() > 0.01
    for key, value in moved[0].items():
        np.testing.assert_allclose(value, moved[1][key], rtol=1e-11, atol=1e-13)


def test_it_is_said():
    program = traced("linear", RULES["windows"])
    (op,) = (op for op in program.ops if op.path == "['w']")
    assert "holomorphic" in op.choice
    assert "holomorphic" in str(program)
