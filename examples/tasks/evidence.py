"""Evidence accumulation: which side had more of seven cues, asked after a silent delay.

Seven cues come one after another, each a burst of spikes from the inputs of the left or of the right.
After a delay a third group of inputs asks, and the network says which side had more; a fourth group
fires at random throughout. Half of the neurons have a threshold that adapts slowly, which is where
the cues can be kept.

Source: Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons",
Nature Communications 11, 2020, with LIF and ALIF neurons, scaled to steps of 5 ms, cues of 20 ms, a delay
of 240 ms and 32 + 32 neurons.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Batch, Task, main

DT = 5.0  # ms
CUES, CUE, GAP, DELAY, ASK = 7, 4, 2, 48, 10  # the last four in steps
STEPS, BATCH = CUES * (CUE + GAP) + DELAY + ASK, 32
GROUP, NEURONS = 10, 32  # inputs of each of four groups; neurons of each kind
ACTIVE, NOISE = 0.4, 0.05  # spikes per step


class State(NamedTuple):
    lif: Array
    alif: Any
    r: Array


class Network(eqx.Module):
    """LIF and ALIF neurons that read the input and each other's last spikes, and a leaky readout."""

    hidden: eqx.nn.Linear
    lif: nn.LIF
    alif: nn.ALIF
    readout: nn.LeakyRateReadout

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        hidden = eqx.nn.Linear(4 * GROUP + 2 * NEURONS, 2 * NEURONS, key=k1)
        self.hidden = nn.init(hidden, "lecun_normal", k1)
        self.lif = nn.LIF(NEURONS, tau=20.0, R=5.0, dt=DT)
        self.alif = nn.ALIF(NEURONS, tau=20.0, tau_a=500.0, beta=0.3, R=5.0, dt=DT)
        self.readout = nn.LeakyRateReadout(2 * NEURONS, 2, tau=20.0, dt=DT, key=k2)

    def init_state(self) -> State:
        return State(self.lif.init_state(), self.alif.init_state(), self.readout.init_state())

    def __call__(self, x: Float[Array, " I"], state: State) -> tuple[Array, State]:
        last = [self.lif.spike(state.lif), self.alif.spike(state.alif)]
        to_lif, to_alif = jnp.split(self.hidden(jnp.concatenate([x, *last])), 2)
        spikes, lif = self.lif(to_lif, state.lif)
        slow_spikes, alif = self.alif(to_alif, state.alif)
        y, r = self.readout(jnp.concatenate([spikes, slow_spikes]), state.r)
        return y, State(lif, alif, r)


def cues(key: PRNGKeyArray, count: int, delay: int, size: int) -> Batch:
    """Spikes of the groups left, right, ask, noise [T, B, 4 x 10]; the side with more cues; and 1 in
    the steps where it is asked."""
    cue_key, spike_key = jax.random.split(key)
    right = jax.random.bernoulli(cue_key, 0.5, (count, size))
    steps = count * (CUE + GAP) + delay + ASK
    t = jnp.arange(steps)
    cue = jnp.minimum(t // (CUE + GAP), count - 1)
    shown = (t < count * (CUE + GAP)) & (t % (CUE + GAP) < CUE)
    asked = t >= steps - ASK
    side = right[cue]  # [T, B]
    active = [shown[:, None] & ~side, shown[:, None] & side, asked[:, None] | (side & False)]
    rates = jnp.stack([ACTIVE * a for a in active] + [jnp.full(side.shape, NOISE)], 2)
    spikes = jax.random.bernoulli(spike_key, jnp.repeat(rates, GROUP, 2))
    label = (2 * right.sum(0) > count).astype(jnp.int32)
    mask = jnp.broadcast_to(asked[:, None], side.shape).astype(jnp.float32)
    return spikes.astype(jnp.float32), jnp.broadcast_to(label, side.shape), mask


def batch(key: PRNGKeyArray) -> Batch:
    """Seven cues and the delay of the task."""
    return cues(key, CUES, DELAY, BATCH)


def accuracy(ys: Array, targets: Array, mask: Array) -> Array:
    """The answer is the output that is larger on average while it is asked."""
    answers = (ys * mask[:, :, None]).sum(0).argmax(-1)
    return (answers == targets[-1]).mean()


TASK = Task(
    name="Evidence accumulation",
    make_model=Network,
    batch=batch,
    loss_fn=optax.softmax_cross_entropy_with_integer_labels,
    score=accuracy,
    batch_size=BATCH,
    updates=400,
    rate=3e-3,
    uncut=False,
)

if __name__ == "__main__":
    main(TASK)
