"""An agent with an encoder before its memory: which rules give the encoder credit for what is asked later.

Six bits are shown, and 12 steps later the action has to say whether the first two are equal. What reads the memory is
linear, so the encoder has to compare before it knows what for. The first table is of rollouts: an advantage
actor-critic learns from 8 steps in 16 environments at once. An episode of 13 steps ends inside a rollout, and is longer
than one. The second table is of programs that are called step by step, as by an agent that learns while it acts.

    python -m examples.rl.encoder                         # two tables; 5 minutes of CPU time
"""

import functools
import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

import etpc
from etpc import nn

from .environments import Environment
from .ppo import advantages
from .runs import FAST

BITS, DELAY, WIDTH, UNITS = 6, 12, 8, 16
BATCH, WINDOW, RATE, ENTROPY = 16, 8, 3e-3, 0.01
ROLLOUTS, PARTS = (20, 1) if FAST else (2000, None)
LEARNING = ROLLOUTS // 5
"""After so many rollouts under RTRL gradients are compared, on this many more:"""
SETTLED, COMPARED = 20, 20
RULES = {
    "immediate, TBPTT(1)": etpc.TBPTT(1),
    "D-RTRL": etpc.D_RTRL(window=WINDOW),
    "TBPTT(8)": etpc.TBPTT(WINDOW),
    "D-RTRL, full windows of 8": etpc.D_RTRL(window=WINDOW, backprop="full"),
    "D-RTRL, look-back 16": etpc.D_RTRL(window=WINDOW, lookback=2 * WINDOW),
    "CreditRTRL, 4 directions": etpc.CreditRTRL(4, 4, window=WINDOW),
    "SnAp(1)": etpc.SnAp(1),
    "RTRL": etpc.RTRL(window=WINDOW),
}
"""In windows of a rollout."""
CALLED = {
    "D-RTRL": etpc.D_RTRL(window=1),
    "CreditRTRL, 4 directions": etpc.CreditRTRL(4, 4, window=1),
    "D-RTRL, look-back 8": etpc.D_RTRL(window=1, lookback=8),
    "D-RTRL, look-back 16": etpc.D_RTRL(window=1, lookback=16),
    "TBPTT(16, every=1)": etpc.TBPTT(16, every=1),
    "SnAp(1)": etpc.SnAp(1),
    "RTRL": etpc.RTRL(window=1),
}
"""Step by step."""


class Bits(NamedTuple):
    bits: Float[Array, " 6"]
    time: Int[Array, ""]


def begin(key: PRNGKeyArray) -> Bits:
    return Bits(jax.random.rademacher(key, (BITS,), float), jnp.int32(0))


def see(place: Bits) -> Array:
    return jnp.where(place.time == 0, place.bits, 0.0)


def act(place: Bits, action: Array) -> tuple[Bits, Array, Array]:
    last, equal = place.time == DELAY, place.bits[0] == place.bits[1]
    reward = jnp.where(last, jnp.where((action == 1) == equal, 1.0, -1.0), 0.0)
    return Bits(place.bits, place.time + 1), reward, last


WORLD = Environment(BITS, 2, DELAY + 1, begin, see, act)


class ActorCritic(eqx.Module):
    """An MLP, linear recurrent trace units, and a policy and a value that are linear."""

    encoder: eqx.nn.MLP
    cell: nn.RTU
    actor: eqx.nn.Linear
    critic: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.encoder = eqx.nn.MLP(BITS, WIDTH, WIDTH, 1, jnp.tanh, key=keys[0])
        self.cell = nn.RTU(WIDTH, UNITS, r_min=0.9, r_max=0.99, max_phase=0.5, key=keys[1])
        self.actor = nn.init(eqx.nn.Linear(2 * UNITS, 2, key=keys[2]), "zeros", keys[2])
        self.critic = nn.init(eqx.nn.Linear(2 * UNITS, 1, key=keys[3]), "zeros", keys[3])

    def init_state(self) -> Array:
        return self.cell.init_state()

    def __call__(self, x: Array, state: Array) -> tuple[tuple[Array, Array], Array]:
        h, state = self.cell(self.encoder(x), state)
        return (self.actor(h), self.critic(h)[0]), state


class Choice(NamedTuple):
    """What an agent did at a step, and what that was worth."""

    action: Array
    advantage: Array
    value: Array
    """The value that the critic should have had."""


def loss(output: tuple[Array, Array], choice: Choice) -> Array:
    """Of an advantage actor-critic, for one example at one step."""
    logits, value = output
    log_p = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(log_p) * log_p).sum()
    gain = choice.advantage * log_p[choice.action] + ENTROPY * entropy
    return 0.5 * (value - choice.value) ** 2 - gain


