"""A two-bit flip-flop: pulses set one bit or the other, and at each step both bits are asked, by a GRU.

Pulses of -1 or 1 come seldom, among noise. A bit is what its last pulse said, so that the network has to keep it for as
long as none comes. The first pulses come at once.

Source: Sussillo and Barak, "Opening the black box", Neural Computation 25, 2013, with two bits in place of three.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .arms import Batch, Task, main

BITS, STEPS, BATCH, UNITS = 2, 60, 32, 24
OFTEN, NOISE = 0.05, 0.1


class Network(eqx.Module):
    """A GRU as Equinox draws it, and a linear readout."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(BITS, UNITS, key=k1)
        self.readout = eqx.nn.Linear(UNITS, BITS, key=k2)

    def init_state(self) -> Array:
        return jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " 2"], h: Array) -> tuple[Array, Array]:
        h = self.cell(x, h)
        return self.readout(h), h


def batch(key: PRNGKeyArray) -> Batch:
    """Pulses among noise [T, B, 2]; the bits [T, B, 2]; and 1 in every step."""
    sign_key, when_key, noise_key = jax.random.split(key, 3)
    shape = STEPS, BATCH, BITS
    signs = jax.random.rademacher(sign_key, shape, jnp.float32)
    pulses = signs * jax.random.bernoulli(when_key, OFTEN, shape).at[0].set(True)

    def after(bits: Array, pulse: Array) -> tuple[Array, Array]:
        bits = jnp.where(pulse == 0, bits, pulse)
        return bits, bits

    _, bits = jax.lax.scan(after, pulses[0], pulses)
    xs = pulses + NOISE * jax.random.normal(noise_key, shape)
    return xs, (bits > 0).astype(jnp.float32), jnp.ones((STEPS, BATCH))


def loss(y: Array, target: Array) -> Array:
    return optax.sigmoid_binary_cross_entropy(y, target).mean()


def accuracy(ys: Array, targets: Array, mask: Array) -> Array:
    return ((ys > 0) == (targets > 0.5)).mean()


TASK = Task(
    name="Two-bit flip-flop, GRU",
    make_model=Network,
    batch=batch,
    loss_fn=loss,
    score=accuracy,
    updates=400,
    rate=3e-3,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
