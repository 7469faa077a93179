"""RFLO: its claims, and where it is D-RTRL; `tests.test_definition` compares it with its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import RFLO
from tests.helpers import distance, loss, normal
from tests.marks import few

T, B, I, N, KEPT = 8, 3, 4, 5, 0.7
W, BIAS = 0.5 * normal(N, I + N), 0.1 * normal(N, seed=1)
XS, TARGETS = normal(T, B, I, seed=2), normal(T, B, N, seed=3)
MODEL = {"w": W, "b": BIAS}


def two_states(m, x, state):
    """Each unit has a block of two states."""
    h, slow = state
    h_new = jnp.tanh(m["w"] @ jnp.concatenate([x, h]) + m["b"])
    slow_new = 0.5 * slow + h_new * h
    return jnp.sin(h_new + slow_new), (h_new, slow_new)


def online(algo, step, state, model=MODEL):
    program = etpc.compile(model, algo, inputs=XS[0, 0], state=state, step=step)
    run, carry, total = program.value_and_grad(loss, "sum"), program.init(B), None
    for part in (slice(0, 4), slice(4, T)):
        (_, carry), grads = run(model, XS[part], TARGETS[part], carry)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return program, total


def reference(rule, step, state, model=MODEL):
    given = dict(state=state, step=step, batch_size=B, reduction="sum")
    return etpc.reference(model, XS, TARGETS, loss, rule, **given)[1]


def test_the_trace_has_a_fixed_leak():
    network, rule = (two_states, (jnp.zeros(N), jnp.zeros(N))), RFLO(KEPT, "symmetric", window=2)
    program, found = online(rule, *network)
    expected, cut = reference(rule, *network), online(etpc.D_RTRL(), *network)[1]
    assert distance(found, expected) < 1e-12
    assert distance(found, cut) > 1e-2
    assert not program.exact
    assert "fixed leak" in str(program)


def test_it_is_d_rtrl_where_the_network_has_the_leak():
    def leaky(m, x, h):
        h = KEPT * h + (1 - KEPT) * jnp.tanh(m["w"] @ jnp.concatenate([x, h]) + m["b"])
        return h, h

    (_, found), (_, cut) = (
        online(algo, leaky, jnp.zeros(N))
        for algo in (RFLO(KEPT, "symmetric", window=2), etpc.D_RTRL(window=2))
    )
    for name in MODEL:
        np.testing.assert_allclose(found[name], cut[name], rtol=0, atol=1e-12)
        assert np.abs(cut[name]).max() > 1e-2


@pytest.mark.parametrize("window", few([1, 2], 2))
def test_random_feedback(window):
    model = {"w": W, "out": 0.5 * normal(N, N, seed=5)}

    def step(m, x, h):
        h = jnp.tanh(m["w"] @ jnp.concatenate([x, h]))
        return m["out"] @ h, h

    program, found = online(RFLO(KEPT, window=window, seed=7), step, jnp.zeros(N), model)
    rule = RFLO(KEPT, seed=7)
    assert distance(found, reference(rule, step, jnp.zeros(N), model)) < 1e-12
    assert [c.claim for c in program.claims.values()] == ["exact", "approximate"]
    assert "fixed random weights in their place" in str(program)
