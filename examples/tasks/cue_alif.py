"""Cue accumulation with ALIF: which side had more of five cues, after a silent delay, for adaptive neurons alone.

The cues are those of [evidence accumulation](#evidence-accumulation), fewer and with a shorter delay. All neurons are
adaptive, with time constants of adaptation from 100 to 1000 ms, and read the input and each other's last spikes.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Task, main
from .evidence import ASK, CUE, DT, GAP, GROUP, accuracy, cues

CUES, DELAY, NEURONS, BATCH = 5, 30, 40, 32
STEPS = CUES * (CUE + GAP) + DELAY + ASK


class Network(eqx.Module):
    """ALIF neurons and a leaky readout."""

    hidden: eqx.nn.Linear
    alif: nn.ALIF
    readout: nn.LeakyRateReadout

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        hidden = eqx.nn.Linear(4 * GROUP + NEURONS, NEURONS, key=k1)
        self.hidden = nn.init(hidden, "lecun_normal", k1)
        tau_a = jnp.geomspace(100.0, 1000.0, NEURONS)
        self.alif = nn.ALIF(NEURONS, tau=20.0, tau_a=tau_a, beta=0.3, R=5.0, dt=DT)
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


batch = partial(cues, count=CUES, delay=DELAY, size=BATCH)

TASK = Task(
    name="Cue accumulation, ALIF",
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
