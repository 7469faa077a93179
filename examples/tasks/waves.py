"""Waves: the next value of a sine of unknown frequency, phase and height among noise, by minimal gated units.

The noise has half the height of the wave, so that its value now says little: the network has to follow its phase over
tens of steps.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .adding import square
from .arms import Batch, Task, main

STEPS, BATCH, UNITS = 80, 32, 48
NOISE, LONGEST, SHORTEST = 0.5, 40.0, 10.0
"""The noise relative to the height; periods in steps."""


class Network(eqx.Module):
    """Two layers of MinGRU with one of tanh units between, and a linear readout."""

    first: nn.MinGRU
    mixing: eqx.nn.Linear
    second: nn.MinGRU
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        self.first = nn.MinGRU(1, UNITS, key=k1)
        self.mixing = eqx.nn.Linear(UNITS, UNITS, key=k2)
        self.second = nn.MinGRU(UNITS, UNITS, key=k3)
        self.readout = eqx.nn.Linear(UNITS, 1, key=k4)

    def init_state(self) -> tuple[Array, Array]:
        return self.first.init_state(), self.second.init_state()

    def __call__(
        self, x: Float[Array, " 1"], state: tuple[Array, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        y, first = self.first(x, state[0])
        y, second = self.second(jnp.tanh(self.mixing(y)), state[1])
        return self.readout(y)[0], (first, second)


def batch(key: PRNGKeyArray) -> Batch:
    """Values among noise [T, B, 1]; the next value without it [T, B]; and 1 in the second half."""
    period_key, phase_key, height_key, noise_key = jax.random.split(key, 4)
    lengths = math.log(SHORTEST), math.log(LONGEST)
    period = jnp.exp(jax.random.uniform(period_key, (BATCH,), minval=lengths[0], maxval=lengths[1]))
    phase = jax.random.uniform(phase_key, (BATCH,), maxval=2 * math.pi)
    height = jax.random.uniform(height_key, (BATCH,), minval=0.5, maxval=1.5)
    t = jnp.arange(STEPS + 1)[:, None]
    values = height[None] * jnp.sin(2 * math.pi * t / period[None] + phase[None])
    noise = NOISE * height[None] * jax.random.normal(noise_key, (STEPS, BATCH))
    late = jnp.broadcast_to(t[:-1] >= STEPS // 2, (STEPS, BATCH))
    return (values[:-1] + noise)[..., None], values[1:], late.astype(jnp.float32)


def explained(ys: Array, targets: Array, mask: Array) -> Array:
    """The share of the variance of the values that is explained."""
    return 1 - (mask * (ys - targets) ** 2).sum() / (mask * targets**2).sum()


TASK = Task(
    name="Waves among noise, two MinGRU layers",
    make_model=Network,
    batch=batch,
    loss_fn=square,
    score=explained,
    chance=0.0,
    unit="variance explained",
    batch_size=BATCH,
    updates=500,
    rate=3e-3,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
