"""OSTL: RTRL within each layer; and where it is another rule."""

import jax.numpy as jnp
import pytest

import etpc
from etpc import OSTL
from tests.algorithms.test_uoro import normal
from tests.helpers import distance
from tests.marks import few

T, I, N, O = 8, 2, 3, 2
MODEL = {
    "in": normal(N, I, seed=0),
    "a": normal(N, N, seed=1),
    "up": normal(N, N, seed=2),
    "b": normal(N, N, seed=3),
    "out": normal(O, N, seed=4),
}
XS, TARGETS = normal(T, I, seed=5), normal(T, O, seed=6)


def loss(y, t):
    return jnp.sum((y - t) ** 2)


def step(m, x, state):
    """Two recurrent layers, the second of which reads the new state of the first, and a readout."""
    a, b = state
    a = jnp.tanh(m["a"] @ a + m["in"] @ x)
    b = jnp.tanh(m["b"] @ b + m["up"] @ a)
    return m["out"] @ b, (a, b)


def found(algo, model=MODEL, step=step, state=(jnp.zeros(N), jnp.zeros(N))):
    program = etpc.compile(model, algo, inputs=XS[0], state=state, step=step)
    return program, program.value_and_grad(loss, "sum")(model, XS, TARGETS, program.init())[1]


@pytest.mark.parametrize("window", few([1, 4], 4))
def test_ostl(window):
    program, grads = found(OSTL(window=window))
    given = dict(state=(jnp.zeros(N), jnp.zeros(N)), step=step, reduction="sum")
    _, defined = etpc.reference(MODEL, XS, TARGETS, loss, OSTL(), **given)
    assert distance(grads, defined) < 1e-12
    assert distance(grads, found("rtrl")[1]) > 1e-3
    assert {name: c.claim for name, c in program.claims.items()} == {
        "['in']": "approximate",
        "['a']": "approximate",
        "['up']": "exact",
        "['b']": "exact",
        "['out']": "exact",
    }
    assert "hidden [0] -> ['up'] -> hidden [1]" in str(program)
    assert {p.path: p.block for p in program.ops if p.block} == dict.fromkeys(
        ("['in']", "['a']", "['up']", "['b']"), N
    )


@pytest.mark.slow
def test_one_recurrent_layer_gets_rtrl_and_independent_units_get_d_rtrl():
    def one_layer(m, x, h):
        h = jnp.tanh(m["a"] @ h + m["in"] @ x)
        return m["out"] @ h, h

    def independent(m, x, state):
        a, b = state
        a = 0.9 * a + jnp.tanh(m["in"] @ x)
        b = 0.8 * b + m["up"] @ jnp.tanh(a)
        return m["out"] @ b, (a, b)

    for rule, other, (of_model, state) in (
        ("rtrl", "RTRL", (one_layer, jnp.zeros(N))),
        ("d_rtrl", "D-RTRL", (independent, (jnp.zeros(N), jnp.zeros(N)))),
    ):
        program, grads = found("OSTL", MODEL, of_model, state)
        assert f"({other} of this model)" in str(program)
        assert distance(grads, found(rule, MODEL, of_model, state)[1]) < 1e-12
    _, exact = found("rtrl", MODEL, independent, (jnp.zeros(N), jnp.zeros(N)))
    assert distance(grads, exact) > 1e-3
