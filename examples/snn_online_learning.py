"""A silent network learns nothing, and says so.

The set-up of an early version of BrainTrace's tutorial "SNN Online Learning": 50 inputs that spike
at random with probability 0.1, 128 recurrently connected LIF neurons, a leaky readout with 10
outputs, random labels, ES-D-RTRL with decay 0.99, Adam, gradients clipped to norm 1. With those
initial weights no neuron reaches its threshold: the outputs are zero, the loss stays at ln 10, and
nothing raises an error. `etpc.verify` says so before any training. (Later versions of the tutorial
use larger weights and a lower threshold.)

Then the same loop with larger initial weights, on one batch: the network spikes, and it learns.

    python examples/snn_online_learning.py              # about 15 seconds on 2 cores
"""

import math
import os
import sys
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

import etpc
from etpc import nn

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few updates, to see that it runs
STEPS, BATCH, INPUTS, NEURONS, OUTPUTS = 50, 32, 50, 128, 10


class State(NamedTuple):
    V: Float[Array, " K"]  # membrane potentials (mV)
    r: Float[Array, " O"]  # readout


class SNN(eqx.Module):
    """One step (1 ms) of one example: LIF neurons, and a leaky readout of their spikes."""

    linear: eqx.nn.Linear
    neuron: nn.LIF
    readout: nn.LeakyRateReadout

    def __init__(self, scale: float, *, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        linear = eqx.nn.Linear(INPUTS + NEURONS, NEURONS, key=k1)
        self.linear = nn.init(linear, "lecun_normal", k1, gain=scale**0.5)
        self.neuron = nn.LIF(NEURONS, tau=20.0, V_th=1.0, reset="soft")  # with ReluGrad
        self.readout = nn.LeakyRateReadout(NEURONS, OUTPUTS, tau=20.0, key=k2)

    def init_state(self) -> State:
        return State(self.neuron.init_state(), self.readout.init_state())

    def __call__(self, x: Float[Array, " I"], state: State) -> tuple[Array, State]:
        current = self.linear(jnp.concatenate([x, self.neuron.spike(state.V)]))
        spikes, V = self.neuron(current, state.V)
        y, r = self.readout(spikes, state.r)
        return y, State(V, r)


def random_batch(key: PRNGKeyArray) -> tuple[Float[Array, "T B I"], Int[Array, "T B"]]:
    """Spikes, and a random label for each example: there is nothing to generalise."""
    k1, k2 = jax.random.split(key)
    xs = jax.random.bernoulli(k1, 0.1, (STEPS, BATCH, INPUTS)).astype(jnp.float32)
    labels = jax.random.randint(k2, (BATCH,), 0, OUTPUTS)
    return xs, jnp.broadcast_to(labels, (STEPS, BATCH))


def loss_fn(y: Array, label: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(y, label)


@eqx.filter_jit
def count_spikes(model: SNN, xs: Float[Array, "T B I"]) -> Array:
    """All spikes of all neurons in a batch: the model runs on its own, without any traces."""

    def step(state: State, x: Array) -> tuple[State, Array]:
        _, state = jax.vmap(model)(x, state)
        return state, model.neuron.spike(state.V).sum()

    state = jax.vmap(lambda _: model.init_state())(xs[0])
    return jax.lax.scan(step, state, xs)[1].sum().astype(int)


def train(model: SNN, updates: int, *, fixed_batch: bool) -> float:
    algo = etpc.ES_D_RTRL(decay=0.99)
    program = etpc.compile(model, algo, inputs=jax.ShapeDtypeStruct((INPUTS,), jnp.float32))
    gradient = program.value_and_grad(loss_fn, reduction="sum")
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    opt_state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(model: Any, opt_state: Any, xs: Array, targets: Array) -> Any:
        (loss, _), grads = gradient(model, xs, targets, program.init(BATCH))
        changes, opt_state = optimiser.update(grads, opt_state)
        return eqx.apply_updates(model, changes), opt_state, loss / STEPS

    xs, targets = random_batch(jax.random.key(1))
    print(etpc.verify(model, xs, targets, loss_fn, algo, batch_size=BATCH), "\n")
    loss = math.nan
    for n in range(updates + 1):
        if not fixed_batch:
            xs, targets = random_batch(jax.random.key(1 + n))
        before = model
        model, opt_state, loss = update(model, opt_state, xs, targets)
        if n % (updates // 5) == 0:
            spikes = int(count_spikes(before, xs))
            each = spikes / (BATCH * NEURONS)
            print(f"update {n:3d}   loss {loss:.4f}   spikes {spikes:6d} ({each:.2f} per neuron)")
    print()
    return float(loss)


def main() -> int:
    chance = math.log(OUTPUTS)
    print("--- initial weights of variance 2 / fan-in, new random data at every update ---\n")
    train(SNN(2.0, key=jax.random.key(0)), 5 if FAST else 50, fixed_batch=False)
    print("--- initial weights of variance 1000 / fan-in, one batch to remember ---\n")
    loss = train(SNN(1000.0, key=jax.random.key(0)), 5 if FAST else 150, fixed_batch=True)
    print(f"ln {OUTPUTS} = {chance:.4f} is the loss of knowing nothing; now it is {loss:.4f}")
    return 0 if FAST or loss < 0.5 * chance else 1


if __name__ == "__main__":
    sys.exit(main())
