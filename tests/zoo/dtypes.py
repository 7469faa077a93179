"""Models in other dtypes than float64."""

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.zoo.check import model, weights


def cast(tree, dtype):
    """Every float array of a PyTree in another dtype."""
    floats = lambda a: eqx.is_array(a) and jnp.issubdtype(a.dtype, jnp.floating)
    return jax.tree.map(lambda a: a.astype(dtype) if floats(a) else a, tree)


class MixedPrecision(eqx.Module):
    """Parameters and products in half precision, the state in single precision."""

    weight: jax.Array
    tau: jax.Array

    def __init__(self, dtype):
        self.weight = weights(3, 2).astype(dtype)
        self.tau = jnp.linspace(1.0, 3.0, 3, dtype=jnp.float32)

    def __call__(self, x, h):
        current = (self.weight @ x.astype(self.weight.dtype)).astype(jnp.float32)
        h = jnp.exp(-1.0 / self.tau) * h + current
        return jnp.tanh(h), h


class WeakParameter(eqx.Module):
    """A parameter made of a Python number: it takes the dtype of what it meets."""

    weight: jax.Array
    gain: jax.Array

    def __init__(self, dtype):
        self.weight = weights(3, 2).astype(dtype)
        self.gain = jnp.asarray(0.7)

    def __call__(self, x, h):
        h = self.gain * h + self.weight @ x
        return h, h


@model
def WeakState(x, state, weight):
    """A scalar state that starts as a Python number would."""
    h, mean = state
    h = 0.7 * h + weight @ x + mean
    return h, (h, 0.9 * mean + jnp.mean(h))


@model
def Pixels(x, state, weight, mask):
    """Small integers and booleans come in."""
    pixels, on = x
    h, count = state
    h = 0.7 * h + weight @ (pixels / 255.0) + mask @ on
    return h, (h, count + on.sum().astype(jnp.int8))


DECAYS = {jnp.bfloat16: 1 - 2.0**-8, jnp.float16: 1 - 2.0**-10}
"""The slowest that these dtypes can say."""


def slow(w, x, h):
    """A leak of which half precision loses the small increments."""
    decay = next(decay for dtype, decay in DECAYS.items() if h.dtype == dtype)
    h = decay * h + w * x
    return h, h


@model
def TwoPrecisions(x, h, weight):
    """One matrix in two products, of which one adds up in double precision."""
    short = weight @ x
    long = jnp.matmul(weight, x**2, preferred_element_type=jnp.float64)
    h = 0.7 * h + short + long.astype(h.dtype)
    return h, h
