"""Hidden states of every layout."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

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
