"""Recall: one of six symbols is shown, and asked after 30 steps of noise.

The noise comes in through the same inputs, with a tenth of the size. Nothing tells the network to keep the symbol but
the last step, which asks for it, so that what is to be learned comes from far back or not at all. `recall_controls`
looks into which part of a gradient it is learned by.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .arms import Batch, Task, main
from .classify import accuracy

SYMBOLS, NOISE, BATCH, UNITS = 6, 30, 32, 40
SIZE = 0.1  # of the noise; the symbol is 1
STEPS = NOISE + 2


class Network(eqx.Module):
    """A GRU and a linear readout, as Equinox begins them."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(SYMBOLS + 1, UNITS, key=k1)
        self.readout = eqx.nn.Linear(UNITS, SYMBOLS, key=k2)

    def init_state(self) -> Array:
        return jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " 7"], h: Array) -> tuple[Array, Array]:
        h = self.cell(x, h)
        return self.readout(h), h


def batch(key: PRNGKeyArray, size: float = SIZE) -> Batch:
    """The symbol, noise, and whether it is asked [T, B, 7]; the symbol; and 1 in the last step."""
    symbol_key, noise_key = jax.random.split(key)
    symbol = jax.random.randint(symbol_key, (BATCH,), 0, SYMBOLS)
    noise = size * jax.random.normal(noise_key, (NOISE, BATCH, SYMBOLS))
    shown = jax.nn.one_hot(symbol, SYMBOLS)[None]
    xs = jnp.concatenate([shown, noise, jnp.zeros((1, BATCH, SYMBOLS))])
    last = jnp.broadcast_to((jnp.arange(STEPS) == STEPS - 1)[:, None], (STEPS, BATCH))
    asked = last.astype(jnp.float32)
    xs = jnp.concatenate([xs, asked[..., None]], 2)
    return xs, jnp.broadcast_to(symbol, (STEPS, BATCH)), asked


TASK = Task(
    name="Recall over noise",
    make_model=Network,
    batch=batch,
    loss_fn=optax.softmax_cross_entropy_with_integer_labels,
    score=accuracy,
    chance=1 / SYMBOLS,
    batch_size=BATCH,
    updates=600,
    rate=1e-2,
    window=8,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
