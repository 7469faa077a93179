"""T-maze seen through an encoder: a sign at the start says where to turn at the end of a corridor.

What is seen, the sign of either side, the corridor or the junction, is one of four patterns of 16 numbers with noise.
An MLP reads it, and a nonlinear recurrent trace unit behind it remembers. The unit is exact under D-RTRL; the encoder's
influence on its state is cut.

Source: the T-maze of Bakker, "Reinforcement learning with long short-term memory", NeurIPS 2001, of which only the
last decision is asked, and is told.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Batch, Task, main
from .memory_chain import accuracy

CORRIDOR, PIXELS, WIDTH, UNITS, BATCH = 30, 16, 8, 16, 32
STEPS = CORRIDOR + 2
NOISE = 0.5
SEEN = jax.random.rademacher(jax.random.key(0), (4, PIXELS), jnp.float32)
"""The signs of both sides, the corridor, the junction."""


class Network(eqx.Module):
    """An MLP, a recurrent trace unit, and a linear readout."""

    encoder: eqx.nn.MLP
    cell: nn.RTU
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2, k3 = jax.random.split(key, 3)
        self.encoder = eqx.nn.MLP(PIXELS, WIDTH, WIDTH, 1, jnp.tanh, key=k1)
        self.cell = nn.RTU(WIDTH, UNITS, r_min=0.9, r_max=0.99, linear=False, key=k2)
        self.readout = eqx.nn.Linear(2 * UNITS, 1, key=k3)

    def init_state(self) -> Array:
        return self.cell.init_state()

    def __call__(self, x: Float[Array, " 16"], h: Array) -> tuple[Array, Array]:
        y, h = self.cell(self.encoder(x), h)
        return self.readout(y)[0], h


def batch(key: PRNGKeyArray) -> Batch:
    """What is seen [T, B, 16]; the side to turn to; and 1 at the junction, the last step."""
    side_key, noise_key = jax.random.split(key)
    side = jax.random.randint(side_key, (BATCH,), 0, 2)
    t = jnp.arange(STEPS)[:, None]
    place = jnp.where(t == 0, side[None], jnp.where(t == STEPS - 1, 3, 2))
    xs = SEEN[place] + NOISE * jax.random.normal(noise_key, (STEPS, BATCH, PIXELS))
    last = jnp.broadcast_to(t == STEPS - 1, (STEPS, BATCH))
    return xs, jnp.broadcast_to(side, (STEPS, BATCH)), last.astype(jnp.float32)


TASK = Task(
    name="T-maze, encoder",
    make_model=Network,
    batch=batch,
    loss_fn=optax.sigmoid_binary_cross_entropy,
    score=accuracy,
    batch_size=BATCH,
    updates=400,
    rate=3e-3,
    window=8,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
