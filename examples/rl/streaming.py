"""An agent that learns while it acts: actor-critic with eligibility traces, one stream, no replay, no batch.

What an action was worth is known a step later. `jax.vjp` of one call of a program gives the gradient through the whole
past of the stream, `etpc.optim.trace_of_gradient` adds it up for TD(lambda), and `etpc.optim.obgd` makes the step.

    python -m examples.rl.streaming                              # MemoryChain, and a pole without velocities
    python -m examples.rl.streaming --tasks "chain 32" --arms "D-RTRL"

Three agents have the same network, recurrent trace units and a layer after them:

- D-RTRL, exact here: the gradient through all of the past, in constant memory;
- TBPTT(16), rolling: backpropagation through the last 16 steps, at each step;
- feed-forward: the memory is erased at each step.

Source: Elsayed, Vasan and Mahmood, "Streaming deep reinforcement learning finally works", 2024, arXiv 2410.14606:
stream AC(lambda) with its normalisation of observations and rewards; the units are those of Elelimy et al., NeurIPS
2024, arXiv 2409.01449.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

import etpc
from etpc import nn
from etpc.optim import RewardScale, RunningStatistics

from .environments import Environment, cart_pole, evaluate, memory_chain
from .runs import ARMS, BLOCKS, Arm, Task, main

UNITS, HIDDEN = 16, 32
GAMMA, LAMBDA, ENTROPY = 0.99, 0.8, 0.01


def rtu(inputs: int, key: PRNGKeyArray, **ring: Any) -> nn.RTU:
    ring = ring or dict(r_min=0.5, r_max=0.999, max_phase=0.5)
    return nn.RTU(inputs, UNITS, activation=jnp.tanh, **ring, key=key)


class Network(eqx.Module):
    """A cell of 2 UNITS features, and a layer after it."""

    cell: Any
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, inputs: int, outputs: int, key: PRNGKeyArray, cell: Any = rtu):
        keys = jax.random.split(key, 3)
        self.cell = cell(inputs, keys[0])
        self.hidden = eqx.nn.Linear(2 * UNITS, HIDDEN, key=keys[1])
        self.out = nn.init(eqx.nn.Linear(HIDDEN, outputs, key=keys[2]), "zeros", keys[2])

    def init_state(self) -> Array:
        return self.cell.init_state()

    def __call__(self, x: Array, state: Array) -> tuple[Array, Array]:
        h, state = self.cell(x, state)
        h = self.hidden(h)
        h = (h - h.mean()) / jnp.sqrt(h.var() + 1e-5)
        return self.out(jax.nn.leaky_relu(h)), state


class ActorCritic(eqx.Module):
    """A policy and a value, each with a network of its own."""

    actor: Network
    critic: Network

    def __init__(self, env: Environment, key: PRNGKeyArray, cell: Any = rtu):
        actor_key, critic_key = jax.random.split(key)
        self.actor = Network(env.inputs, env.actions, actor_key, cell)
        self.critic = Network(env.inputs, 1, critic_key, cell)

    def init_state(self) -> tuple[Array, Array]:
        return self.actor.init_state(), self.critic.init_state()

    def __call__(self, x: Array, state: Any) -> tuple[tuple[Array, Array], Any]:
        logits, of_actor = self.actor(x, state[0])
        value, of_critic = self.critic(x, state[1])
        return (logits, value[0]), (of_actor, of_critic)


class Agent(NamedTuple):
    """All that goes on from step to step; a PyTree, so that `etpc.save` keeps it."""

    model: ActorCritic
    opt_state: Any
    carry: Any
    place: Any
    """Of the environment."""
    fresh: Array
    """Whether an episode begins."""
    seen: RunningStatistics
    scale: RewardScale


def learner(env: Environment, arm: Arm, key: PRNGKeyArray, cell: Any = rtu) -> Any:
    """An agent before its first step, and the function of one step."""
    model: Any = ActorCritic(env, key, cell)
    program = etpc.compile(model, arm.rule, inputs=jnp.zeros(env.inputs))
    part = lambda path, _: path[0].name
    steps: Any = {"actor": etpc.optim.obgd(kappa=3.0), "critic": etpc.optim.obgd(kappa=2.0)}
    optimiser = optax.chain(
        etpc.optim.trace_of_gradient(GAMMA * LAMBDA),
        optax.multi_transform(steps, lambda tree: jax.tree_util.tree_map_with_path(part, tree)),
    )

    def step(agent: Agent, key: PRNGKeyArray) -> tuple[Agent, tuple[Array, Array]]:
        act_key, new_key = jax.random.split(key)
        x = agent.seen.normalise(env.see(agent.place))
        (logits, value), pullback, carry = jax.vjp(
            lambda m: program(m, x, agent.carry), agent.model, has_aux=True
        )
        action = jax.random.categorical(act_key, logits)
        place, reward, over = env.step(agent.place, action, new_key)
        seen = agent.seen.update(env.see(place))
        scale = agent.scale.update(reward, over)

        # the value of what comes next, which is 0 where the episode is over
        carry = program.reset(carry, over if arm.remembers else jnp.array(True))
        (_, after), _ = program(agent.model, seen.normalise(env.see(place)), carry)
        error = scale.normalise(reward) + GAMMA * jnp.where(over, 0.0, after) - value

        # what is to grow with a positive error: the logarithm of the policy, and the value
        p = jax.nn.softmax(logits)
        surprise = jax.nn.one_hot(action, env.actions) - p
        entropy = -p * (jax.nn.log_softmax(logits) - (p * jax.nn.log_softmax(logits)).sum())
        (grads,) = pullback((surprise + ENTROPY * jnp.sign(error) * entropy, jnp.ones(())))
        updates, opt_state = optimiser.update(
            grads, agent.opt_state, error=error, reset=agent.fresh
        )
        model = eqx.apply_updates(agent.model, updates)
        agent = Agent(model, opt_state, carry, place, over, seen, scale)
        return agent, (reward, over)

    place = env.begin(key)
    seen = RunningStatistics((env.inputs,)).update(env.see(place))
    carry, scale = program.init(), RewardScale(GAMMA)
    start = Agent(model, optimiser.init(model), carry, place, jnp.array(True), seen, scale)
    return start, step


def life(
    env: Environment, arm: Arm, steps: int, key: PRNGKeyArray, cell: Any = rtu
) -> tuple[Array, Array]:
    """**Returns** the mean return of the episodes that end in each block of steps, and of 100 episodes after it."""
    start, step = learner(env, arm, key, cell)
    agent, (rewards, over) = jax.lax.scan(step, start, jax.random.split(key, steps))
    rewards, over = (a.reshape(BLOCKS, -1).sum(1) for a in (rewards, over))
    actor = agent.model.actor
    final = evaluate(actor, actor.init_state(), env, agent.seen, key, arm.remembers)
    return rewards / jnp.maximum(over, 1), final


TASKS = {
    "chain 8": Task(memory_chain(8), 50_000),
    "chain 32": Task(memory_chain(32), 200_000),
    "pole": Task(cart_pole(), 250_000),
}

if __name__ == "__main__":
    main("Streaming actor-critic, return of an episode", life, TASKS, ARMS)
