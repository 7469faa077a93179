"""The reference network: recurrent leaky integrate-and-fire neurons with a leaky readout.

It is that of braintrace's tutorial "SNN online learning": the input and the last spikes of all
neurons, concatenated, pass through one dense layer into the neurons, and a leaky readout of 10 sums
their spikes. The time constants, threshold and scale of the weights are the tutorial's too; the
inputs are Poisson spikes, and the loss is a cross-entropy at every step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

import etpc
from benchmarks import by_hand
from etpc import nn

N_IN, N_OUT = 50, 10
TAU, TAU_OUT = 20.0, 20.0  # ms
V_TH = 0.1  # mV
WEIGHT_SCALE = 50.0
RATE = 0.2  # spikes of an input per step

Gradients = dict[str, Array]
"""Gradients by the names of the weights in etpc's network, and in its layout."""


class State(NamedTuple):
    V: Float[Array, " N"]  # membrane potentials (mV)
    r: Float[Array, " O"]  # readout


class Network(eqx.Module):
    """One step of one example."""

    hidden: eqx.nn.Linear
    lif: nn.LIF
    readout: nn.LeakyRateReadout

    def __init__(self, size: int, *, key: Array):
        hidden_key, readout_key = jax.random.split(key)
        hidden = eqx.nn.Linear(N_IN + size, size, key=hidden_key)
        self.hidden = nn.init(hidden, "lecun_normal", hidden_key, gain=WEIGHT_SCALE**0.5)
        self.lif = nn.LIF(size, tau=TAU, V_th=V_TH)
        self.readout = nn.LeakyRateReadout(size, N_OUT, tau=TAU_OUT, key=readout_key)

    def init_state(self) -> State:
        return State(self.lif.init_state(), self.readout.init_state())

    def __call__(self, x: Float[Array, " I"], state: State) -> tuple[Array, State]:
        spikes = self.lif.spike(state.V)
        spikes, V = self.lif(self.hidden(jnp.concatenate([x, spikes])), state.V)
        y, r = self.readout(spikes, state.r)
        return y, State(V, r)


def loss(y: Float[Array, " O"], target: Int[Array, ""]) -> Float[Array, ""]:
    """Cross-entropy of one example at one step."""
    return -jax.nn.log_softmax(y)[target]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network with data: what every contestant gets."""

    model: Network
    xs: Float[Array, "T B I"]
    targets: Int[Array, "T B"]

    @classmethod
    def make(cls, size: int, steps: int = 50, batch: int = 32, seed: int = 0) -> "Problem":
        model_key, x_key, target_key = jax.random.split(jax.random.key(seed), 3)
        xs = jax.random.bernoulli(x_key, RATE, (steps, batch, N_IN)).astype(jnp.float32)
        labels = jax.random.randint(target_key, (batch,), 0, N_OUT)
        targets = jnp.broadcast_to(labels, (steps, batch))
        return cls(Network(size, key=model_key), xs, targets)

    @property
    def size(self) -> int:
        return len(self.model.hidden.weight)

    @property
    def batch(self) -> int:
        return self.xs.shape[1]

    def shapes(self, steps: int | None = None) -> tuple[Any, Any]:
        """Inputs and targets of `steps` steps, as shapes."""
        steps = steps or self.xs.shape[0]
        xs, targets = (
            jax.ShapeDtypeStruct((steps, *a.shape[1:]), a.dtype) for a in (self.xs, self.targets)
        )
        return xs, targets

    def firing_rate(self) -> float:
        """Spikes of a neuron per step, on average. Raises where there are none."""

        def step(state: State, x: Array) -> tuple[State, Array]:
            _, state = jax.vmap(self.model)(x, state)
            return state, jnp.mean(jax.vmap(self.model.lif.spike)(state.V))

        start = jax.tree.map(
            lambda a: jnp.broadcast_to(a, (self.batch, *a.shape)), self.model.init_state()
        )
        rate = float(jnp.mean(jax.lax.scan(step, start, self.xs)[1]))
        if rate == 0:
            raise ValueError("No neuron spikes, so there is nothing to compare.")
        return rate


class Gradient:
    """A gradient of the problem as one compiled function, from a fresh state and fresh traces."""

    def __init__(self, problem: Problem, grads: Callable[[Network, Array, Array], Any]):
        arrays, static = eqx.partition(problem.model, eqx.is_array)
        self._arguments = (problem.xs, problem.targets)
        self._problem, self._arrays = problem, arrays

        @jax.jit
        def run(arrays: Network, xs: Array, targets: Array) -> Gradients:
            gradients = grads(eqx.combine(arrays, static), xs, targets)
            return {
                "hidden.weight": gradients.hidden.weight,
                "hidden.bias": gradients.hidden.bias,
                "readout.weight": gradients.readout.weight,
            }

        self._run = run

    def __call__(self) -> Gradients:
        return self._run(self._arrays, *self._arguments)

    def lowered(self, steps: int | None = None) -> jax.stages.Lowered:
        """Its program, for a sequence of another length if wanted."""
        return self._run.lower(self._arrays, *self._problem.shapes(steps))


def online(problem: Problem, algorithm: etpc.algorithms.Algorithm) -> Gradient:
    """The gradient of a trace program."""
    program = etpc.compile(problem.model, algorithm, inputs=problem.xs[0, 0])
    run = program.value_and_grad(loss, "sum")
    return Gradient(
        problem,
        lambda model, xs, targets: run(model, xs, targets, program.init(problem.batch))[1],
    )


def bptt(problem: Problem, checkpoint: bool = False) -> Gradient:
    """BPTT as one would write it; with `checkpoint`, each step is computed again in the backward pass."""

    def grads(model: Network, xs: Array, targets: Array) -> Any:
        return by_hand.bptt(model, xs, targets, loss, checkpoint=checkpoint)[1]

    return Gradient(problem, grads)


def truncated_bptt(problem: Problem, window: int) -> Gradient:
    """BPTT that is cut after every `window` steps."""
    options: dict[str, Any] = dict(batch_size=problem.batch, reduction="sum", window=window)

    def grads(model: Network, xs: Array, targets: Array) -> Any:
        return etpc.bptt(model, xs, targets, loss, **options)[1]

    return Gradient(problem, grads)
