"""UORO in windows: its mean over all signs is RTRL."""

import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import UORO
from etpc.rules import RandomDirection

T, I, N, W = 8, 2, 3, 2


def all_signs(directions, number, shape):
    """Each example of a batch has signs of its own, and together they have all."""
    example, state = jnp.indices(shape)
    return 1 - 2 * (example >> (shape[1] * number + state) & 1)


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


MODEL = {"w": normal(N, N, seed=0), "u": normal(N, I, seed=1)}
XS, TARGETS = normal(T, I, seed=2), normal(T, N, seed=3)


def step(m, x, h):
    h = jnp.tanh(m["w"] @ h + m["u"] @ x)
    return h, h


def online(algo, batch):
    program = etpc.compile(MODEL, algo, inputs=XS[0], state=jnp.zeros(N), step=step)
    xs, targets = (jnp.repeat(jnp.asarray(a)[:, None], batch, 1) for a in (XS, TARGETS))
    run = program.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2), "sum")
    (_, carry), grads = run(MODEL, xs, targets, program.init(batch))
    return program, np.concatenate([grads["w"], grads["u"]], 1), carry


def rtrl(count=T):
    """The gradient by `[w, u]` of the first steps, by its definition."""
    total = lambda y, t: jnp.sum((y - t) ** 2)
    given = dict(state=jnp.zeros(N), step=step, reduction="sum")
    _, grads = etpc.reference(MODEL, XS[:count], TARGETS[:count], total, UORO(), **given)
    return np.concatenate([grads["w"], grads["u"]], 1)


def test_the_mean_over_all_signs_is_rtrl(monkeypatch):
    windows_that_count = -(-T // W) - 1
    monkeypatch.setattr(RandomDirection, "signs", all_signs)
    program, mean, carry = online(UORO(window=W), 2 ** (N * windows_that_count))
    np.testing.assert_allclose(mean, rtrl(), rtol=0, atol=1e-9)
    assert not program.exact
    assert int(carry.shared[0]) == windows_that_count + 1


@pytest.mark.slow
def test_one_draw_is_not():
    program, one, _ = online(UORO(window=W), 1)
    _, other, _ = online(UORO(seed=1, window=W), 1)
    assert "unbiased estimate" in str(program)
    assert np.abs(one - rtrl()).max() > 1e-2
    assert np.abs(one - other).max() > 1e-2
