"""Tasks of POPGym by agents that learn while they act: one stream, an update at each step, no replay.

    python -m examples.rl.popgym --json docs/rl/popgym.json    # runs what the file lacks, and prints the table
    python -m examples.rl.popgym --tasks RepeatFirst --arms "RTU, exact;feed-forward" --seeds 5

The environments are those of POPGym at its level "easy": the same cards give the same observations and rewards, which
a test compares with episodes recorded from the package. Observations are flattened as `gymnasium.spaces.flatten` does,
with the previous action where POPGym says that it is needed. Returns are POPGym's, which scales rewards so that a
return is at most 1 and, but for the poles, at least -1. Not here: tasks with continuous actions (pendulums), mazes,
Minesweeper and Battleship.

The agents are those of `examples.rl.streaming`, 32 features from 16 recurrent trace units (RTU) or from a GRU, as in
`examples.rl.chains`. A cell of the table has the mean return of the last tenth of a run, and its range over the seeds.

Source: Morad, Kortvelesy, Bettini, Liwicki and Prorok, "POPGym: benchmarking partially observable reinforcement
learning", ICLR 2023, arXiv 2303.01859, version 1.0.7 of the package.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

import etpc

from . import streaming
from .chains import GRU
from .environments import Cart, Environment, cart_pole
from .runs import ARMS, BLOCKS, FAST, WINDOW, Arm, Task, main
from .streaming import rtu

SUITS, RANKS, COLORS, DECK = 4, 13, 2, 52


def dealt(key: PRNGKeyArray) -> Int[Array, " 52"]:
    """A shuffled deck in the order of dealing. A card is `4 rank + suit`; it is black where that is even."""
    return jax.random.permutation(key, DECK)


def scored(right: Array, scale: float) -> Array:
    return jnp.where(right, scale, -scale)


# --- one deck ---


class Cards(NamedTuple):
    cards: Int[Array, " 52"]
    time: Int[Array, ""]


def begin(key: PRNGKeyArray) -> Cards:
    return Cards(dealt(key), jnp.int32(0))


def suit(state: Cards) -> Array:
    return jax.nn.one_hot(state.cards[state.time] % SUITS, SUITS)


def repeat_first() -> Environment:
    """At each step, which suit did the first card have?"""

    def act(state: Cards, action: Array) -> tuple[Cards, Array, Array]:
        cards, time = state
        reward = scored(action == cards[0] % SUITS, 1 / (DECK - 1))
        return Cards(cards, time + 1), reward, time == DECK - 2

    return Environment(SUITS, SUITS, DECK - 1, begin, suit, act)


def repeat_previous(k: int = 4) -> Environment:
    """At each step, which suit did the card `k - 1` steps before have?"""

    def act(state: Cards, action: Array) -> tuple[Cards, Array, Array]:
        cards, time = state
        reward = scored(action == cards[time - (k - 1)] % SUITS, 1 / (DECK - k))
        reward = jnp.where(time >= k - 1, reward, 0.0)
        return Cards(cards, time + 1), reward, time == DECK - 2

    return Environment(SUITS, SUITS, DECK - 1, begin, suit, act)


def autoencode() -> Environment:
    """All cards are shown; then their suits are asked for, the last one first."""

    def see(state: Cards) -> Array:
        watch = (state.time < DECK - 1).astype(int)
        shown = jnp.where(state.time < DECK, state.cards[state.time] % SUITS, 0)
        return jnp.concatenate([jax.nn.one_hot(watch, 2), jax.nn.one_hot(shown, SUITS)])

    def act(state: Cards, action: Array) -> tuple[Cards, Array, Array]:
        cards, time = state
        reward = scored(action == cards[2 * (DECK - 1) - time] % SUITS, 1 / DECK)
        reward = jnp.where(time >= DECK - 1, reward, 0.0)
        return Cards(cards, time + 1), reward, time == 2 * (DECK - 1)

    return Environment(2 + SUITS, SUITS, 2 * DECK - 1, begin, see, act)


def higher_lower() -> Environment:
    """Is the rank of the next card higher (action 0) or lower than that of this one? Equal ranks count for nothing."""

    def see(state: Cards) -> Array:
        return jax.nn.one_hot(state.cards[state.time] // SUITS, RANKS)

    def act(state: Cards, action: Array) -> tuple[Cards, Array, Array]:
        cards, time = state
        change = cards[time + 1] // SUITS - cards[time] // SUITS
        reward = jnp.where(change == 0, 0.0, scored((change > 0) == (action == 0), 1 / DECK))
        return Cards(cards, time + 1), reward, time == DECK - 2

    return Environment(RANKS, 2, DECK - 1, begin, see, act)


# --- two decks ---


class Decks(NamedTuple):
    values: Int[Array, " 52"]
    queries: Int[Array, " 52"]
    time: Int[Array, ""]


def count_recall() -> Environment:
    """How many cards of the colour of the query were dealt so far?"""

    def begin(key: PRNGKeyArray) -> Decks:
        value_key, query_key = jax.random.split(key)
        return Decks(dealt(value_key), dealt(query_key), jnp.int32(0))

    def see(state: Decks) -> Array:
        shown = jnp.stack([state.values[state.time], state.queries[state.time]]) % COLORS
        return jax.nn.one_hot(shown, COLORS).ravel()

    def act(state: Decks, action: Array) -> tuple[Decks, Array, Array]:
        values, queries, time = state
        same = values % COLORS == queries[time] % COLORS
        count = (same & (jnp.arange(DECK) <= time)).sum()
        reward = scored(action == count, 1 / (DECK - 1))
        return Decks(values, queries, time + 1), reward, time == DECK - 2

    return Environment(2 * COLORS, DECK // COLORS + 1, DECK - 1, begin, see, act)


# --- cards face down ---


class Table(NamedTuple):
    cards: Int[Array, " 52"]
    up: Bool[Array, " 52"]
    """Those that were matched."""
    shown: Bool[Array, " 52"]
    """Those that are seen, with the one or two in play."""
    held: Int[Array, ""]
    """The first of a pair, or -1."""
    action: Int[Array, ""]
    """The one before."""
    time: Int[Array, ""]


def concentration() -> Environment:
    """52 cards lie face down. Two are turned over, and stay so where both have one colour."""
    steps = math.ceil(2 * DECK - DECK / (2 * DECK - 1))
    success, failure = 1 / (DECK // 2), -1 / steps

    def begin(key: PRNGKeyArray) -> Table:
        none = jnp.zeros(DECK, bool)
        return Table(dealt(key), none, none, jnp.int32(-1), jnp.int32(0), jnp.int32(0))

    def see(state: Table) -> Array:
        faces = jnp.where(state.shown, state.cards % COLORS, COLORS)
        previous = jax.nn.one_hot(state.action, DECK)
        return jnp.concatenate([jax.nn.one_hot(faces, COLORS + 1).ravel(), previous])

    def act(state: Table, action: Array) -> tuple[Table, Array, Array]:
        second = state.held >= 0
        turned = jnp.arange(DECK) == action
        turned |= second & (jnp.arange(DECK) == state.held)
        again = (turned & state.up).any()
        alike = state.cards[action] % COLORS == state.cards[state.held] % COLORS
        match = second & ~again & alike & (action != state.held)
        up = state.up | (turned & match)
        ends = second | again
        lost = jnp.where(ends, failure * (1 + second), 0.0)
        held = jnp.where(ends, -1, action).astype(jnp.int32)
        over = up.all() | (state.time == steps - 1)
        after = Table(
            state.cards,
            up,
            state.up | turned,
            held,
            action.astype(jnp.int32),
            state.time + 1,
        )
        return after, jnp.where(match, success, lost), over

    return Environment((COLORS + 1) * DECK + DECK, DECK, steps, begin, see, act)


# --- a bandit ---


class Bandit(NamedTuple):
    chances: Float[Array, " 10"]
    """Of each arm, to pay."""
    draws: Float[Array, " 200"]
    """In [0, 1), one for each step: an arm pays where its chance is larger."""
    paid: Int[Array, ""]
    action: Int[Array, ""]
    time: Int[Array, ""]


def multiarmed_bandit() -> Environment:
    """Ten arms, each of which pays with a chance of its own in this episode."""
    arms, steps = 10, 200

    def begin(key: PRNGKeyArray) -> Bandit:
        chance_key, draw_key = jax.random.split(key)
        chances, draws = (
            jax.random.uniform(chance_key, (arms,)),
            jax.random.uniform(draw_key, (steps,)),
        )
        return Bandit(chances, draws, jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def see(state: Bandit) -> Array:
        paid, previous = jax.nn.one_hot(state.paid, 2), jax.nn.one_hot(state.action, arms)
        return jnp.concatenate([paid, previous])

    def act(state: Bandit, action: Array) -> tuple[Bandit, Array, Array]:
        chances, draws, _, _, time = state
        paid = draws[time] < chances[action]
        told = paid.astype(jnp.int32), action.astype(jnp.int32)
        after = Bandit(chances, draws, *told, time + 1)
        return after, scored(paid, 1 / steps), time == steps - 1

    return Environment(2 + arms, arms, steps, begin, see, act)


# --- poles ---


class Noisy(NamedTuple):
    cart: Cart
    noise: Float[Array, " 201 2"]
    """Of the standard normal distribution, for each step."""


def position_only_cart_pole(sigma: float = 0.0) -> Environment:
    """A pole on a cart, of which position and angle are seen, with noise of deviation `sigma`; 200 steps at most."""
    pole, steps = cart_pole((0, 2)), 200
    ends = jnp.array([2 * 2.4, 2 * 12 * jnp.pi / 180])

    def begin(key: PRNGKeyArray) -> Noisy:
        cart_key, noise_key = jax.random.split(key)
        return Noisy(pole.begin(cart_key), jax.random.normal(noise_key, (steps + 1, 2)))

    def see(state: Noisy) -> Array:
        seen = pole.see(state.cart)
        if not sigma:
            return seen
        return jnp.clip(seen + sigma * state.noise[state.cart.time], -ends, ends)

    def act(state: Noisy, action: Array) -> tuple[Noisy, Array, Array]:
        cart, reward, fell = pole.act(state.cart, action)
        return Noisy(cart, state.noise), reward / steps, fell | (cart.time >= steps)

    return Environment(2, 2, steps, begin, see, act)


# --- runs ---

TASKS = {
    "RepeatFirst": repeat_first(),
    "RepeatPrevious": repeat_previous(),
    "Autoencode": autoencode(),
    "CountRecall": count_recall(),
    "HigherLower": higher_lower(),
    "Concentration": concentration(),
    "MultiarmedBandit": multiarmed_bandit(),
    "PositionOnlyCartPole": position_only_cart_pole(),
    "NoisyPositionOnlyCartPole": position_only_cart_pole(0.1),
}
STEPS = 100_000
AGENTS: dict[str, tuple[Any, Arm]] = {
    "RTU, exact": (rtu, Arm(etpc.D_RTRL(window=1))),
    "RTU, TBPTT(1)": (rtu, Arm(etpc.TBPTT(1))),
    f"RTU, TBPTT({WINDOW})": (rtu, Arm(etpc.TBPTT(WINDOW, every=1))),
    "GRU, TBPTT(1)": (GRU, Arm(etpc.TBPTT(1))),
    "feed-forward": (rtu, ARMS["feed-forward"]),
}


def life(
    env: Environment, agent: tuple[Any, Arm], steps: int, key: PRNGKeyArray
) -> tuple[Array, Array]:
    """That of `examples.rl.streaming`, with the cell of the agent."""
    cell, arm = agent
    return streaming.life(env, arm, steps, key, cell)


def table(path: Path) -> str:
    """A file in Markdown: a row for each task, a column for each agent."""
    rows = {(row["task"], row["arm"]): row for row in json.loads(path.read_text())}

    def cell(task: str, agent: str) -> str:
        if (task, agent) not in rows:
            return "-"
        last = np.array(rows[task, agent]["curves"])[:, -BLOCKS // 10 :].mean(1)
        return f"{last.mean():.2f} ({last.min():.2f} to {last.max():.2f})"

    lines = [["task", *AGENTS], ["---", *["---"] * len(AGENTS)]]
    lines += [[task, *(cell(task, agent) for agent in AGENTS)] for task in TASKS]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    tasks = {name: Task(env, STEPS) for name, env in TASKS.items()}
    agents = {name: AGENTS[name] for name in [*AGENTS][:: 4 if FAST else 1]}
    main("POPGym, return of an episode", life, tasks, agents, table, seeds=3)
