"""Delayed match to sample: were the two stimuli the same, with a silent delay between them?

One of four stimuli is shown, as spikes of the inputs that prefer it; after a delay another one, and while
that is shown the network says whether it is the same. Generalised integrate-and-fire neurons hold the
first one: each of their spikes sets off a slow current. At a constant learning rate accuracies of 0.8 to
0.9 collapse late in some runs, so the rate falls to zero, and the score is the mean over the last tenth.

Source: the task and the neurons of Wang et al., Nature Communications, 2026, scaled to 64 neurons, steps of
10 ms, four stimuli and a delay of 400 ms.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Batch, Task, main

DT = 10.0  # ms
BEFORE, SAMPLE, DELAY, TEST = 5, 15, 40, 20  # steps
STEPS, BATCH = BEFORE + SAMPLE + DELAY + TEST, 32
STIMULI, GROUP, NEURONS = 4, 10, 64
ACTIVE, SILENT = (
    0.5,
    0.02,
)  # spikes per step of the inputs that prefer the stimulus, and of the others


class State(NamedTuple):
    gif: Any
    r: Array


class Network(eqx.Module):
    """GIF neurons that read the input and each other's last spikes, and a leaky readout."""

    hidden: eqx.nn.Linear
    gif: nn.GIF
    readout: nn.LeakyRateReadout

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        hidden = eqx.nn.Linear(STIMULI * GROUP + NEURONS, NEURONS, key=k1)
        self.hidden = nn.init(hidden, "lecun_normal", k1)
        self.gif = nn.GIF(NEURONS, tau=20.0, R=3.0, tau_I2=1000.0, A2=-0.02, dt=DT)
        self.readout = nn.LeakyRateReadout(NEURONS, 2, tau=20.0, dt=DT, key=k2)

    def init_state(self) -> State:
        return State(self.gif.init_state(), self.readout.init_state())

    def __call__(self, x: Float[Array, " I"], state: State) -> tuple[Array, State]:
        current = self.hidden(jnp.concatenate([x, self.gif.spike(state.gif)]))
        spikes, gif = self.gif(current, state.gif)
        y, r = self.readout(spikes, state.r)
        return y, State(gif, r)


def batch(key: PRNGKeyArray) -> Batch:
    """Spikes [T, B, 4 x 10]; whether the stimuli are the same; and 1 while the second one is shown."""
    keys = jax.random.split(key, 4)
    first = jax.random.randint(keys[0], (BATCH,), 0, STIMULI)
    same = jax.random.bernoulli(keys[1], 0.5, (BATCH,))
    other = (first + jax.random.randint(keys[2], (BATCH,), 1, STIMULI)) % STIMULI
    second = jnp.where(same, first, other)
    t = jnp.arange(STEPS)[:, None]
    shown = jnp.where((t >= BEFORE) & (t < BEFORE + SAMPLE), first[None], -1)
    shown = jnp.where(t >= STEPS - TEST, second[None], shown)  # [T, B]
    rates = jnp.where(jax.nn.one_hot(shown, STIMULI, dtype=bool), ACTIVE, SILENT)
    spikes = jax.random.bernoulli(keys[3], jnp.repeat(rates, GROUP, 2))
    mask = jnp.broadcast_to(t >= STEPS - TEST, shown.shape).astype(jnp.float32)
    targets = jnp.broadcast_to(same.astype(jnp.int32), shown.shape)
    return spikes.astype(jnp.float32), targets, mask


def accuracy(ys: Array, targets: Array, mask: Array) -> Array:
    """The answer is the output that is larger on average while the second stimulus is shown."""
    answers = (ys * mask[:, :, None]).sum(0).argmax(-1)
    return (answers == targets[-1]).mean()


TASK = Task(
    name="Delayed match to sample",
    make_model=Network,
    batch=batch,
    loss_fn=optax.softmax_cross_entropy_with_integer_labels,
    score=accuracy,
    batch_size=BATCH,
    updates=600,
    rate=3e-3,
    schedule=lambda rate: optax.cosine_decay_schedule(rate, 600),
    last=2,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
