"""Ordered bursts: in which order channels burst, after a distractor, for two layers of spiking neurons.

In a pattern, some of 20 channels burst once each, in one of five slots. Patterns differ in which channels these are
and in their order, not in their counts. A flag marks the pattern; a fainter one of random order follows without it,
and a cue asks for the class of the first. The network is written out, without `etpc.nn`.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import etpc

from .arms import Batch, Task, main
from .evidence import accuracy

STEPS, BATCH, CLASSES = 100, 32, 8
CHANNELS, PART, SLOTS, BURST = 20, 7, 5, 5
"""So many channels, of which so many are in a pattern; so many slots of so many steps."""

FLAG, CUE, ASK = 4, 4, 20
"""Channels of the flag and of the cue, and the steps of the cue."""

INPUTS = CHANNELS + FLAG + CUE

fire = etpc.surrogate.SuperSpike(beta=5.0)


def slots_of_classes() -> Array:
    """The slot of each channel in each class [classes, channels]; a slot that never comes where it is silent."""

    def one(key: PRNGKeyArray) -> Array:
        channel_key, slot_key = jax.random.split(key)
        takes_part = jax.random.permutation(channel_key, jnp.arange(CHANNELS) < PART)
        return jnp.where(takes_part, shuffled(slot_key), -STEPS)

    return jax.vmap(one)(jax.random.split(jax.random.key(7), CLASSES))


def shuffled(key: PRNGKeyArray) -> Array:
    """A slot for each channel [channels], each slot for as many."""
    return jax.random.permutation(key, jnp.arange(CHANNELS) % SLOTS)


def batch(key: PRNGKeyArray) -> Batch:
    """Spikes [T, B, inputs], the class [T, B], and 1 while the cue asks."""
    keys = jax.random.split(key, 5)
    label = jax.random.randint(keys[0], (BATCH,), 0, CLASSES)
    start = jax.random.randint(keys[1], (BATCH,), 8, 20)
    later = jax.random.randint(keys[2], (BATCH,), 48, 56)
    distractor = jax.vmap(shuffled)(jax.random.split(keys[3], BATCH))
    t = jnp.arange(STEPS)[:, None, None]

    def during(begin: Array, steps: int) -> Array:
        return (t >= begin[None]) & (t < begin[None] + steps)

    pattern = during(start[:, None] + BURST * slots_of_classes()[label], BURST)
    other = during(later[:, None] + BURST * distractor, BURST)
    asks = jnp.broadcast_to(t >= STEPS - ASK, (STEPS, BATCH, CUE))
    flag = jnp.broadcast_to(during(start[:, None], BURST * SLOTS), (STEPS, BATCH, FLAG))
    rates = [0.02 + 0.7 * pattern + 0.2 * (other & ~pattern), 0.4 * flag, 0.4 * asks]
    xs = jax.random.bernoulli(keys[4], jnp.concatenate(rates, axis=2)).astype(jnp.float32)
    return xs, jnp.broadcast_to(label, (STEPS, BATCH)), asks[:, :, 0].astype(jnp.float32)


class State(NamedTuple):
    """Potentials `v` and `u` of both layers, the adaptation `a` of the first, and the readout."""

    v: Array
    a: Array
    u: Array
    out: Array


class Network(eqx.Module):
    """Recurrent ALIF neurons, recurrent LIF neurons and a leaky readout."""

    inputs: Array
    recurrent: Array
    between: Array
    recurrent_2: Array
    readout: Array

    def __init__(self, key: PRNGKeyArray, first: int = 48, second: int = 32):
        keys = jax.random.split(key, 5)

        def drawn(n: int, outs: int, ins: int, gain: float) -> Array:
            return gain * jax.random.normal(keys[n], (outs, ins)) / jnp.sqrt(ins)

        self.inputs = drawn(0, first, INPUTS, 1.8)
        self.recurrent = drawn(1, first, first, 0.5)
        self.between = drawn(2, second, first, 2.0)
        self.recurrent_2 = drawn(3, second, second, 0.5)
        self.readout = drawn(4, CLASSES, second, 0.5)

    def init_state(self) -> State:
        first, second = self.recurrent.shape[0], self.recurrent_2.shape[0]
        return State(*(jnp.zeros(n) for n in (first, first, second, CLASSES)))

    def __call__(self, x: Float[Array, " inputs"], state: State) -> tuple[Array, State]:
        def spikes(v: Array, a: Array) -> Array:
            return fire(v - 1 - 0.3 * a)

        z = spikes(state.v, state.a)
        v = 0.95 * state.v + self.inputs @ x + self.recurrent @ z - jax.lax.stop_gradient(z)
        a = 0.985 * state.a + z
        z = fire(state.u - 1)
        u = 0.9 * state.u + self.between @ spikes(v, a) + self.recurrent_2 @ z
        u = u - jax.lax.stop_gradient(z)
        out = 0.9 * state.out + self.readout @ fire(u - 1)
        return out, State(v, a, u, out)


TASK = Task(
    name="Ordered bursts",
    make_model=Network,
    batch=batch,
    loss_fn=optax.softmax_cross_entropy_with_integer_labels,
    score=accuracy,
    chance=1 / CLASSES,
    batch_size=BATCH,
    updates=400,
    rate=3e-3,
    uncut=False,
    through=True,
)

if __name__ == "__main__":
    main(TASK)
