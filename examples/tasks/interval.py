"""Intervals: two pulses come one after the other, and it is asked whether more than 20 steps lie between them.

The network has leaky units, `h' = a h + (1 - a) tanh(W h + U x + b)`, with leaks that forget within 2 to 100 steps at
first and are learnt too. What it has to measure is time that passes, with nothing to be seen meanwhile.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .arms import Batch, Task, main
from .memory_chain import accuracy

STEPS, BATCH, UNITS = 60, 64, 32
LIMIT, SHORT, LONG, LATEST = 20, 5, 35, 15
"""Steps: the interval that is asked about, the shortest and the longest one, and the latest first pulse."""
NOISE = 0.05


class Network(eqx.Module):
    """Leaky units that read each other, and a linear readout."""

    inputs: eqx.nn.Linear
    recurrent: eqx.nn.Linear
    leak: Float[Array, " N"]
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2, k3 = jax.random.split(key, 3)
        self.inputs = eqx.nn.Linear(2, UNITS, key=k1)
        self.recurrent = eqx.nn.Linear(UNITS, UNITS, use_bias=False, key=k2)
        leaks = jnp.exp(-1 / jnp.geomspace(2.0, 100.0, UNITS))
        self.leak = jnp.log(leaks / (1 - leaks))
        self.readout = eqx.nn.Linear(UNITS, 1, key=k3)

    def init_state(self) -> Array:
        return jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " 2"], h: Array) -> tuple[Array, Array]:
        a = jax.nn.sigmoid(self.leak)
        h = a * h + (1 - a) * jnp.tanh(self.inputs(x) + self.recurrent(h))
        return self.readout(h)[0], h


def batch(key: PRNGKeyArray) -> Batch:
    """Two pulses among noise, and whether it is asked [T, B, 2]; whether the interval is long; and 1 in the last
    step."""
    first_key, interval_key, noise_key = jax.random.split(key, 3)
    first = jax.random.randint(first_key, (BATCH,), 0, LATEST)
    interval = jax.random.randint(interval_key, (BATCH,), SHORT, LONG + 1)
    pulses = jax.nn.one_hot(first, STEPS) + jax.nn.one_hot(first + interval, STEPS)
    seen = pulses.T + NOISE * jax.random.normal(noise_key, (STEPS, BATCH))
    last = jnp.broadcast_to((jnp.arange(STEPS) == STEPS - 1)[:, None], (STEPS, BATCH))
    asked = last.astype(jnp.float32)
    long = (interval > LIMIT).astype(jnp.int32)
    return jnp.stack([seen, asked], 2), jnp.broadcast_to(long, (STEPS, BATCH)), asked


TASK = Task(
    name="Intervals, leaky units",
    make_model=Network,
    batch=batch,
    loss_fn=optax.sigmoid_binary_cross_entropy,
    score=accuracy,
    batch_size=BATCH,
    updates=600,
    rate=3e-3,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
