"""OTPE with one hidden layer, whose spikes are states, against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import OTPE
from tests.helpers import loss, normal

T, B, I, N, O, A = 8, 3, 4, 5, 2, 0.8


MODEL = {"w": normal(N, I), "b": normal(N, seed=4), "out": normal(O, N, seed=1)}
XS, TARGETS = normal(T, B, I, seed=2), normal(T, B, O, seed=3)


def step(m, x, state):
    v, before, r = state
    v = A * v + m["w"] @ x + m["b"]
    s = jnp.tanh(v)  # in the place of a spike with its surrogate derivative
    r = A * r + m["out"] @ s
    return (jnp.sin(r), before), (v, s, r)  # a state that no output reads would not be followed


def by_hand():
    w, out = np.column_stack([MODEL["w"], MODEL["b"]]), np.asarray(MODEL["out"])
    of_w, of_out = np.zeros_like(w), np.zeros_like(out)
    for b in range(B):
        v, r, p, q, R = np.zeros(N), np.zeros(O), np.zeros(I + 1), np.zeros(N), np.zeros((N, I + 1))
        for x, target in zip(np.asarray(XS[:, b]), np.asarray(TARGETS[:, b]), strict=True):
            x = np.append(x, 1.0)
            v, p = A * v + w @ x, A * p + x
            q, r = A * q + np.tanh(v), A * r + out @ np.tanh(v)
            R = A * R + np.outer(1 - np.tanh(v) ** 2, p)
            error = 2 * (np.sin(r) - target) * np.cos(r)
            of_w += (out.T @ error)[:, None] * R / B
            of_out += np.outer(error, q) / B
    return of_w[:, :-1], of_w[:, -1], of_out


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 5])
def test_otpe(window):
    state = jnp.zeros(N), jnp.zeros(N), jnp.zeros(O)
    program = etpc.compile(MODEL, OTPE(A, window=window), inputs=XS[0, 0], state=state, step=step)
    run, carry, total = (
        program.value_and_grad(lambda y, t: loss(y[0], t), "sum"),
        program.init(B),
        [0.0, 0.0, 0.0],
    )
    for part in (slice(0, 4), slice(4, T)):
        (_, carry), grads = run(MODEL, XS[part], TARGETS[part], carry)
        total = [a + np.asarray(grads[k]) for a, k in zip(total, MODEL, strict=True)]
    for got, want in zip(total, by_hand(), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
        assert np.abs(want).max() > 0.1
    assert program.claims["['w']"].claim == "approximate"
    assert "low-passed 0.8" in str(program)
    # the readout leaks as the estimate does, so this is the gradient
    _, exact = etpc.bptt(
        *(MODEL, XS, TARGETS, lambda y, t: loss(y[0], t)),
        state=state,
        step=step,
        batch_size=B,
        reduction="sum",
    )
    np.testing.assert_allclose(total[0], exact["w"], rtol=0, atol=1e-12)
