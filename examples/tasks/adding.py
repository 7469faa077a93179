"""The adding problem: of 50 numbers two are marked, and their sum is asked at the end; two layers of LRU.

The numbers are uniform from 0 to 1; one of the first half is marked and one of the second. Each layer is exact under
D-RTRL by itself; what passes from the first into the state of the second is cut.

Source: Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9, 1997, experiment 4, with sequences
of one length and markers of 0 and 1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Batch, Task, main

STEPS, BATCH, WIDTH, UNITS = 50, 32, 16, 32


class Network(eqx.Module):
    """Two linear recurrent units with a nonlinear layer after each, and a linear readout."""

    first: nn.LRU
    second: nn.LRU
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2, k3 = jax.random.split(key, 3)
        self.first = nn.LRU(2, WIDTH, UNITS, r_min=0.9, r_max=0.999, max_phase=0.3, key=k1)
        self.second = nn.LRU(WIDTH, WIDTH, UNITS, r_min=0.9, r_max=0.999, max_phase=0.3, key=k2)
        self.readout = eqx.nn.Linear(WIDTH, 1, key=k3)

    def init_state(self) -> tuple[Array, Array]:
        return self.first.init_state(), self.second.init_state()

    def __call__(
        self, x: Float[Array, " 2"], state: tuple[Array, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        y, first = self.first(x, state[0])
        y, second = self.second(jax.nn.gelu(y), state[1])
        return self.readout(jax.nn.gelu(y))[0], (first, second)


def batch(key: PRNGKeyArray) -> Batch:
    """Numbers and whether they are marked [T, B, 2]; the sum of the marked ones; and 1 in the last step."""
    number_key, *mark_keys = jax.random.split(key, 3)
    numbers = jax.random.uniform(number_key, (STEPS, BATCH))
    half = STEPS // 2
    marked = [jax.random.randint(k, (BATCH,), 0, half) for k in mark_keys]
    marks = jax.nn.one_hot(marked[0], STEPS) + jax.nn.one_hot(half + marked[1], STEPS)
    total = (numbers * marks.T).sum(0)
    last = jnp.broadcast_to((jnp.arange(STEPS) == STEPS - 1)[:, None], (STEPS, BATCH))
    xs = jnp.stack([numbers, marks.T], 2)
    return xs, jnp.broadcast_to(total, (STEPS, BATCH)), last.astype(jnp.float32)


def square(y: Array, target: Array) -> Array:
    return (y - target) ** 2


def explained(ys: Array, targets: Array, mask: Array) -> Array:
    """The share of the variance of the sum that is explained."""
    return 1 - ((ys[-1] - targets[-1]) ** 2).mean() / (1 / 6)


TASK = Task(
    name="Adding problem, two LRU layers",
    make_model=Network,
    batch=batch,
    loss_fn=square,
    score=explained,
    chance=0.0,
    unit="variance explained",
    batch_size=BATCH,
    updates=600,
    rate=3e-3,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
