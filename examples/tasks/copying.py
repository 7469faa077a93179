"""The copying task: repeat a string of bits after all of it was shown.

Each episode shows n random bits, a marker, and then n blanks, at which the bits are wanted in
order. Episodes follow one another in a stream. Their length is drawn from max(L - 5, 1) to L, and L
rises by one after each batch whose error is below 0.15 bits: the score is the L that is reached.
The weights move every 8 steps, in the middle of episodes; BPTT waits for the end of the sequence.

Source: Menick et al., "Practical real time recurrent learning with a sparse approximation", ICLR
2021, whose curriculum this is, scaled to a GRU of 48 units and 0.6 million steps.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Batch, Curriculum, Task, main

STEPS, BATCH, UNITS = 64, 16, 48


class Network(eqx.Module):
    """A GRU with a linear readout of the probability of a 1."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        self.cell = nn.init(eqx.nn.GRUCell(3, UNITS, key=k1), "lecun_normal", k1)
        self.readout = nn.init(eqx.nn.Linear(UNITS, 1, key=k2), "kaiming_normal", k2)

    def init_state(self) -> Array:
        return jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " 3"], h: Array) -> tuple[Array, Array]:
        h = self.cell(x, h)
        return self.readout(h)[0], h


def batch(key: PRNGKeyArray, level: Array) -> Batch:
    """Bits as -1 or 1, whether it is a bit, and the marker [T, B, 3]; bits, and where they count."""
    length_key, bit_key = jax.random.split(key)
    lengths = jax.random.randint(length_key, (STEPS, BATCH), jnp.maximum(level - 5, 1), level + 1)
    ends = jnp.cumsum(2 * lengths + 1, 0)
    bits = jax.random.bernoulli(bit_key, 0.5, (STEPS, BATCH))
    t = jnp.arange(STEPS)

    def stream(ends: Array, lengths: Array, bits: Array) -> Batch:
        episode = jnp.searchsorted(ends, t, side="right")
        n = lengths[episode]
        at = t - (ends[episode] - (2 * n + 1))
        shown, asked = at < n, at > n
        x = jnp.stack([shown * (2.0 * bits - 1), 1.0 * shown, 1.0 * (at == n)], 1)
        return x, 1.0 * bits[jnp.where(asked, t - n - 1, 0)] * asked, 1.0 * asked

    return jax.vmap(stream, in_axes=1, out_axes=1)(ends, lengths, bits)


def bits_of_error(y: Array, target: Array) -> Array:
    return optax.sigmoid_binary_cross_entropy(y, target) / jnp.log(2.0)


TASK = Task(
    name="Copying, length reached",
    make_model=Network,
    batch=batch,
    loss_fn=bits_of_error,
    chance=1,
    unit="length",
    batch_size=BATCH,
    updates=600,
    rate=3e-3,
    window=8,
    every=8,
    curriculum=Curriculum(threshold=0.15, last=(STEPS - 1) // 2),
)

if __name__ == "__main__":
    main(TASK)
