"""Hidden states of every layout."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.zoo import layouts as zoo
from tests.zoo.check import check, normal, weights

pytestmark = pytest.mark.slow

V = jnp.zeros(3)


def test_nested():
    model = zoo.Nested(weights(2, 2), weights(3))
    program = check(model, normal(2), model.init_state(), exact=True)
    states = {state for op in program.ops for state in op.states}
    assert ".layers[0]['n'].v" in states
    assert ".layers[0]['s'].i" in states


def test_membrane_and_adaptation_in_one_array():
    program = check(zoo.Columns(weights(3, 2)), normal(2), jnp.zeros((3, 2)), exact=True)
    assert {op.block for op in program.ops} == {2}


def test_ring_buffer():
    state = (jnp.zeros((2, 3)), jnp.ones((), jnp.int32))
    model = zoo.RingBuffer(weights(3, 2))
    check(model, normal(2), state, exact=True, smoothed=True, every=True)


def test_ring_buffer_by_slices():
    state = (jnp.zeros((4, 3)), jnp.zeros((), jnp.int32))
    check(zoo.SlicedRingBuffer(weights(3, 2), (1, 3, 2)), normal(2), state, exact=True)


def test_learned_delays():
    model = zoo.LearnedDelay(weights(3, 2), jnp.linspace(0.0, 2.0, 3))
    check(model, normal(2), jnp.zeros((3, 3)), exact=True)


def test_a_scalar_for_all():
    state = (V, jnp.zeros(()))
    check(zoo.SharedScalar(weights(3, 2), jnp.asarray(0.5)), normal(2), state, exact=True)


def test_refractory_counters():
    state = (V, jnp.zeros(3, jnp.int32), jnp.zeros(3, bool))
    check(zoo.Refractory(weights(3, 2, scale=2.0)), normal(2), state, exact=True, every=True)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
def test_noise(make):
    model = zoo.Noisy(weights(3, 2), weights(3), eqx.nn.Dropout(0.3))
    every = make is jax.random.key
    check(model, normal(2), (V, make(3)), exact=True, every=every, batched=False)


def test_bystanders():
    state = {"trace": jnp.zeros(2), "h": V, "fixed": V + 0.1, "sink": V, "empty": jnp.zeros(0)}
    program = check(zoo.Bystanders(weights(3, 2)), normal(2), state)
    assert all("['fixed']" not in op.states for op in program.ops)


def test_groups():
    model = zoo.Groups((weights(2, 2), weights(3, 2), weights(4, 2)))
    state = {"h": jnp.zeros(2), "v": V, "u": V, "line": jnp.zeros((3, 4))}
    program = check(model, normal(2), state, exact=True, smoothed=True)
    # of the line, the two places that a later step moves on
    assert sorted(op.block for op in program.ops) == [1, 2, 2]
    assert len(program.groups) == 3


def test_leaves_that_change_places():
    check(zoo.Swapped(weights(3, 2)), normal(2), (V, V), exact=True)


def test_one_flat_vector():
    program = check(zoo.Packed(weights(3, 2), weights(2)), normal(2), jnp.zeros(9), exact=True)
    assert {op.block for op in program.ops} == {3}


def test_numpy_states_and_parameters():
    step = lambda model, x, h: (jnp.tanh(h), 0.7 * h + model["w"] @ x)
    model = {"w": np.asarray(weights(3, 2)), "name": "net", "f": jnp.tanh}
    check(model, normal(2), np.zeros(3), step, exact=True)


def test_order_as_a_leaf_of_the_model():
    step = lambda model, x, h: (jnp.tanh(h), 0.7 * h[model["order"]] + model["w"] @ x)
    model = {"w": weights(4, 2), "order": jnp.array([1, 0, 2, 3])}
    program = check(model, normal(2), jnp.zeros(4), step, exact=True)
    assert isinstance(program, etpc.Program)
