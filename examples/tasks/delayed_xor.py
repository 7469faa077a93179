"""Delayed XOR: two bits are shown apart from each other, and after a delay it is asked whether they differ.

Neither bit alone says anything about the answer, so the first has to be kept until the second is there, and the answer
or both until it is asked.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .arms import Batch, Task, main
from .memory_chain import accuracy

FIRST, SECOND, STEPS, BATCH, UNITS = 0, 12, 32, 64, 32
NOISE = 0.1


class Network(eqx.Module):
    """An LSTM whose forget gate is mostly open at first, so that it remembers, and a linear readout."""

    cell: eqx.nn.LSTMCell
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        cell = eqx.nn.LSTMCell(2, UNITS, key=k1)
        bias = jnp.repeat(jnp.array([0.0, 3.0, 0.0, 0.0]), UNITS)  # of the gates i, f, g, o
        self.cell = eqx.tree_at(lambda c: c.bias, cell, bias)
        self.readout = eqx.nn.Linear(UNITS, 1, key=k2)

    def init_state(self) -> tuple[Array, Array]:
        return jnp.zeros(UNITS), jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " 2"], state: tuple[Array, Array]) -> tuple[Array, Any]:
        state = self.cell(x, state)
        return self.readout(state[0])[0], state


def batch(key: PRNGKeyArray) -> Batch:
    """A bit as -1 or 1 at two steps among noise, and whether it is asked [T, B, 2]; whether the bits differ; and 1 in
    the last step."""
    bit_key, noise_key = jax.random.split(key)
    bits = jax.random.rademacher(bit_key, (2, BATCH), jnp.float32)
    seen = NOISE * jax.random.normal(noise_key, (STEPS, BATCH))
    seen = seen.at[jnp.array([FIRST, SECOND])].add(bits)
    last = jnp.broadcast_to((jnp.arange(STEPS) == STEPS - 1)[:, None], (STEPS, BATCH))
    asked = last.astype(jnp.float32)
    differ = (bits[0] != bits[1]).astype(jnp.int32)
    return jnp.stack([seen, asked], 2), jnp.broadcast_to(differ, (STEPS, BATCH)), asked


TASK = Task(
    name="Delayed XOR",
    make_model=Network,
    batch=batch,
    loss_fn=optax.sigmoid_binary_cross_entropy,
    score=accuracy,
    batch_size=BATCH,
    updates=600,
    rate=1e-2,
    window=8,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
