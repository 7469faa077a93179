"""An agent that acts and learns on a device, in C, where its world is in C too.

The world is a corridor, a T-maze: at its beginning a sign says left or right, and at its end, some steps later, the
agent has to go where the sign said. It is an actor-critic of an encoder, minGRU neurons and two readouts, and
learns from each step as it comes (see docs/rl.md). It is trained a little in Python, and exported as two functions of
one state: `act`, from an observation to an action, and `learn`, from the reward and the next observation. On the device
(agent.c) it learns the rest.

    python -m examples.on_device.agent                  # trains, exports, and prints bytes; 20 s on 2 cores
    python -m examples.on_device.agent --export build/  # also build/agent/, learner.h and learner.c, for agent.c

Source of the way that it learns: Elsayed, Vasan and Mahmood, 2024, arXiv 2410.14606.
"""

import argparse
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, PRNGKeyArray

import etpc
from etpc import nn

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few steps, to see that it runs
LENGTH, STEPS = 5, 500 if FAST else 4000
GAMMA, LAMBDA = 0.95, 0.8


class Network(eqx.Module):
    encoder: eqx.nn.Linear
    cell: nn.MinGRU
    actor: eqx.nn.Linear
    critic: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.encoder = eqx.nn.Linear(2, 4, key=keys[0])
        self.cell = nn.MinGRU(4, 8, key=keys[1])
        self.actor, self.critic = (
            nn.init(eqx.nn.Linear(8, n, key=key), "zeros", key)
            for n, key in ((2, keys[2]), (1, keys[3]))
        )

    def init_state(self) -> Any:
        return self.cell.init_state()

    def __call__(self, x: Float[Array, "2"], state: Any) -> tuple[tuple[Array, Array], Any]:
        h, state = self.cell(jnp.tanh(self.encoder(x)), state)
        return (self.actor(h), self.critic(h)[0]), state


class Agent(NamedTuple):
    """All that goes on from step to step."""

    model: Network
    traces: Any
    """The decayed sum of gradients of the steps of an episode."""
    carry: Any
    """The hidden state, and the influence of each weight on it."""
    key: PRNGKeyArray
    value: Array
    """What the critic said at the last step."""
    begins: Array
    """Whether an episode does."""


@functools.cache
def program() -> etpc.Program:
    """Exact here: the neurons do not read each other, and the encoder has a trace for each of them."""
    return etpc.compile(Network(jax.random.key(0)), etpc.SnAp(1, window=1), inputs=jnp.zeros(2))


trace = etpc.optim.trace_of_gradient(GAMMA * LAMBDA)
bounded = etpc.optim.obgd(kappa=2.0)


def begin(key: PRNGKeyArray) -> Agent:
    model = Network(key)
    return Agent(model, trace.init(model), program().init(), key, jnp.zeros(()), jnp.array(True))


def act(agent: Agent, x: Float[Array, "2"]) -> tuple[Agent, Array]:
    """An action. What it and the value depend on goes into the trace at once, so that no gradient has to be kept."""
    (logits, value), pullback, carry = eqx.filter_vjp(
        lambda model: program()(model, x, agent.carry), agent.model, has_aux=True
    )
    key, now = jax.random.split(agent.key)
    action = jax.random.categorical(now, logits)
    (grads,) = pullback((jax.nn.one_hot(action, 2) - jax.nn.softmax(logits), jnp.ones(())))
    _, traces = trace.update(grads, agent.traces, reset=agent.begins)
    return agent._replace(traces=traces, carry=carry, key=key, value=value), action


def learn(
    agent: Agent, reward: Float[Array, ""], over: Array, x: Float[Array, "2"]
) -> tuple[Agent, None]:
    """A step of TD(lambda). `over`: whether the episode is, so that `x` is the first observation of another one."""
    carry = program().reset(agent.carry, over)
    (_, after), _ = program()(agent.model, x, carry)
    error = reward + GAMMA * jnp.where(over, 0.0, after) - agent.value
    changes, _ = bounded.update(agent.traces.trace, optax.EmptyState(), error=error)
    model = eqx.apply_updates(agent.model, changes)
    return agent._replace(model=model, carry=carry, begins=over), None


def exported(agent: Agent) -> etpc.ExportedFunctions:
    x, reward, over = jnp.zeros(2), jnp.zeros(()), jnp.array(False)
    return etpc.export_functions(agent, act=(act, x), learn=(learn, reward, over, x))


# --- the world, as in agent.c ---


def see(sign: Array, place: Array) -> Float[Array, "2"]:
    shown = jnp.where(place == 0, 2.0 * sign - 1.0, 0.0)
    return jnp.stack([shown, jnp.where(place == LENGTH, 1.0, 0.0)])


@jax.jit
def trained(agent: Agent, keys: PRNGKeyArray) -> tuple[Agent, Array]:
    """The agent after as many steps as there are keys, and the mean reward of the episodes."""

    def step(before: Any, key: PRNGKeyArray) -> Any:
        agent, sign, place = before
        agent, action = act(agent, see(sign, place))
        over = place == LENGTH
        reward = jnp.where(over, jnp.where(action == sign, 1.0, -1.0), 0.0)
        sign = jnp.where(over, jax.random.bernoulli(key).astype(int), sign)
        place = jnp.where(over, 0, place + 1)
        agent, _ = learn(agent, reward, over, see(sign, place))
        return (agent, sign, place), (reward, over)

    (agent, *_), (rewards, over) = jax.lax.scan(step, (agent, jnp.int32(0), jnp.int32(0)), keys)
    return agent, rewards.sum() / over.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description="An agent that acts and learns on a device.")
    parser.add_argument("--export", type=Path, metavar="FOLDER")
    folder = parser.parse_args().export
    agent = begin(jax.random.key(0))
    agent, score = trained(agent, jax.random.split(jax.random.key(1), STEPS))
    print(f"mean reward of an episode: {score:.2f}")
    agent = agent._replace(carry=program().init(), begins=jnp.array(True))
    file = exported(agent)
    print(f"exported: {sum(map(len, file.modules.values())):,} bytes of StableHLO")
    for part in Agent._fields:
        size = sum(a.nbytes for name, a in file.state.items() if name.startswith(f".{part}"))
        print(f"  {size:6,} bytes of {part}")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file.save(folder / "agent")
        sizes = file.to_c(folder)
        print(f"in C: {sizes['state']:,} bytes of state, {sizes['work']:,} bytes to work in")


if __name__ == "__main__":
    main()
