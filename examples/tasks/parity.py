"""Parity of pulses: whether an even or an odd number of pulses came, asked after each of them, by an LSTM.

Pulses come at one step in eight. Each changes the answer, whatever it was: the state that is kept decides what the
input means, and one mistake makes all later answers wrong.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .arms import Batch, Task, main

STEPS, BATCH, UNITS = 40, 64, 32
OFTEN = 0.125


class Network(eqx.Module):
    """An LSTM as Equinox draws it, and a linear readout."""

    cell: eqx.nn.LSTMCell
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        self.cell = eqx.nn.LSTMCell(1, UNITS, key=k1)
        self.readout = eqx.nn.Linear(UNITS, 1, key=k2)

    def init_state(self) -> tuple[Array, Array]:
        return jnp.zeros(UNITS), jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " 1"], state: tuple[Array, Array]) -> tuple[Array, Any]:
        state = self.cell(x, state)
        return self.readout(state[0])[0], state


def batch(key: PRNGKeyArray) -> Batch:
    """Pulses [T, B, 1]; whether an odd number came so far [T, B]; and 1 where there is a pulse."""
    pulses = jax.random.bernoulli(key, OFTEN, (STEPS, BATCH)).at[0].set(True)
    odd = jnp.cumsum(pulses, 0) % 2
    return pulses[..., None].astype(jnp.float32), odd, pulses.astype(jnp.float32)


def accuracy(ys: Array, targets: Array, mask: Array) -> Array:
    return (((ys > 0) == (targets > 0.5)) * mask).sum() / mask.sum()


TASK = Task(
    name="Parity of pulses, LSTM",
    make_model=Network,
    batch=batch,
    loss_fn=optax.sigmoid_binary_cross_entropy,
    score=accuracy,
    batch_size=BATCH,
    updates=600,
    rate=1e-2,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