class Acting(NamedTuple):
    """The state of the agent, that of the environments, and in which of them an episode begins."""

    state: Array
    places: Bits
    begins: Bool[Array, " B"]


def first(model: ActorCritic, key: PRNGKeyArray) -> Acting:
    state = jnp.broadcast_to(model.init_state(), (BATCH, UNITS))
    places = jax.vmap(WORLD.begin)(jax.random.split(key, BATCH))
    return Acting(state, places, jnp.ones(BATCH, bool))


def stepped(model: ActorCritic, x: Array, begins: Array, state: Array) -> Any:
    """A step of the model alone, in a batch whose episodes may begin with it."""
    state = jnp.where(begins[:, None], model.init_state(), state)
    return jax.vmap(model)(x, state)


def rollout(model: ActorCritic, acting: Acting, key: PRNGKeyArray) -> Any:
    """Acting after 8 more steps, and what a rule learns from: inputs, where episodes begin, choices; and rewards."""

    def one(acting: Acting, key: PRNGKeyArray) -> Any:
        act_key, new_key = jax.random.split(key)
        x = jax.vmap(WORLD.see)(acting.places)
        (logits, value), state = stepped(model, x, acting.begins, acting.state)
        action = jax.random.categorical(act_key, logits)
        keys = jax.random.split(new_key, BATCH)
        places, reward, over = jax.vmap(WORLD.step)(acting.places, action, keys)
        return Acting(state, places, over), (x, acting.begins, action, value, reward, over)

    acting, steps = jax.lax.scan(one, acting, jax.random.split(key, WINDOW))
    xs, begins, action, value, reward, over = steps
    x = jax.vmap(WORLD.see)(acting.places)
    (_, last), _ = stepped(model, x, acting.begins, acting.state)
    advantage = advantages(reward, over, value, last)
    choices = Choice(action, advantage, advantage + value)
    return acting, (xs, begins, choices), (reward.sum(), over.sum())


def program_of(rule: etpc.algorithms.Algorithm) -> etpc.Program:
    return etpc.compile(ActorCritic(jax.random.key(0)), rule, inputs=jnp.zeros(BITS))


