"""Recurrent PPO whose gradient goes through the whole past of an episode, and not through the last rollout alone.

PPO collects a rollout of 16 steps from 16 environments and takes four gradient steps on it. Backpropagation through
time ends where the rollout begins. With the carry of a program the same call goes on: its traces hold what the
state at the beginning of the rollout owes to the weights.

    python -m examples.rl.ppo
    python -m examples.rl.ppo --tasks "chain 32" --arms "D-RTRL" --seeds 1

Three agents have the same network, recurrent trace units and a layer after them: D-RTRL, for which the gradient is
exact up to the changes of the weights since; TBPTT(16), which is PPO as it is; and a feed-forward one, whose memory is
erased at each step.

Source: Schulman et al., "Proximal policy optimization algorithms", 2017, arXiv 1707.06347; Elelimy et al., NeurIPS
2024, arXiv 2409.01449, for recurrent trace units in PPO.
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
from .runs import BLOCKS, WINDOW, Arm, Task, main

UNITS, HIDDEN = 32, 64
BATCH, EPOCHS = 16, 4
GAMMA, LAMBDA, CLIP, ENTROPY, RATE = 0.99, 0.95, 0.2, 0.01, 1e-3


class ActorCritic(eqx.Module):
    """Recurrent trace units, and a layer after them that a policy and a value read.

    The input is what is seen and whether an episode begins, which erases the state.
    """

    cell: nn.RTU
    hidden: eqx.nn.Linear
    actor: eqx.nn.Linear
    critic: eqx.nn.Linear

    def __init__(self, env: Environment, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        ring: Any = dict(r_min=0.5, r_max=0.999, max_phase=0.5)
        self.cell = nn.RTU(env.inputs, UNITS, activation=jnp.tanh, **ring, key=keys[0])
        self.hidden = eqx.nn.Linear(2 * UNITS, HIDDEN, key=keys[1])
        actor = eqx.nn.Linear(HIDDEN, env.actions, key=keys[2])
        self.actor = nn.init(actor, "orthogonal", keys[2], gain=0.01)
        self.critic = eqx.nn.Linear(HIDDEN, 1, key=keys[3])

    def init_state(self) -> Array:
        return self.cell.init_state()

    def __call__(self, x: tuple[Array, Array], state: Array) -> tuple[tuple[Array, Array], Array]:
        seen, begins = x
        h, state = self.cell(seen, jnp.where(begins, 0, state))
        h = jnp.tanh(self.hidden(h))
        return (self.actor(h), self.critic(h)[0]), state


class Choice(NamedTuple):
    """What an agent did at a step, and what that was worth."""

    action: Array
    log_p: Array
    advantage: Array
    value: Array
    """The value that the critic should have had."""


def loss(output: tuple[Array, Array], choice: Choice) -> Array:
    """The clipped objective of PPO, of one example at one step."""
    logits, value = output
    log_p = jax.nn.log_softmax(logits)
    ratio = jnp.exp(log_p[choice.action] - choice.log_p)
    gain = jnp.minimum(ratio * choice.advantage, ratio.clip(1 - CLIP, 1 + CLIP) * choice.advantage)
    entropy = -(jnp.exp(log_p) * log_p).sum()
    return -gain + 0.5 * (value - choice.value) ** 2 - ENTROPY * entropy


class Agent(NamedTuple):
    """All that goes on from rollout to rollout; a PyTree, so that `etpc.save` keeps it."""

    model: ActorCritic
    opt_state: Any
    carry: Any
    """At the beginning of the rollout: states and traces."""
    state: Array
    """The states alone, with which the agent acts."""
    places: Any
    """Of the environments."""
    begins: Array
    """In which an episode begins."""
    seen: RunningStatistics
    scale: RewardScale


ARMS = {
    "D-RTRL": Arm(etpc.D_RTRL(backprop="full")),
    "TBPTT(16)": Arm(etpc.TBPTT(WINDOW)),
    "feed-forward": Arm(etpc.TBPTT(1), remembers=False),
}


def learner(env: Environment, arm: Arm, key: PRNGKeyArray) -> Any:
    """An agent before its first rollout, and the function of one rollout with its updates."""
    model: Any = ActorCritic(env, key)
    program = etpc.compile(model, arm.rule, inputs=(jnp.zeros(env.inputs), jnp.array(True)))
    value_and_grad = program.value_and_grad(loss)
    optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(RATE))
    see, advance = jax.vmap(env.see), jax.vmap(env.step)

    def act(agent: Agent, key: PRNGKeyArray) -> Any:
        """16 steps with the weights as they are."""

        def one(carry: Any, key: PRNGKeyArray) -> Any:
            state, places, begins, scale = carry
            act_key, new_key = jax.random.split(key)
            x = agent.seen.normalise(see(places)), begins | (not arm.remembers)
            (logits, value), state = jax.vmap(agent.model)(x, state)
            action = jax.random.categorical(act_key, logits)
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
            raw = see(places)
            places, reward, over = advance(places, action, jax.random.split(new_key, BATCH))
            scale = scale.update(reward, over)
            step = (x, raw, action, log_p, value, reward, over)
            return (state, places, over, scale), step

        start = (agent.state, agent.places, agent.begins, agent.scale)
        return jax.lax.scan(one, start, jax.random.split(key, WINDOW))

    def rollout(agent: Agent, key: PRNGKeyArray) -> tuple[Agent, tuple[Array, Array]]:
        (state, places, begins, scale), steps = act(agent, key)
        xs, raw, action, log_p, value, reward, over = steps
        x = agent.seen.normalise(see(places)), begins | (not arm.remembers)
        (_, last), _ = jax.vmap(agent.model)(x, state)
        advantage = advantages(scale.normalise(reward), over, value, last)
        target = advantage + value
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        choices = Choice(action, log_p, advantage, target)

        def epoch(learnt: Any, _step: None) -> Any:
            model, opt_state = learnt
            (_, carry), grads = value_and_grad(model, xs, choices, agent.carry)
            updates, opt_state = optimiser.update(grads, opt_state)
            return (eqx.apply_updates(model, updates), opt_state), carry

        (model, opt_state), carries = jax.lax.scan(
            epoch, (agent.model, agent.opt_state), length=EPOCHS
        )
        # of the first epoch, whose weights are those that the agent acted with
        carry = jax.tree.map(lambda a: a[0], carries)
        seen = agent.seen.update(raw)
        after = Agent(model, opt_state, carry, state, places, begins, seen, scale)
        return after, (reward.sum(), over.sum())

    places = jax.vmap(env.begin)(jax.random.split(key, BATCH))
    state = jnp.broadcast_to(model.init_state(), (BATCH, UNITS))
    seen = RunningStatistics((env.inputs,)).update(see(places))
    scale, true = RewardScale(GAMMA, BATCH), jnp.ones(BATCH, bool)
    start = Agent(
        *(model, optimiser.init(model), program.init(BATCH), state, places, true),
        *(seen, scale),
    )
    return start, rollout


def advantages(rewards: Array, over: Array, values: Array, last: Array) -> Array:
    """Generalised advantage estimation, [T, B] (Schulman et al., 2016)."""

    def back(carry: Any, step: Any) -> Any:
        advantage, after = carry
        reward, over, value = step
        goes_on = GAMMA * ~over
        advantage = reward + goes_on * after - value + LAMBDA * goes_on * advantage
        return (advantage, value), advantage

    start = jnp.zeros_like(last), last
    return jax.lax.scan(back, start, (rewards, over, values), reverse=True)[1]


def life(env: Environment, arm: Arm, steps: int, key: PRNGKeyArray) -> tuple[Array, Array]:
    """**Returns** the mean return of the episodes that end in each block of steps, and of 100 episodes after it."""
    start, rollout = learner(env, arm, key)
    keys = jax.random.split(key, steps // (WINDOW * BATCH) // BLOCKS * BLOCKS)
    agent, (rewards, over) = jax.lax.scan(rollout, start, keys)
    rewards, over = (a.reshape(BLOCKS, -1).sum(1) for a in (rewards, over))

    def policy(x: Array, state: Array) -> tuple[Array, Array]:
        (logits, _), state = agent.model((x, jnp.array(False)), state)
        return logits, state

    final = evaluate(policy, agent.model.init_state(), env, agent.seen, key, arm.remembers)
    return rewards / jnp.maximum(over, 1), final


TASKS = {
    "chain 32": Task(memory_chain(32), 200_000),
    "pole": Task(cart_pole(), 250_000),
}

if __name__ == "__main__":
    main("Recurrent PPO, return of an episode", life, TASKS, ARMS)
