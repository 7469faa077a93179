"""Complex states whose trace is one complex number where real ones would be two. `tests.passes` has the gradients."""

import jax
import jax.numpy as jnp
import pytest

import etpc
from etpc.forms import Full, Holomorphic, bytes_of
from tests.helpers import normal
from tests.marks import first

O, I = 5, 4


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
    "windows": etpc.D_RTRL(window=4),
    "full windows": etpc.D_RTRL(window=4, backprop="full"),
    "RTRL": etpc.RTRL(window=4),
}


def traced(name, rule):
    step, state, _ = STEPS[name]
    return etpc.compile(MODEL, RULES[rule], inputs=jnp.zeros(I), state=state, step=step)


@pytest.mark.parametrize("rule", first(RULES, 2))
@pytest.mark.parametrize("name", STEPS)
def test_half_of_the_bytes(name, rule):
    """Of those of the whole trace of both parts."""
    proved = STEPS[name][2]
    for op in traced(name, rule).ops:
        if jnp.issubdtype(op.node.dtype, complex):
            assert isinstance(op.form, Holomorphic) == proved
            assert op.trace_bytes * (2 if proved else 1) == bytes_of(Full(), op.node.site)


def test_a_real_weight_is_complex_where_it_acts():
    """A real gain of a complex state is converted first; its gradient is pulled back from the complex one."""
    assert all(isinstance(op.form, Holomorphic) for op in traced("linear", "windows").ops)


def test_it_is_said():
    program = traced("linear", "windows")
    (op,) = (op for op in program.ops if op.path == "['w']")
    assert "holomorphic" in op.choice
    assert "holomorphic" in str(program)