def trained(program: etpc.Program, rollouts: int, key: PRNGKeyArray) -> tuple[Any, Array]:
    """**Returns** the agent's weights, and the mean return of the last tenth of its episodes."""
    value_and_grad = program.value_and_grad(loss)
    optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(RATE))
    weights, static = eqx.partition(ActorCritic(key), eqx.is_inexact_array)

    def step(before: Any, key: PRNGKeyArray) -> Any:
        weights, opt_state, carry, acting = before
        model = eqx.combine(weights, static)
        acting, (xs, begins, choices), score = rollout(model, acting, key)
        (_, carry), grads = value_and_grad(model, xs, choices, carry, begins=begins)
        updates, opt_state = optimiser.update(grads, opt_state)
        return (eqx.apply_updates(weights, updates), opt_state, carry, acting), score

    start = (weights, optimiser.init(weights), program.init(BATCH))
    start = (*start, first(eqx.combine(weights, static), key))
    (weights, *_), (rewards, over) = jax.lax.scan(step, start, jax.random.split(key, rollouts))
    part = slice(-max(rollouts // 10, 1), None)
    return weights, rewards[part].sum() / over[part].sum()


def recorded(model: ActorCritic, key: PRNGKeyArray) -> Any:
    """What an agent that does not learn sees and does: rollouts as `rollout` gives them, one after the other."""

    def step(acting: Acting, key: PRNGKeyArray) -> Any:
        acting, data, _ = rollout(model, acting, key)
        return acting, data

    keys = jax.random.split(key, SETTLED + COMPARED)
    return jax.lax.scan(step, first(model, key), keys)[1]


def gradient(value_and_grad: Any, carry: Any, model: ActorCritic, data: Any) -> Array:
    """That of the encoder, added up over the last rollouts, as a vector."""
    total = jnp.zeros(())
    for n in range(SETTLED + COMPARED):
        xs, begins, choices = jax.tree.map(lambda a, n=n: a[n], data)
        (_, carry), grads = value_and_grad(model, xs, choices, carry, begins=begins)
        total += (n >= SETTLED) * flat(grads.encoder)
    return total


def flat(grads: Any) -> Array:
    return ravel_pytree(eqx.filter(grads, eqx.is_inexact_array))[0]


def sequence(data: Any) -> Any:
    """Rollouts as one sequence, [T, B, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), data)


def by_bptt(model: ActorCritic, data: Any, counts: Bool[Array, " T"]) -> Array:
    """The gradient of the encoder by reverse mode through all steps of a sequence, of the losses that count."""
    xs, begins, choices = data

    def total(encoder: Any) -> Array:
        whole = eqx.tree_at(lambda m: m.encoder, model, encoder)

        def step(state: Array, data: Any) -> Any:
            x, begins, choice, counts = data
            output, state = stepped(whole, x, begins, state)
            return state, counts * jax.vmap(loss)(output, choice).sum()

        state = jnp.broadcast_to(whole.init_state(), (BATCH, UNITS))
        return jax.lax.scan(step, state, (xs, begins, choices, counts))[1].sum()

    return flat(eqx.filter_grad(total)(model.encoder))


def by_calls(program: etpc.Program, model: ActorCritic, data: Any) -> tuple[Array, float]:
    """That of the last step of the first episode, and how many milliseconds a step takes."""
    xs, _, choices = data

    @eqx.filter_jit
    def call(model: ActorCritic, step: tuple[Array, Choice], carry: etpc.Carry) -> Any:
        x, choice = step
        outputs, pullback, carry = eqx.filter_vjp(
            lambda model: program(model, x, carry), model, has_aux=True
        )
        credit = jax.grad(lambda outputs: jax.vmap(loss)(outputs, choice).sum())(outputs)
        return flat(pullback(credit)[0].encoder), carry

    carry, found = program.init(BATCH), jnp.zeros(())
    steps = [jax.tree.map(lambda a, t=t: a[t], (xs, choices)) for t in range(DELAY + 1)]
    for step in steps:
        found, carry = call(model, step, carry)
    return found, best(lambda: call(model, steps[-1], carry))


def best(run: Any) -> float:
    """The milliseconds of the fastest of many runs."""
    times = []
    for _ in range(3 if FAST else 200):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def cosine(a: Array, b: Array) -> str:
    return f"{a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)):.2f}"


def main() -> None:
    seeds = [jax.random.key(seed) for seed in range(1 if FAST else 3)]
    exact = program_of(etpc.RTRL(window=WINDOW))
    learn = jax.jit(lambda key: trained(exact, LEARNING, key)[0])
    static = eqx.partition(ActorCritic(seeds[0]), eqx.is_inexact_array)[1]
    models = [eqx.combine(learn(key), static) for key in seeds]
    data = [eqx.filter_jit(recorded)(model, key) for model, key in zip(models, seeds, strict=True)]
    learnt = [sequence(a) for a in data]
    exactly = eqx.filter_jit(by_bptt)

    print("| rollouts of 8 | return, last tenth | cosine, encoder | ms | carry KiB |")
    print("|---|---:|---:|---:|---:|")
    late = jnp.arange((SETTLED + COMPARED) * WINDOW) >= SETTLED * WINDOW
    wanted = [exactly(model, seen, late) for model, seen in zip(models, learnt, strict=True)]
    for name, rule in [*RULES.items()][:PARTS]:
        program = program_of(rule)
        value_and_grad, carry = program.value_and_grad(loss), program.init(BATCH)
        found = [
            gradient(value_and_grad, carry, model, seen)
            for model, seen in zip(models, data, strict=True)
        ]
        learn = jax.jit(lambda key, program=program: trained(program, ROLLOUTS, key)[1])
        scores = ", ".join(f"{learn(key):.2f}" for key in seeds)
        xs, begins, choices = jax.tree.map(lambda a: a[0], data[0])
        once = functools.partial(value_and_grad, models[0], xs, choices, carry, begins=begins)
        row(name, f"{scores} | ", found, wanted, best(once) / WINDOW, program)

    print("\n| called step by step | cosine, encoder | ms | carry KiB |\n|---|---:|---:|---:|")
    episode = jax.tree.map(lambda a: a[: DELAY + 1], learnt)
    last = jnp.arange(DELAY + 1) == DELAY
    wanted = [exactly(model, seen, last) for model, seen in zip(models, episode, strict=True)]
    for name, rule in [*CALLED.items()][:PARTS]:
        program = program_of(rule)
        each = [by_calls(program, *given) for given in zip(models, episode, strict=True)]
        row(name, "", [a for a, _ in each], wanted, min(ms for _, ms in each), program)


def row(name: str, scores: str, found: Any, wanted: Any, ms: float, program: etpc.Program) -> None:
    cosines = ", ".join(cosine(a, b) for a, b in zip(found, wanted, strict=True))
    size = program.memory(BATCH).total / 1024
    print(f"| {name} | {scores}{cosines} | {ms:.3f} | {size:.0f} |", flush=True)


if __name__ == "__main__":
    main()
