"""An agent that lives through given observations, by functions that were exported, and by Python alone."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import etpc
from examples.on_device.agent import GAMMA, LAMBDA, Agent, begin, exported, program
from tests.device.learners import KEY, distance

STEPS = 240
RNG = np.random.default_rng(0)
XS = RNG.normal(size=(STEPS + 1, 2)).astype(np.float32)
REWARDS = RNG.normal(size=(STEPS, 2)).astype(np.float32)
"""Of each action."""
OVER = RNG.random(STEPS) < 0.2


@functools.cache
def exported_agent() -> tuple[Agent, etpc.ExportedFunctions]:
    agent = begin(KEY)
    return agent, exported(agent)


def lives(call: Callable[..., Iterable[Any]]) -> list[int]:
    """What an agent does, where `call("act", x=x)` gives its action."""
    actions = []
    for t in range(STEPS):
        (action,) = call("act", x=XS[t])
        actions.append(int(action))
        [*call("learn", reward=REWARDS[t, actions[-1]], over=OVER[t], x=XS[t + 1])]
    return actions


@jax.jit
def in_python(agent: Agent) -> tuple[Agent, Any]:
    """The same life in one function, as docs/rl.md has it: one optimizer, which gets all gradients and errors."""
    optimizer = optax.chain(
        etpc.optim.trace_of_gradient(GAMMA * LAMBDA), etpc.optim.obgd(kappa=2.0)
    )

    def step(before: Any, data: Any) -> Any:
        model, opt_state, carry, key, begins, _ = before
        x, rewards, over, next_x = data
        (logits, value), pullback, carry = jax.vjp(
            lambda model: program()(model, x, carry), model, has_aux=True
        )
        key, now = jax.random.split(key)
        action = jax.random.categorical(now, logits)
        carry = program().reset(carry, over)
        (_, after), _ = program()(model, next_x, carry)
        error = rewards[action] + GAMMA * jnp.where(over, 0.0, after) - value
        (grads,) = pullback((jax.nn.one_hot(action, 2) - jax.nn.softmax(logits), jnp.ones(())))
        updates, opt_state = optimizer.update(grads, opt_state, error=error, reset=begins)
        return (eqx.apply_updates(model, updates), opt_state, carry, key, over, value), action

    opt_state = optimizer.init(agent.model)
    start = (agent.model, opt_state, agent.carry, agent.key, agent.begins, agent.value)
    data = (XS[:-1], REWARDS, OVER, XS[1:])
    (model, (traces, _), carry, key, begins, value), actions = jax.lax.scan(step, start, data)
    return Agent(model, traces, carry, key, value, begins), actions


def lives_as_in_python(agent: Agent, functions: Any, actions: list[int], state: Any) -> None:
    """Check what an agent did, and the state that it has after it."""
    after, wanted = in_python(agent)
    assert actions == wanted.tolist()
    assert 0.2 < np.mean(actions) < 0.8
    values = functions.state_of(after)
    assert values.keys() == state.keys()
    for name, value in values.items():
        assert distance(state[name], value) < 1e-4, name
        learns = distance(functions.state[name], value) > 1e-3
        assert learns or not name.startswith((".model", ".traces")), name
