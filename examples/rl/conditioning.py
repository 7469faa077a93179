"""Prediction from a stream: trace conditioning, an experiment of animal learning, with TD(lambda).

A conditioned stimulus (a tone) is on for 4 steps. About ISI steps after it began an unconditioned one (a puff of air)
comes for 2 steps, and 80 to 120 steps later the next trial begins. Ten other stimuli come and go by chance. What is
predicted at each step is the discounted sum of the unconditioned stimuli to come, with a discount of 1 - 1 / ISI.
Between the tone and the puff nothing that is seen says that one is due.

    python -m examples.rl.conditioning
    python -m examples.rl.conditioning --tasks "ISI 30" --arms "D-RTRL" --seeds 1

Printed is the squared error of the prediction against the return, in units of the variance of the return. Who always
predicts the mean has 1; 0 is out of reach, as the time of the puff is random.

Source: Rafiee et al., "From eye-blinks to state construction: diagnostic benchmarks for online representation
learning", Adaptive Behavior, 2022, arXiv 2011.04590, and the code that comes with it.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

import etpc
from etpc import nn

from .runs import ARMS, BLOCKS, Arm, Task, main

UNITS, LAMBDA, RATE = 32, 0.9, 1e-3
TONE, PUFF, OTHER = 4, 2, 4  # steps that a stimulus lasts
OTHERS = 1 / jnp.arange(10, 110, 10)  # probabilities that a distractor begins


class Trial(NamedTuple):
    """A moment of the experiment."""

    time: Int[Array, ""]
    """Since the tone began."""
    puff: Int[Array, ""]
    """When the puff begins."""
    end: Int[Array, ""]
    others: Int[Array, " 10"]
    """For how many steps each distractor is still there."""


def begin(isi: int, key: PRNGKeyArray) -> tuple[Array, Array]:
    """When the puff of a trial begins, and when the trial ends."""
    puff_key, end_key = jax.random.split(key)
    apart = isi // 3
    puff = jax.random.randint(puff_key, (), isi - apart, isi + apart + 1)
    return puff, puff + jax.random.randint(end_key, (), 80, 121)


def goes_on(isi: int, trial: Trial, key: PRNGKeyArray) -> Trial:
    """The next moment."""
    trial_key, others_key = jax.random.split(key)
    puff, end = begin(isi, trial_key)
    over = trial.time + 1 == trial.end
    comes = jax.random.uniform(others_key, (10,)) < OTHERS
    others = jnp.where(trial.others > 0, trial.others - 1, jnp.where(comes, OTHER, 0))
    return Trial(
        jnp.where(over, 0, trial.time + 1),
        jnp.where(over, puff, trial.puff),
        jnp.where(over, end, trial.end),
        others,
    )


def see(trial: Trial) -> Float[Array, " 12"]:
    """The puff, the tone and the others, each 1 or 0."""
    puff = (trial.time >= trial.puff) & (trial.time < trial.puff + PUFF)
    return jnp.array([puff, trial.time < TONE, *(trial.others > 0)], float)


class Predictor(eqx.Module):
    """Recurrent trace units and a linear readout."""

    cell: nn.RTU
    out: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        keys = jax.random.split(key)
        ring: Any = dict(r_min=0.5, r_max=0.999, max_phase=0.5)
        self.cell = nn.RTU(12, UNITS, **ring, key=keys[0])
        self.out = nn.init(eqx.nn.Linear(2 * UNITS, 1, key=keys[1]), "zeros", keys[1])

    def init_state(self) -> Array:
        return self.cell.init_state()

    def __call__(self, x: Array, state: Array) -> tuple[Array, Array]:
        h, state = self.cell(x, state)
        return self.out(h)[0], state


class Learner(NamedTuple):
    """All that goes on from step to step; a PyTree, so that `etpc.save` keeps it."""

    model: Predictor
    opt_state: Any
    carry: Any
    trial: Trial


def learner(isi: int, arm: Arm, key: PRNGKeyArray) -> Any:
    """A predictor before its first step, and the function of one step."""
    model: Any = Predictor(key)
    gamma = 1 - 1 / isi
    program = etpc.compile(model, arm.rule, inputs=jnp.zeros(12))
    trace = etpc.optim.trace_of_gradient(gamma * LAMBDA)
    optimiser = optax.chain(trace, optax.scale(-1.0), optax.adam(RATE))  # uphill

    def step(before: Learner, key: PRNGKeyArray) -> tuple[Learner, tuple[Array, Array]]:
        model, opt_state, carry, trial = before
        value, pullback, carry = jax.vjp(
            lambda m: program(m, see(trial), carry), model, has_aux=True
        )
        (grads,) = pullback(jnp.ones(()))
        trial = goes_on(isi, trial, key)
        carry = carry if arm.remembers else program.reset(carry, jnp.array(True))
        after, _ = program(model, see(trial), carry)
        puff = see(trial)[0]
        error = puff + gamma * after - value
        updates, opt_state = optimiser.update(grads, opt_state, reward=error)
        model = eqx.apply_updates(model, updates)
        return Learner(model, opt_state, carry, trial), (value, puff)

    puff, end = begin(isi, key)
    trial = Trial(jnp.int32(0), puff, end, jnp.zeros(10, int))
    return Learner(model, optimiser.init(model), program.init(), trial), step


def life(isi: int, arm: Arm, steps: int, key: PRNGKeyArray) -> tuple[Array, Array]:
    """**Returns** the relative error in each block of steps, and in the last one."""
    start, step = learner(isi, arm, key)
    _, (values, puffs) = jax.lax.scan(step, start, jax.random.split(key, steps))
    back = lambda after, puff: (puff + (1 - 1 / isi) * after,) * 2
    returns = jax.lax.scan(back, jnp.zeros(()), puffs, reverse=True)[1]
    known = slice(0, steps - 20 * isi)  # of the last returns a part is yet to come
    squares = ((values - returns) ** 2)[known]
    squares = squares[: len(squares) // BLOCKS * BLOCKS].reshape(BLOCKS, -1).mean(1)
    curve = squares / returns[known].var()
    return curve, curve[-1]


TASKS = {"ISI 10": Task(10, 100_000), "ISI 30": Task(30, 100_000)}

if __name__ == "__main__":
    main("Trace conditioning, relative squared error of the return", life, TASKS, ARMS)
