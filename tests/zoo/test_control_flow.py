"""Control flow and nested transformations, with weights inside and outside."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.ode import odeint

import etpc
from tests.zoo.check import check, normal, weights

pytestmark = pytest.mark.slow

H = jnp.zeros(3)


half = jax.custom_jvp(lambda g: 0.5 * g)
half.defjvp(lambda g, t: (half(*g), 7.0 * t[0]))
third = jax.custom_vjp(lambda g: g / 3)
third.defvjp(lambda g: (g / 3, None), lambda _, g: (7.0 * g,))
stop = lax.stop_gradient
BACKWARD = {
    "stopped": lambda h, g: stop(g) * 0.5,
    "named": lambda h, g: checkpoint_name(g, "g") * h,
    "derivatives of their own": lambda h, g: half(g) + third(g) * h,
    "jit and checkpoint": lambda h, g: jax.jit(jax.checkpoint(lambda g: stop(g) * jnp.cos(h)))(g),
    "scan": lambda h, g: lax.scan(lambda c, _: (stop(c) + h * c, None), g, None, length=3)[0],
    "branch": lambda h, g: lax.cond(h[0] > 0, lambda: stop(g) * h, lambda: half(g)),
    "elements set": lambda h, g: jnp.zeros(3).at[jnp.argsort(h)].set(stop(g)),
    "zeros for some": lambda h, g: jnp.where(h > 0, g, 0.0) + jnp.zeros(3).at[:2].set(g[1:]),
    "a sum in a loop": lambda h, g: lax.scan(
        lambda c, i: (c + i * g, None), jnp.zeros(3), jnp.arange(3.0)
    )[0],
    "print": lambda h, g: (jax.debug.callback(lambda g: None, g), stop(g) * 0.5)[1],
}


def ruled(rule):
    function = jax.custom_vjp(jnp.tanh)
    function.defvjp(lambda h: (jnp.tanh(h), h), lambda h, g: (rule(h, g),))
    step = lambda m, x, h: (function(0.9 * h) + m["w"] @ x + m["bias"],) * 2
    return {"w": weights(3, 2), "bias": jnp.asarray(0.3)}, step  # the bias is read by columns


@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_rule_that_is_linear_as_a_function_of_values(name):
    """Operations on its cotangent need no derivatives."""
    model, step = ruled(BACKWARD[name])
    check(model, normal(2), H, step)


NONLINEAR = {
    "a penalty": lambda h, g: g + 0.1 * jnp.sign(h),
    "a penalty of some": lambda h, g: jnp.where(h > 0, g, stop(g) - 0.1),
    "a constant for some": lambda h, g: jnp.where(h > 0, g, 0.1),
    "a constant set": lambda h, g: h.at[0].set(g[0]),
    "a constant alone": lambda h, g: jnp.ones_like(h),
    "a constant in a branch": lambda h, g: lax.cond(h[0] > 0, lambda: g, lambda: h),
    "a penalty in a loop": lambda h, g: lax.scan(
        lambda c, _: (0.5 * c + g, None), h, None, length=2
    )[0],
    "clipped": lambda h, g: jnp.clip(stop(g), -1, 1),
    "a product": lambda h, g: g * stop(g),
    "normalised": lambda h, g: g / (1e-3 + stop(jnp.linalg.norm(g))),
    "a branch": lambda h, g: lax.cond(stop(g[0]) > 0, lambda: g, lambda: 2 * g),
    "a product in a loop": lambda h, g: lax.scan(
        lambda c, _: (stop(c) * c, None), g, None, length=2
    )[0],
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_backward_rule_that_is_not_linear_is_refused(name):
    model, step = ruled(NONLINEAR[name])
    with pytest.raises(etpc.UnsupportedError, match=r"backward rule.*test_control_flow\.py:\d+"):
        etpc.compile(model, inputs=jnp.zeros(2), state=H, step=step)


@pytest.mark.parametrize("passed", [False, True])
def test_an_adaptive_solver(passed):
    """Its backward rule is a loop of unknown length, which no trace passes through."""
    times = jnp.array([0.0, 0.5])

    def step(model, x, h):
        if passed:
            h = odeint(lambda h, t, i: -h + i, h, times, model @ x)[-1]
        else:
            h = odeint(lambda h, t: -h + jnp.tanh(model @ x), h, times)[-1]
        return h, h

    with pytest.raises(etpc.UnsupportedError, match=r"test_control_flow\.py:\d+"):
        etpc.compile(weights(3, 2), inputs=jnp.zeros(2), state=H, step=step)
