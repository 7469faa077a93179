"""e-prop with a broadcast learning signal: a model under D-RTRL, as the signal is a matter of its readout.

Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", Nature Communications
11, 3625, 2020: random and adaptive e-prop for LIF neurons and a leaky readout.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc import nn
from tests.forms.test_user_form import loss, normal
from tests.marks import few

T, B, I, N, O, ALPHA, KAPPA = 9, 3, 4, 6, 2, 0.9, 0.7
MODEL = {
    "in": normal(N, I),
    "rec": 0.4 * normal(N, N, seed=1),
    "out": normal(O, N, seed=2),
    "back": normal(O, N, seed=3),
}
XS, TARGETS = normal(T, B, I, seed=4), normal(T, B, O, seed=5)
STATE = (jnp.zeros(N),) * 3


@jax.custom_jvp
def spike(v):
    return jnp.where(v > 0, 1.0, 0.0)


spike.defjvp(lambda v, dv: (spike(*v), dv[0] * 0.3 * jnp.maximum(1 - jnp.abs(v[0]), 0)))


def step(m, x, state, adaptive=False):
    v, z, a = state
    v = ALPHA * v + m["in"] @ x + m["rec"] @ z - lax.stop_gradient(z)
    z = spike(v - 1)
    a = KAPPA * a + z
    return nn.broadcast_readout(m["out"], m["back"], a, adaptive=adaptive), (v, z, a)


def by_hand():
    """The low-passed eligibility trace times `sum_k B_kj (y_k - y*_k)`; and the readout, filtered after its weights."""
    m = {k: np.asarray(w) for k, w in MODEL.items()}
    grads, spikes = {k: np.zeros_like(w) for k, w in m.items()}, 0
    for b in range(B):
        v, z, y, filtered = np.zeros(N), np.zeros(N), np.zeros(O), np.zeros(N)
        eps, e_bar = np.zeros(I + N), np.zeros((N, I + N))
        for x, target in zip(np.asarray(XS[:, b]), np.asarray(TARGETS[:, b]), strict=True):
            eps = ALPHA * eps + np.concatenate([x, z])
            v = ALPHA * v + m["in"] @ x + m["rec"] @ z - z
            z = (v > 1).astype(float)
            e_bar = KAPPA * e_bar + np.outer(0.3 * np.maximum(1 - np.abs(v - 1), 0), eps)
            y, filtered = KAPPA * y + m["out"] @ z, KAPPA * filtered + z
            error = 2 * (y - target)
            change = (m["back"].T @ error)[:, None] * e_bar / B
            grads["in"] += change[:, :I]
            grads["rec"] += change[:, I:]
            grads["out"] += np.outer(error, filtered) / B
            spikes += z.sum()
    assert spikes > T
    return grads


@pytest.mark.parametrize(
    ("adaptive", "window"), few([(False, 1), (False, 4), (True, 4)], (True, 4))
)
def test_eprop(adaptive, window):
    program = etpc.compile(
        MODEL,
        etpc.D_RTRL(window=window),
        inputs=XS[0, 0],
        state=STATE,
        step=lambda m, x, state: step(m, x, state, adaptive),
    )
    _, grads = program.value_and_grad(loss, "sum")(MODEL, XS, TARGETS, program.init(B))
    want = by_hand()
    want["back"] = want["out"] if adaptive else 0 * want["out"]
    for name in MODEL:
        np.testing.assert_allclose(grads[name], want[name], rtol=0, atol=1e-12)
    assert min(np.abs(want[name]).max() for name in ("in", "rec", "out")) > 0.1
