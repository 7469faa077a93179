"""Optax transformations against sums by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc.optim import obgd, trace_of_gradient
from tests.test_errors import unchecked
from tests.test_online import PLAIN, D, arrays, close, data, loss, program_of

T, DECAY = 6, 0.6
REWARDS = np.random.default_rng(5).normal(size=T)


@pytest.mark.slow
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
    each, carry, parameters = [], program.init(), eqx.filter(PLAIN, eqx.is_inexact_array)
    for x, target in zip(xs.reshape(T, -1), targets.reshape(T, -1), strict=True):

        def one(parameters, x=x, target=target, carry=carry):
            y, after = program(eqx.combine(parameters, PLAIN), x, carry)
            return loss(y, target), after

        grads, carry = jax.grad(one, has_aux=True)(parameters)
        each.append(arrays(grads))
    expected = [
        2 * sum(REWARDS[t] * DECAY ** (t - s) * g[s] for t in range(T) for s in range(t + 1))
        for g in zip(*each, strict=True)
    ]
    assert min(np.abs(e).max() for e in expected) > 1e-2
    close([sum(u) for u in zip(*updates, strict=True)], expected, 1e-10)


def test_without_a_reward_it_is_the_trace_itself_of_which_a_reset_leaves_nothing():
    optimizer, gradients = trace_of_gradient(DECAY), np.random.default_rng(0).normal(size=(T, 3))
    state, trace = optimizer.init({"w": jnp.zeros(3), "none": None}), np.zeros(3)
    for t, g in enumerate(gradients):
        reset = {"reset": t in (2, 4)} if t else {}
        grads = {"w": jnp.asarray(g), "none": None}
        update, state = jax.jit(optimizer.update)(grads, state, **reset)
        trace = g if t in (2, 4) else DECAY * trace + g
        np.testing.assert_allclose(update["w"], trace, rtol=1e-12)


def obgd_in_numpy(gradients, errors, decay, step_size, kappa):
    """Algorithm 3 of Elsayed et al., with the trace, for parameters as one vector: the sum of all steps."""
    z, total = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    for g, error in zip(gradients, errors, strict=True):
        z = decay * z + g
        bound = step_size * kappa * max(abs(error), 1.0) * np.abs(z).sum()
        total += min(step_size, step_size / bound) * error * z
    return total


@pytest.mark.parametrize(("step_size", "kappa"), [(1.0, 2.0), (0.1, 3.0), (1e-3, 2.0)])
def test_obgd(step_size, kappa):
    """Steps that are bounded, and steps that are not."""
    rng = np.random.default_rng(1)
    gradients, errors = rng.normal(size=(T, 5)), 3 * rng.normal(size=T)
    optimizer = optax.chain(trace_of_gradient(DECAY), obgd(step_size, kappa))
    w = {"a": jnp.zeros(2), "b": jnp.zeros((3, 1)), "none": None}
    state = optimizer.init(w)
    for g, error in zip(gradients, errors, strict=True):
        grads = {"a": jnp.asarray(g[:2]), "b": jnp.asarray(g[2:, None]), "none": None}
        updates, state = jax.jit(optimizer.update)(grads, state, w, error=error)
        w = optax.apply_updates(w, updates)
    expected = obgd_in_numpy(gradients, errors, DECAY, step_size, kappa)
    np.testing.assert_allclose(np.concatenate([w["a"], w["b"][:, 0]]), expected, rtol=1e-12)


def test_obgd_does_not_overshoot():
    """Without a bound this step would: the value of a linear function, whose features are at most 1."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.uniform(-1, 1, 20))
    for error in (0.3, -0.8, 5.0):
        for kappa in (1.0, 2.0):
            update, _ = obgd(kappa=kappa).update(x, optax.EmptyState(), error=error)
            change = float(update @ x) / error
            assert 0 < change <= min(1.0, 1.0 / abs(error)) / kappa
            assert abs(error * float(x @ x)) > abs(error)


def test_dtypes_stay():
    for optimizer in (trace_of_gradient(np.float64(0.5)), obgd(np.float64(0.5))):
        for dtype in (jnp.float32, jnp.complex64):
            w = jnp.ones(2, dtype)
            state = optimizer.init(w)
            late = dict(reward=jnp.float64(2.0), error=jnp.float64(2.0))
            for a in jax.tree.leaves(optimizer.update(w, state, **late)):
                assert a.dtype == dtype


def test_bad_input():
    for decay in (-0.1, 1.5, float("nan"), "0.9", None, [0.9], 0.9j):
        with pytest.raises(etpc.InputError, match=r"decay must lie in \[0, 1\], and is"):
            unchecked(trace_of_gradient)(decay)
    optimizer = trace_of_gradient(0.5)
    w = jnp.ones(2)
    for name in ("reward", "reset"):
        with pytest.raises(etpc.InputError, match=rf"{name} has shape \[2\].* one stream"):
            optimizer.update(w, optimizer.init(w), **{name: w})
    for name in ("step_size", "kappa"):
        for value in (0.0, -1.0, float("nan"), float("inf"), "1.0", None, [1.0], 1j):
            with pytest.raises(etpc.InputError, match=f"{name} must be a finite number > 0"):
                unchecked(obgd)(**{name: value})
    with pytest.raises(etpc.InputError, match=r"error has shape \[2\].* one stream"):
        obgd().update(w, optax.EmptyState(), error=w)
    with pytest.raises(etpc.InputError, match="needs the temporal-difference error"):
        obgd().update(w, optax.EmptyState())
