"""Linear recurrences over the steps of a window as associative scans, which TPUs and GPUs have in place of loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.forms import _in_parallel, every_pair
from etpc.forms import _transitions as transitions
from etpc.schedule import Schedule
from tests.helpers import alive, distance, loss, normal

STEPS, BATCH, OUTPUTS = 7, 2, 3
PARALLEL = Schedule(abreast=1 << 10)


def drawn(m):
    """Transitions and what each step adds, and the states at the start."""
    entries, shape = m * m, (STEPS, BATCH)
    start = normal(BATCH, m, OUTPUTS, seed=3)
    return normal(*shape, entries, OUTPUTS, seed=1), normal(*shape, m, OUTPUTS, seed=2), start


@pytest.mark.parametrize("m", [1, 2])
def test_scans_are_the_loops(m):
    pairs, (transition, added, start) = every_pair(m), drawn(m)
    in_loops, in_scans = (
        functools.partial(suffixes, pairs, transition, added, schedule)
        for schedule in (Schedule(), PARALLEL)
    )
    assert "scan[" in str(jax.make_jaxpr(in_loops)())
    assert "scan[" not in str(jax.make_jaxpr(in_scans)())
    assert distance(in_scans(), in_loops()) < 1e-13
    for decay in (1.0, 0.8):
        loop, scan = (
            transitions.recurrence(pairs, transition, added, start, schedule, decay)
            for schedule in (Schedule(), PARALLEL)
        )
        assert distance(scan, loop) < 1e-13


def suffixes(pairs, transition, added, schedule):
    move, whole = transitions.suffix_products(pairs, transition, range(pairs.m), schedule)
    return move(added), whole


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("has_old", [True, False])
def test_credit_is_passed_back_as_step_by_step(m, has_old):
    transition, new, _ = drawn(m)
    old = normal(STEPS, BATCH, m, OUTPUTS, seed=4) if has_old else jnp.zeros_like(new)
    dense = np.asarray(transition).reshape(STEPS, BATCH, m, m, OUTPUTS)
    earlier, total = np.zeros((BATCH, m, OUTPUTS)), np.zeros(new.shape)
    for t in reversed(range(STEPS)):
        total[t] = new[t] + earlier
        earlier = np.einsum("bao,baco->bco", total[t], dense[t]) + old[t]
    parts = lambda a: [a[..., n, :] for n in range(a.shape[-2])]
    found = _in_parallel.passed_back(parts(transition), parts(new), parts(old) if has_old else None)
    assert distance(found, (parts(total), parts(earlier))) < 1e-13


def test_what_is_not_finite_does_not_pass_a_transition_of_zero():
    """As in a loop: the derivative of a norm at zero may be NaN where no influence arrives."""
    transition, new = jnp.ones((4, 1, 1)), jnp.ones((4, 1, 1))
    transition, new = transition.at[2].set(0), new.at[3].set(jnp.nan)
    (total,), (start,) = _in_parallel.passed_back([transition], [new], None)
    assert np.isnan(total[3]).all()
    assert not np.isnan(total[:2]).any()
    assert (start == total[0]).all()
    infinite = transition.at[0].set(jnp.inf)
    (products,) = _in_parallel.products([infinite])
    assert (products[1:3] == 0).all()


def two_states(m, x, state):
    """A layer that adapts: two states for each neuron, of which each reads the other."""
    v, a = state
    v, a = 0.9 * v - 0.2 * a + jnp.tanh(m["w"] @ x + m["r"] @ jnp.tanh(v)), 0.8 * a + 0.3 * v**2
    return jnp.sum(m["out"] * v)[None], (v, a)


@pytest.mark.parametrize("rule", [etpc.D_RTRL(window=6), etpc.ES_D_RTRL(decay=0.8, window=6)])
def test_streams_may_begin_within_a_window(rule):
    model = {"w": normal(4, 2), "r": 0.3 * normal(4, 4, seed=1), "out": normal(4, seed=2)}
    xs, targets = normal(12, 3, 2, seed=3), normal(12, 3, 1, seed=4)
    begins = jnp.zeros((12, 3), bool).at[2, 0].set(True).at[8, 1].set(True).at[6, 2].set(True)
    options = dict(inputs=xs[0, 0], state=(jnp.zeros(4),) * 2, step=two_states, target="cuda")
    grads = {}
    for passes in ((), ("scans",), None):
        program = etpc.compile(model, rule, passes=passes, **options)
        run = program.value_and_grad(loss, "sum")
        text = str(jax.make_jaxpr(run)(model, xs, targets, program.init(3), begins=begins))
        assert ("reverse=True" in text) == (passes == ())
        grads[passes] = run(model, xs, targets, program.init(3), begins=begins)[1]
    assert alive(grads[()])
    assert distance(grads["scans",], grads[()]) < 1e-11
    assert distance(grads[None], grads[()]) < 1e-11


def test_states_that_mix_or_are_many_are_passed_back_by_loops():
    neighbours = lambda w, x, h: (h := 0.5 * (h + jnp.roll(h, 1)) + jnp.tanh(w @ x),) * 2
    wide = lambda w, x, h: (h := 0.5 * h + jnp.tanh(w @ x),) * 2
    for step, units, batch in ((neighbours, 4, 2), (wide, 512, 513)):
        program = etpc.compile(
            *(jnp.ones((units, 2)), etpc.D_RTRL(window=6)),
            **dict(inputs=jnp.ones(2), state=jnp.zeros(units), step=step, target="cuda"),
        )
        run = program.value_and_grad(loss, "sum")
        shapes = jnp.ones((units, 2)), jnp.ones((6, batch, 2)), jnp.ones((6, batch, units))
        text = str(jax.make_jaxpr(run)(*shapes, program.init(batch)))
        assert "reverse=True" in text
    assert dataclasses.replace(program.ir.schedule, abreast=1 << 19).in_parallel(6, 1, 512 * 513)
