"""An agent that learns while it acts: actor-critic with eligibility traces, through a recurrent cell.

A bit is shown once. `length` steps later the agent has to say which it was: MemoryChain, as in bsuite
and gymnax. It chooses each action itself, and what an action was worth is known a step later, when the
next value is: so the gradient of each step has to be there before the loss is. A program gives it:
`jax.vjp` of one call.

Five agents, each with one stream, no replay and no batch, differ in how credit reaches the past:

- RTRL through a GRU, the exact gradient;
- D-RTRL through a linear recurrent unit, for which it is exact, at a fraction of the cost;
- TBPTT(1), the gradient of the present step alone;
- rolling TBPTT(16) through either cell: backpropagation through the last 16 steps, at each step.

    python examples/streaming_rl.py                     # about 3 minutes on 2 cores
    python examples/streaming_rl.py --lengths 128

The step size is ObGD, as of streaming deep RL (Elsayed, Vasan and Mahmood, arXiv 2410.14606); RTRL
through a cell in an actor-critic is that of arXiv 2409.01449.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

import etpc
from etpc import nn

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few episodes, to see that it runs
UNITS, SEEDS, BLOCKS = 16, 3, 10
KEEPS = 5.0  # bias of the update gate: at first a state keeps sigmoid(5) = 99 % in a step
GAMMA, LAMBDA = 0.99, 0.3  # discount; decay of the eligibility trace
STEP, KAPPA = 1.0, 2.0  # of ObGD

# --- the environment ---


class Chain(NamedTuple):
    """One episode: the bit, and the step."""

    bit: Bool[Array, ""]
    time: Int[Array, ""]


def begin(key: PRNGKeyArray) -> Chain:
    return Chain(jax.random.bernoulli(key), jnp.int32(0))


def see(chain: Chain, length: Int[Array, ""]) -> Float[Array, " 3"]:
    """The time that is left, which bit is asked for (there is one), and in the first step the bit."""
    shown = jnp.where(chain.time == 0, 2.0 * chain.bit - 1.0, 0.0)
    return jnp.stack([1 - chain.time / length, jnp.zeros(()), shown])


def act(chain: Chain, action: Array, length: Int[Array, ""]) -> tuple[Array, Array, Chain]:
    """The reward, whether the episode is over, and what comes next."""
    last = chain.time == length
    right = action == chain.bit
    return jnp.where(last, jnp.where(right, 1.0, -1.0), 0.0), last, Chain(chain.bit, chain.time + 1)


# --- the agent ---


class ActorCritic(eqx.Module):
    """A recurrent cell with a policy and a value."""

    cell: Any
    actor: eqx.nn.Linear
    critic: eqx.nn.Linear

    def __init__(self, cell: Callable[..., Any], key: PRNGKeyArray):
        cell_key, actor_key, critic_key = jax.random.split(key, 3)
        self.cell = cell(cell_key)
        actor, critic = (
            eqx.nn.Linear(UNITS, 2, key=actor_key),
            eqx.nn.Linear(UNITS, 1, key=critic_key),
        )
        self.actor = nn.init(actor, "lecun_normal", actor_key, gain=0.1**0.5)
        self.critic = nn.init(critic, "lecun_normal", critic_key, gain=0.1**0.5)

    def init_state(self) -> Array:
        return self.cell.init_state()

    def __call__(self, x: Array, state: Array) -> tuple[tuple[Array, Array], Array]:
        h, state = self.cell(x, state)
        return (self.actor(h), self.critic(h)[0]), state


def learn(
    model: ActorCritic,
    rule: etpc.algorithms.Algorithm,
    length: Int[Array, ""],
    steps: int,
    key: PRNGKeyArray,
) -> Float[Array, " blocks"]:
    """One life of an agent. **Returns** the share of right answers in each block of steps."""
    program = etpc.compile(model, rule, inputs=jnp.zeros(3))

    def step(state, keys):
        model, carry, trace, value, reward, over, chain = state
        seen = see(chain, length)
        (logits, new_value), gradient, carry = jax.vjp(
            lambda m: program(m, seen, carry), model, has_aux=True
        )

        # What the step before was worth is known now, and the weights move.
        delta = reward + GAMMA * jnp.where(over, 0.0, new_value) - value
        model = moved(model, trace, delta)

        # Act, and remember what the action and the value depend on.
        action = jax.random.categorical(keys[0], logits)
        surprise = jax.nn.one_hot(action, 2) - jax.nn.softmax(logits)  # d log pi(action) / d logits
        (grads,) = gradient((surprise, jnp.ones(())))
        decay = jnp.where(over, 0.0, GAMMA * LAMBDA)
        trace = jax.tree.map(lambda z, g: decay * z + g, trace, grads)

        # The world goes on; a new episode finds nothing remembered.
        reward, over, chain = act(chain, action, length)
        either = lambda new, old: jnp.where(over, new, old)
        chain = jax.tree.map(either, begin(keys[1]), chain)
        carry = program.reset(carry, over)
        after = (model, carry, trace, new_value, reward, over, chain)
        return after, (reward > 0, over)

    zero = jax.tree.map(jnp.zeros_like, model)
    keys = jax.random.split(key, (steps, 2))
    start = (model, program.init(), zero, 0.0, 0.0, jnp.array(True), begin(key))
    _, (right, over) = jax.lax.scan(step, start, keys)
    right, over = (a.reshape(BLOCKS, -1).sum(1) for a in (right, over))
    return right / over


def moved(model: ActorCritic, trace: ActorCritic, delta: Array) -> ActorCritic:
    """ObGD: a step that is smaller where it would overshoot the error."""
    norm = sum(jnp.abs(z).sum() for z in jax.tree.leaves(trace))
    size = STEP / jnp.maximum(1.0, STEP * KAPPA * jnp.maximum(jnp.abs(delta), 1.0) * norm)
    return jax.tree.map(lambda w, z: w + size * delta * z, model, trace)


# --- the agents ---


def gru(key: PRNGKeyArray) -> nn.Sequential:
    cell = nn.init(eqx.nn.GRUCell(3, UNITS, key=key), "lecun_normal", key)
    update_gate = slice(UNITS, 2 * UNITS)
    bias = jnp.zeros(3 * UNITS).at[update_gate].set(KEEPS)
    return nn.Sequential([eqx.tree_at(lambda c: c.bias, cell, bias)])


def lru(key: PRNGKeyArray) -> nn.LRU:
    return nn.LRU(3, UNITS, UNITS, r_min=0.9, r_max=0.999, max_phase=0.3, key=key)


AGENTS = {
    "RTRL, GRU": (gru, etpc.RTRL()),
    "TBPTT(1), GRU": (gru, etpc.TBPTT(1)),
    "TBPTT(16), GRU": (gru, etpc.TBPTT(16, every=1)),
    "D-RTRL, LRU": (lru, etpc.D_RTRL()),
    "TBPTT(16), LRU": (lru, etpc.TBPTT(16, every=1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Streaming actor-critic on MemoryChain.")
    parser.add_argument("--lengths", default="2" if FAST else "2,8,32")
    parser.add_argument("--episodes", type=int, default=20 if FAST else 3000)
    args = parser.parse_args()
    lengths = [int(n) for n in args.lengths.split(",")]
    print(f"share of right answers, in tenths of {args.episodes} episodes; {SEEDS} seeds\n")
    for length in lengths:
        for name, (cell, rule) in AGENTS.items():
            start = time.perf_counter()
            steps = args.episodes * (length + 1) // BLOCKS * BLOCKS

            def life(key, cell=cell, rule=rule, steps=steps, length=length):
                return learn(ActorCritic(cell, key), rule, jnp.int32(length), steps, key)

            keys = jax.random.split(jax.random.key(0), SEEDS)
            curves = jax.jit(jax.vmap(life))(keys)
            shown = " ".join(f"{share:.2f}" for share in curves.mean(0))
            last = " ".join(f"{share:.2f}" for share in curves[:, -1])
            seconds = time.perf_counter() - start
            print(f"length {length:>3}  {name:<16} {shown}   (last: {last})  {seconds:.0f} s")
        print()


if __name__ == "__main__":
    main()
