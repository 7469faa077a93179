"""Store and recall: which of two groups of inputs fired while the store signal was on, for adaptive neurons.

One group of inputs or the other fires in each part of 10 steps. A signal says which part is to be stored, and 3 to 5
parts later another asks for it; what the groups do meanwhile does not matter.

Source: Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking neurons", NeurIPS 2018,
shorter, and with one store and one recall in each sequence.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Batch, Task, main

PART, PARTS, GROUP, NEURONS, BATCH = 10, 8, 10, 40, 32
STEPS, DT, RATE = PART * PARTS, 5.0, 0.3


class Network(eqx.Module):
    """ALIF neurons that read the input and each other's last spikes, and a leaky readout."""

    hidden: eqx.nn.Linear
    alif: nn.ALIF
    readout: nn.LeakyRateReadout

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        hidden = eqx.nn.Linear(4 * GROUP + NEURONS, NEURONS, key=k1)
        self.hidden = nn.init(hidden, "lecun_normal", k1)
        tau_a = jnp.full(NEURONS, 200.0)
        self.alif = nn.ALIF(NEURONS, tau=20.0, tau_a=tau_a, beta=0.4, R=5.0, dt=DT)
        self.readout = nn.LeakyRateReadout(NEURONS, 2, tau=20.0, dt=DT, key=k2)

    def init_state(self) -> tuple[Any, Array]:
        return self.alif.init_state(), self.readout.init_state()

    def __call__(
        self, x: Float[Array, " I"], state: tuple[Any, Array]
    ) -> tuple[Array, tuple[Any, Array]]:
        alif, r = state
        spikes, alif = self.alif(self.hidden(jnp.concatenate([x, self.alif.spike(alif)])), alif)
        y, r = self.readout(spikes, r)
        return y, (alif, r)


def batch(key: PRNGKeyArray) -> Batch:
    """Spikes of the groups 0, 1, store and recall [T, B, 4 x GROUP]; the group that was stored; and 1 in the steps of
    the recall."""
    shown_key, store_key, wait_key, spike_key = jax.random.split(key, 4)
    shown = jax.random.randint(shown_key, (PARTS, BATCH), 0, 2)
    store = jax.random.randint(store_key, (BATCH,), 0, 3)
    recall = store + jax.random.randint(wait_key, (BATCH,), 3, 6)
    stores, recalls = (jax.nn.one_hot(at, PARTS, dtype=bool).T for at in (store, recall))
    seen = jnp.stack([shown == 0, shown == 1], 2) & ~recalls[..., None]
    on = jnp.concatenate([seen, stores[..., None], recalls[..., None]], 2)
    rates = RATE * jnp.repeat(jnp.repeat(on, PART, 0), GROUP, 2)
    xs = jax.random.bernoulli(spike_key, rates).astype(jnp.float32)
    stored = jnp.take_along_axis(shown, store[None], 0)[0]
    asked = jnp.repeat(recalls, PART, 0).astype(jnp.float32)
    return xs, jnp.broadcast_to(stored, (STEPS, BATCH)), asked


def accuracy(ys: Array, targets: Array, mask: Array) -> Array:
    """By the sum of the outputs while it is asked."""
    return ((ys * mask[..., None]).sum(0).argmax(-1) == targets[-1]).mean()


TASK = Task(
    name="Store and recall, ALIF",
    make_model=Network,
    batch=batch,
    loss_fn=optax.softmax_cross_entropy_with_integer_labels,
    score=accuracy,
    batch_size=BATCH,
    updates=400,
    rate=3e-3,
    uncut=False,
    through=True,
)

if __name__ == "__main__":
    main(TASK)
