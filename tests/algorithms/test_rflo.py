"""RFLO: against loops, and where it is D-RTRL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import RFLO
from tests.helpers import loss, normal
from tests.marks import few

T, B, I, N, KEPT = 8, 3, 4, 5, 0.7
W, BIAS = 0.5 * normal(N, I + N), 0.1 * normal(N, seed=1)
XS, TARGETS = normal(T, B, I, seed=2), normal(T, B, N, seed=3)
MODEL = {"w": W, "b": BIAS}


def two_states(m, x, state):
    """Each unit has a block of two states; the output also reads the old ones."""
    h, slow = state
    h_new = jnp.tanh(m["w"] @ jnp.concatenate([x, h]) + m["b"])
    slow_new = 0.5 * slow + h_new * h
    return jnp.sin(h_new + slow_new) + jnp.cos(h), (h_new, slow_new)


def by_hand(kept):
    """The sum of L_t p_t and of the credit of old states by p_{t-1}, with one trace for each state."""
    grads = {"w": np.zeros((N, I + N)), "b": np.zeros(N)}
    for b in range(B):
        h = slow = np.zeros(N)
        p = np.zeros((2, N, I + N + 1))
        for x, target in zip(np.asarray(XS[:, b]), np.asarray(TARGETS[:, b]), strict=True):
            read = np.concatenate([x, h, [1.0]])
            new = np.tanh(np.asarray(W) @ read[:-1] + np.asarray(BIAS))
            new_slow = 0.5 * slow + new * h
            y = np.sin(new + new_slow) + np.cos(h)
            back = 2 * (y - target)
            total = -(back * np.sin(h))[:, None] * p[0]  # the output reads the old h
            f = 1 - new**2  # and the slow state the new and the old one
            p = kept * p + np.stack([f, f * h])[:, :, None] * read
            # A path from h to the slow state of the same step is in the trace of that.
            total = total + (back * np.cos(new + new_slow))[:, None] * p.sum(0)
            grads["w"] += total[:, :-1] / B
            grads["b"] += total[:, -1] / B
            h, slow = new, new_slow
    return grads


def online(algo, step, state, model=MODEL):
    program = etpc.compile(model, algo, inputs=XS[0, 0], state=state, step=step)
    run, carry, total = program.value_and_grad(loss, "sum"), program.init(B), None
    for part in (slice(0, 4), slice(4, T)):
        (_, carry), grads = run(model, XS[part], TARGETS[part], carry)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return program, total


@pytest.mark.parametrize("window", few([1, 2], 2))
def test_the_trace_has_a_fixed_leak(window):
    program, found = online(
        RFLO(KEPT, "symmetric", window=window), two_states, (jnp.zeros(N), jnp.zeros(N))
    )
    expected, immediate = by_hand(KEPT), by_hand(0.0)
    for name in MODEL:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-12)
        assert np.abs(expected[name] - immediate[name]).max() > 1e-2
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
    """`p' = kept p + F x^T`, and the error comes back by B, in loops."""
    model = {"w": W, "out": 0.5 * normal(N, N, seed=5)}
    back = np.random.default_rng(7).normal(size=(N, N)) / np.sqrt(N)

    def step(m, x, h):
        h = jnp.tanh(m["w"] @ jnp.concatenate([x, h]))
        return m["out"] @ h, h

    program, found = online(RFLO(KEPT, window=window, seed=7), step, jnp.zeros(N), model)
    out, want = np.asarray(model["out"]), {"w": 0.0, "out": 0.0}
    for b in range(B):
        h, p = np.zeros(N), np.zeros((N, I + N))
        for x, target in zip(np.asarray(XS[:, b]), np.asarray(TARGETS[:, b]), strict=True):
            read = np.concatenate([x, h])
            h = np.tanh(np.asarray(W) @ read)
            p = KEPT * p + np.outer(1 - h**2, read)
            error = 2 * (out @ h - target)
            want["w"] = want["w"] + (back.T @ error)[:, None] * p / B
            want["out"] = want["out"] + np.outer(error, h) / B
    for name in model:
        np.testing.assert_allclose(found[name], want[name], rtol=0, atol=1e-12)
    assert [c.claim for c in program.claims.values()] == ["exact", "approximate"]
    assert "fixed random weights in their place" in str(program)
