"""Weights that are added to one sum have one trace and one gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests.helpers import normal, weights
from tests.marks import few

T, B, I, N = 12, 3, 2, 5
XS, TARGETS = normal(T, B, I, seed=4), normal(T, B, N, seed=5)
MODEL = {
    "W": weights(N, I, seed=1),
    "V": weights(N, N, seed=2),
    "b": normal(N, seed=3),
    "c": normal(N, seed=6),
    "leak": jnp.linspace(0.3, 0.9, N),
}
RULES = [
    etpc.D_RTRL(),
    etpc.D_RTRL(window=1),
    etpc.D_RTRL(window=4, backprop="full"),
    etpc.ES_D_RTRL(decay=0.9),
    etpc.ES_D_RTRL(rank=2),
    etpc.RTRL(),
    etpc.TBPTT(3),
    etpc.CreditRTRL(2, rank=2),
]


def step(m, x, h):
    return total(m, x, h)[0]


def apart(m, x, h):
    """The output reads one of the sums once more, so that nothing is equal; the loss ignores that."""
    (y, h), of_back = total(m, x, h)
    return (y, of_back[0]), h


def total(m, x, h):
    of_back = m["V"] @ jnp.sin(h) + m["c"]
    h = m["leak"] * jnp.tanh(h) + jnp.tanh((m["W"] @ x + m["b"]) + of_back)
    return (h, h), of_back


def loss(y, target):
    return jnp.sum((jax.tree.leaves(y)[0] - target) ** 2)


def compiled(step, rule=RULES[0], model=MODEL):
    return etpc.compile(model, rule, inputs=XS[0, 0], state=jnp.zeros(N), step=step, batch_size=B)


def equal(program):
    return {op.path: other.path for op, other in program.plan.equal.items()}


@pytest.mark.parametrize("rule", few(RULES, *RULES[:5]), ids=str)
def test_the_gradient_is_that_of_traces_apart(rule):
    one, two = compiled(step, rule), compiled(apart, rule)
    assert equal(one) == ({"['b']": "['c']"} if one.plan.traces else {})
    assert equal(two) == {}
    (_, carry), found = one.value_and_grad(loss)(MODEL, XS, TARGETS, one.init(B))
    (_, more), wanted = two.value_and_grad(loss)(MODEL, XS, TARGETS, two.init(B))
    for path in MODEL:
        np.testing.assert_allclose(found[path], wanted[path], rtol=1e-9, atol=1e-12)
    if one.plan.traces:
        assert len(one.plan.carried) < len(two.plan.carried)
        sizes = [sum(a.nbytes for a in jax.tree.leaves(c)) for c in (carry, more)]
        assert sizes[0] < sizes[1]


def test_the_update_at_each_step_is_that_of_traces_apart():
    moved = []
    for of_step in (step, apart):
        learner = etpc.online(compiled(of_step), loss, optax.sgd(0.05), every=1)
        moved.append(learner.update(MODEL, *learner.init(MODEL, B), XS, TARGETS)[0])
    for path in MODEL:
        np.testing.assert_allclose(moved[0][path], moved[1][path], rtol=1e-9)
    change = [moved[0][path] - MODEL[path] for path in ("b", "c")]
    np.testing.assert_allclose(*change, rtol=1e-9)


def test_a_weight_for_all_units_is_the_sum_of_what_each_would_have():
    """It is spread over the units before the step; what is spread is equal to the other bias."""

    def step(m, x, h):
        h = m["leak"] * h + jnp.tanh((m["W"] @ x + m["b"]) + jnp.repeat(m["c"], N))
        return h, h

    model = {**MODEL, "c": jnp.array([0.3])}
    program = compiled(step, model=model)
    assert equal(program) == {"['c']": "['b']"}
    (_, found) = program.value_and_grad(loss)(model, XS, TARGETS, program.init(B))
    of_stream = {"state": jnp.zeros(N), "step": step, "batch_size": B}
    _, wanted = etpc.bptt(model, XS, TARGETS, loss, **of_stream)
    for path in ("W", "b", "c", "leak"):
        np.testing.assert_allclose(found[path], wanted[path], rtol=1e-9)


def read_twice(m, x, h):
    h = m["leak"] * h + jnp.tanh(m["W"] @ x + m["b"] + m["c"])
    return h + m["c"], h


def subtracted(m, x, h):
    h = m["leak"] * h + jnp.tanh((m["W"] @ x + m["b"]) - m["c"])
    return h, h


def after_the_sum(m, x, h):
    h = m["leak"] * h + jnp.tanh(m["W"] @ x + m["b"]) + m["c"]
    return h, h


@pytest.mark.parametrize("of_step", [read_twice, subtracted, after_the_sum])
def test_others_are_not_equal(of_step):
    assert equal(compiled(of_step)) == {}


def test_what_is_said():
    program = compiled(step)
    row = next(line for line in str(program).splitlines() if line.startswith("['b']"))
    assert "as ['c']" in row
    assert " 0 " in row
    assert "has the trace and the gradient of that" in " ".join(program.explain("['b']").split())
    assert program.claims["['c']"].claim == program.claims["['b']"].claim
