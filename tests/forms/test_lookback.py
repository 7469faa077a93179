"""Credit that goes back through the last K steps exactly, with traces of what is older."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests import models
from tests.algorithms.test_credit import B, T, case_of
from tests.helpers import distance
from tests.marks import few

RULES = [etpc.D_RTRL, etpc.ES_D_RTRL, etpc.CreditRTRL, etpc.RTRL]


@pytest.mark.parametrize("name", few(models.ALL_NAMED, "embedding"))
def test_equals_its_definition_and_bptt_where_it_is_long_enough(name):
    case = case_of(name)
    bptt = case.bptt()
    for K in (4, T + 1):
        rule = etpc.D_RTRL(window=2, lookback=K)
        found = case.online(rule, parts=1)
        assert distance(found, case.defined(rule)) < 1e-9
    assert distance(found, bptt) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_long_enough_it_is_bptt_under_every_rule(rule):
    case = case_of("two_layer_lif")
    bptt = case.bptt()
    found = case.online(rule(window=2, lookback=T + 1), parts=2)
    assert distance(found, bptt) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_one_window_is_the_exact_window(rule):
    case = case_of("gru")
    found = [
        case.online(rule(window=2, **more), parts=1)
        for more in ({"lookback": 2}, {"backprop": "full"})
    ]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_windows_of_one_step_and_of_a_part_in_several_calls(rule):
    """A sequence that windows do not divide; calls in which windows are cut short."""
    case = case_of("alif")
    program = case.program(rule(window=3, lookback=5))
    run = program.value_and_grad(models.loss, "sum")
    total, carry = 0.0, program.init(B)
    bptt = case.bptt()
    for start, stop in itertools.pairwise((0, 1, 2, 5, T)):
        (_, carry), grads = run(case.model, case.xs[start:stop], case.targets[start:stop], carry)
        total = total + np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
    wanted = np.concatenate([np.ravel(g) for g in jax.tree.leaves(bptt)])
    assert total @ wanted / np.linalg.norm(total) / np.linalg.norm(wanted) > 0.9
    exact = np.abs(total - wanted).max() < 1e-12 * np.abs(wanted).max()
    assert exact == (rule is etpc.RTRL)  # five steps are too few for the others


@pytest.mark.slow
def test_weights_that_move():
    """Each step of the path is linearised at the state as it was, with the current weights."""
    key = jax.random.key(0)
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))
    xs = jax.random.normal(key, (6, 2, 3))
    targets = jax.random.normal(jax.random.key(1), (6, 2, 3))

    def step(w, x, h):
        h = jnp.tanh(w @ h + x)
        return h, h

    def loss(y, t):
        return jnp.sum((y - t) ** 2)

    K, rate = 3, 0.05
    program = etpc.compile(
        w, etpc.TBPTT(K, every=1), inputs=xs[0, 0], state=jnp.zeros(3), step=step
    )
    learner = etpc.online(program, loss, optax.sgd(rate), every=1, reduction="sum")
    opt_state, carry = learner.init(w, batch_size=2)
    found = learner.update(w, opt_state, carry, xs, targets)[0]

    by_hand, states = w, [np.zeros((2, 3))]
    for t in range(6):
        states.append(np.stack([step(by_hand, xs[t, b], states[t][b])[1] for b in range(2)]))
        grad = 0.0
        for b in range(2):
            bar = jax.grad(loss)(jnp.asarray(states[t + 1][b]), targets[t, b])
            for s in reversed(range(max(0, t + 1 - K), t + 1)):
                _, pull = jax.vjp(
                    lambda w, h, s=s, b=b: step(w, xs[s, b], h)[1],
                    by_hand,
                    jnp.asarray(states[s][b]),
                )
                own, bar = pull(bar)
                grad = grad + own / 2
        by_hand = by_hand - rate * grad
    np.testing.assert_allclose(found, by_hand, atol=1e-12)


@pytest.mark.slow
def test_rolling_truncation_has_no_trace():
    case = case_of("gru")
    program = case.program(etpc.TBPTT(4, every=2))
    assert not program.ops
    claims = {claim.claim for claim in program.claims.values() if claim.reasons}
    assert claims == {"approximate"}
    assert not program.exact
    bptt = case.bptt()
    assert distance(case.online(etpc.TBPTT(T + 1, every=2)), bptt) < 1e-9
    assert 1e-3 < distance(case.online(etpc.TBPTT(4, every=2)), bptt) < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"window": 4, "lookback": 3}, "lookback=3 is less than window=4"),
        ({"lookback": 0}, "lookback"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(etpc.EtpcError, match=message):
        etpc.D_RTRL(**given)


@pytest.mark.slow
def test_a_derivative_that_is_infinite_at_rest_is_met_no_more_than_by_bptt():
    def step(w, x, h):
        h = w * jnp.sqrt(jnp.sum(h**2) + x**2)
        return h, h

    w, xs = jnp.full(2, 0.7), 1 + jnp.arange(8.0).reshape(4, 2)
    program = etpc.compile(
        w, etpc.D_RTRL(window=1, lookback=3), inputs=xs[0], state=jnp.zeros(2), step=step
    )
    run = program.value_and_grad(lambda y, t: jnp.sum(y), "sum")
    grads = run(w, xs, xs, program.init())[1]
    assert np.isfinite(grads).all()
