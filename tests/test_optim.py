"""Optax transformations against sums by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc.optim import trace_of_gradient
from tests.test_online import (
    PLAIN,
    D,
    arrays,
    close,
    data,
    gradients_of_each_step,
    loss,
    program_of,
)

T, DECAY = 6, 0.6
REWARDS = np.random.default_rng(5).normal(size=T)


@pytest.mark.parametrize("batch", [None, 1])
def test_late_rewards_of_one_stream(batch):
    """`sum_t r_t sum_{s <= t} decay^(t - s) g_s`, while the weights stay."""
    (xs, targets), program = data(T, batch), program_of(PLAIN, D)
    optimizer = optax.chain(trace_of_gradient(DECAY), optax.scale(2.0))
    run = program.value_and_grad(loss, "sum")
    carry, updates = program.init(batch), []
    state = optimizer.init(eqx.filter(PLAIN, eqx.is_inexact_array))
    for t in range(T):
        (_, carry), grads = run(PLAIN, xs[t : t + 1], targets[t : t + 1], carry)
        update, state = jax.jit(optimizer.update)(grads, state, reward=REWARDS[t])
        updates.append(arrays(update))
    sequence = (xs[:, None], targets[:, None]) if batch is None else (xs, targets)
    ones, never = np.ones((T, 1)), np.zeros((T, 1), bool)
    (each,) = gradients_of_each_step(program, PLAIN, *sequence, ones, never)
    expected = [
        2 * sum(REWARDS[t] * DECAY ** (t - s) * g[s] for t in range(T) for s in range(t + 1))
        for g in zip(*each, strict=True)
    ]
    assert min(np.abs(e).max() for e in expected) > 1e-2
    close([sum(u) for u in zip(*updates, strict=True)], expected, 1e-10)


def test_without_a_reward_it_is_the_trace_itself():
    optimizer, gradients = trace_of_gradient(DECAY), np.random.default_rng(0).normal(size=(T, 3))
    state, trace = optimizer.init({"w": jnp.zeros(3), "none": None}), np.zeros(3)
    for g in gradients:
        update, state = optimizer.update({"w": jnp.asarray(g), "none": None}, state)
        trace = DECAY * trace + g
        np.testing.assert_allclose(update["w"], trace, rtol=1e-12)


def test_dtypes_stay():
    optimizer = trace_of_gradient(np.float64(0.5))
    for dtype in (jnp.float32, jnp.complex64):
        w = jnp.ones(2, dtype)
        state = optimizer.init(w)
        for a in jax.tree.leaves(optimizer.update(w, state, reward=jnp.float64(2.0))):
            assert a.dtype == dtype


def test_bad_input():
    for decay in (-0.1, 1.5, float("nan")):
        with pytest.raises(etpc.InputError, match=r"decay must lie in \[0, 1\], and is"):
            trace_of_gradient(decay)
    optimizer = trace_of_gradient(0.5)
    w = jnp.ones(2)
    with pytest.raises(etpc.InputError, match=r"reward has shape \[2\].* one stream"):
        optimizer.update(w, optimizer.init(w), reward=w)
