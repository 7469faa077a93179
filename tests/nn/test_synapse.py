"""Synapses and delays against their equations."""

import jax.numpy as jnp
import numpy as np
import pytest

from etpc import nn
from tests.nn.online import KEY, outputs

SPIKES = np.random.default_rng(0).binomial(1, 0.4, (40, 3)).astype(float)


@pytest.mark.parametrize(("tau", "dt"), [(5.0, 1.0), (np.array([2.0, 5.0, 9.0]), 0.3)])
def test_exponential(tau, dt: float) -> None:
    found = outputs(nn.ExponentialSynapse(3, tau=tau, dt=dt), SPIKES)
    for t in range(40):
        past = [np.exp(-(t - s) * dt / tau) * SPIKES[s] for s in range(t + 1)]
        np.testing.assert_allclose(found[t], sum(past), rtol=1e-12)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("rise", [1.5, np.array([0.5, 1.5, 3.0])])
def test_dual_exponential(rise, normalise: bool) -> None:
    synapse = nn.DualExponentialSynapse(
        3, tau_rise=rise, tau_decay=6.0, normalise=normalise, dt=0.01
    )
    found = outputs(synapse, np.concatenate([np.ones((1, 3)), np.zeros((1500, 3))]))
    t = 0.01 * np.arange(1501)[:, None]
    shape = np.exp(-t / 6.0) - np.exp(-t / rise)
    if normalise:
        np.testing.assert_allclose(found.max(0), 1, rtol=1e-5)
        shape = shape / shape.max(0)
    np.testing.assert_allclose(found, np.broadcast_to(shape, found.shape), rtol=1e-5, atol=1e-12)


def test_currents() -> None:
    g, V = jnp.array([0.0, 0.5, 2.0]), jnp.array([-70.0, -60.0, -90.0])
    E = np.array([0.0, -70.0, -80.0])
    np.testing.assert_allclose(nn.COBA(3, E=E)(g, V), np.asarray(g) * (E - np.asarray(V)))
    np.testing.assert_allclose(nn.COBA(3)(g, V), -np.asarray(g) * np.asarray(V))


def test_short_term_plasticity() -> None:
    U, tau_f, tau_d, dt = 0.3, 20.0, 9.0, 0.5
    found = outputs(nn.ShortTermPlasticity(3, U=U, tau_f=tau_f, tau_d=tau_d, dt=dt), SPIKES)
    for k in range(3):
        u, x = 0.0, 1.0
        for t in range(40):
            u = u * np.exp(-dt / tau_f)
            x = 1 - (1 - x) * np.exp(-dt / tau_d)
            efficacy = 0.0
            if SPIKES[t, k]:
                u = u + U * (1 - u)
                efficacy = u * x
                x = x - efficacy
            np.testing.assert_allclose(found[t, k], efficacy, rtol=1e-12)
    first = SPIKES.argmax(0)
    np.testing.assert_allclose(found[first, range(3)], U, rtol=1e-12)


@pytest.mark.parametrize(
    ("size", "steps"),
    [((3,), 2), ((3,), np.array([0, 4, 1])), ((2, 3), np.arange(1, 7).reshape(2, 3))],
)
def test_delay(size, steps) -> None:
    xs, delay = np.random.default_rng(1).normal(size=(20, *size)), nn.Delay(size, steps)
    assert delay.init_state().shape == (int(np.max(steps)), *size)
    found = outputs(delay, xs)
    for at, d in np.ndenumerate(np.broadcast_to(steps, size)):
        line = slice(None), *at
        np.testing.assert_array_equal(found[line], np.r_[np.zeros(d), xs[line][: 20 - d]])


def test_delayed_linear() -> None:
    delays = np.array([[0, 3, 1], [2, 0, 5]])
    layer = nn.DelayedLinear(3, 2, delays, key=KEY)
    weight, xs = np.asarray(layer.weight), np.random.default_rng(1).normal(size=(20, 3))
    found = outputs(layer, xs)
    for t in range(20):
        for o in range(2):
            arrived = [xs[t - d, i] if t >= d else 0.0 for i, d in enumerate(delays[o])]
            np.testing.assert_allclose(found[t, o], weight[o] @ arrived, rtol=1e-12, atol=1e-15)
