"""Readouts against their equations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc import nn
from tests.nn.online import KEY


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LeakyRateReadout, {}),
        (nn.MembraneReadout, {"use_bias": True}),
        (nn.MembraneReadout, {"use_bias": False}),
    ],
)
@pytest.mark.parametrize(("tau", "dt"), [(5.0, 1.0), (2, 1), (np.array([4.0, 20.0]), 0.5)])
def test_equation(kind, options: dict, tau, dt: float) -> None:
    readout = kind(3, 2, **options, tau=tau, dt=dt, key=KEY)
    bias = np.zeros(2)
    if options.get("use_bias"):
        bias = np.array([0.3, -0.2])
        readout = eqx.tree_at(lambda r: r.bias, readout, jnp.asarray(bias))
    xs = np.asarray(jax.random.normal(jax.random.key(1), (7, 3)))
    state, expected = readout.init_state(), np.zeros(2)
    np.testing.assert_array_equal(state, expected)
    decay = np.exp(-dt / tau)
    gain = 1 if kind is nn.LeakyRateReadout else 1 - decay
    for x in xs:
        y, state = eqx.filter_jit(readout)(jnp.asarray(x), state)
        np.testing.assert_array_equal(y, state)
        expected = decay * expected + gain * (np.asarray(readout.weight) @ x + bias)
        np.testing.assert_allclose(state, expected, rtol=1e-12)


def test_defaults() -> None:
    readout = nn.LeakyRateReadout(400, 300, key=KEY)
    assert readout.weight.shape == (300, 400)
    np.testing.assert_allclose(jnp.var(readout.weight), 2 / 400, rtol=0.03)
    assert (readout.tau, readout.dt) == (5.0, 1.0)
    assert jax.tree.leaves(eqx.filter(readout, eqx.is_array)) == [readout.weight]


@pytest.mark.parametrize("tau", [jnp.array(4.0), jnp.array([4.0, 8.0]), np.array([4, 8])])
def test_array_tau_is_a_marked_parameter(tau: jax.Array | np.ndarray) -> None:
    readout = nn.LeakyRateReadout(3, 2, tau=tau, key=KEY)
    assert isinstance(readout.tau, jax.Array)
    x, r = jnp.zeros(3), jnp.array([1.0, 2.0])
    np.testing.assert_allclose(readout(x, r)[1], r * np.exp(-1 / np.asarray(tau)), rtol=1e-14)
    assert str(jax.make_jaxpr(readout)(x, r)).count("= etp ") == 2
    grads = jax.grad(lambda readout: readout(x, r)[0].sum())(readout)
    slope = np.asarray(r) * np.exp(-1 / np.asarray(tau)) / np.square(np.asarray(tau, float))
    np.testing.assert_allclose(grads.tau, slope if tau.shape else slope.sum(), rtol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_broadcast(adaptive: bool) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    weight, feedback = jax.random.normal(keys[0], (2, 3)), jax.random.normal(keys[1], (2, 3))
    x, error = jax.random.normal(keys[2], (3,)), jax.random.normal(keys[3], (2,))
    y, back = jax.vjp(
        lambda w, b, x: nn.broadcast_readout(w, b, x, adaptive=adaptive), weight, feedback, x
    )
    of_weight, of_feedback, of_x = back(error)
    assert jnp.array_equal(y, weight @ x)
    assert jnp.allclose(of_x, feedback.T @ error, rtol=0, atol=1e-12)
    assert jnp.allclose(of_weight, jnp.outer(error, x), rtol=0, atol=1e-12)
    assert jnp.allclose(of_feedback, of_weight if adaptive else 0, rtol=0, atol=1e-12)


def test_a_broadcast_refuses_what_does_not_fit(without_type_checks) -> None:
    weight = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"with feedback of shape \(3, 2\) where \(2, 3\)"):
        nn.broadcast_readout(weight, weight.T, jnp.ones(3))
    with pytest.raises(ValueError, match=r"with x of shape \(2,\) where \(3,\) is needed"):
        nn.broadcast_readout(weight, weight, jnp.ones(2))
