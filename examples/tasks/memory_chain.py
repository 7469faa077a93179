"""Memory chain: two bits are shown in the first step, and one of them is asked 70 steps later.

In between other bits are shown, which are to be ignored. The delay is longer than any window of
truncated BPTT in the table.

Source: the memory chain of Osband et al., "Behaviour suite for reinforcement learning", ICLR 2020, section
B.5, with the cross-entropy of the answer in place of a reward; the bias of the gates of Tallec and
Ollivier, "Can recurrent neural networks warp time?", ICLR 2018, section 2.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Batch, Task, main

BITS, STEPS, BATCH, UNITS = 2, 72, 32, 32


class Network(eqx.Module):
    """A GRU whose units remember for 1 to T steps at first, and a linear readout."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2, k3 = jax.random.split(key, 3)
        cell = nn.init(eqx.nn.GRUCell(2 * BITS + 1, UNITS, key=k1), "lecun_normal", k1)
        update = jnp.log(jax.random.uniform(k3, (UNITS,), minval=1.0, maxval=STEPS - 1))
        still = jnp.zeros(UNITS)
        bias = jnp.concatenate([still, update, still])  # of the gates r, z, n
        self.cell = eqx.tree_at(lambda c: c.bias, cell, bias)
        self.readout = nn.init(eqx.nn.Linear(UNITS, 1, key=k2), "kaiming_normal", k2)

    def init_state(self) -> Array:
        return jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " 5"], h: Array) -> tuple[Array, Array]:
        h = self.cell(x, h)
        return self.readout(h)[0], h


def batch(key: PRNGKeyArray) -> Batch:
    """Bits as -1 or 1, whether they are those to keep, and which one is asked [T, B, 5]; its value; and
    1 in the last step."""
    bit_key, ask_key = jax.random.split(key)
    bits = jax.random.bernoulli(bit_key, 0.5, (STEPS, BATCH, BITS))
    asked = jax.nn.one_hot(jax.random.randint(ask_key, (BATCH,), 0, BITS), BITS)
    t = jnp.arange(STEPS)[:, None, None]
    first, last = (jnp.broadcast_to(t == at, (STEPS, BATCH, 1)) for at in (0, STEPS - 1))
    xs = jnp.concatenate([(2.0 * bits - 1) * ~last, 1.0 * first, asked[None] * last], 2)
    answer = (bits[0] * asked).sum(1)
    return xs, jnp.broadcast_to(answer, (STEPS, BATCH)), last[..., 0].astype(jnp.float32)


def accuracy(ys: Array, targets: Array, mask: Array) -> Array:
    return ((ys[-1] > 0) == (targets[-1] > 0.5)).mean()


TASK = Task(
    name="Memory chain",
    make_model=Network,
    batch=batch,
    loss_fn=optax.sigmoid_binary_cross_entropy,
    score=accuracy,
    batch_size=BATCH,
    updates=600,
    rate=1e-2,
    schedule=lambda rate: optax.cosine_decay_schedule(rate, 600),
    window=8,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
