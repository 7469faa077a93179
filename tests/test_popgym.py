"""The environments of `examples.rl.popgym` against episodes that were recorded from POPGym 1.0.7 (Gymnasium 1.4.0).

An episode has what was dealt, the actions, the rewards and what was seen: of a flattened observation of zeros and ones,
where the ones are.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.rl import popgym
from examples.rl.environments import Cart

EPISODES = json.loads((Path(__file__).parent / "popgym.json").read_text())


@pytest.fixture(autouse=True)
def as_a_user():
    """Without the check of ranks that tests run with."""
    with jax.numpy_rank_promotion("allow"):
        yield


def placed(state, dealt):
    """A first state with what was dealt in the recorded episode."""
    if "place" not in dealt:
        return state._replace(**{key: jnp.array(value) for key, value in dealt.items()})
    noise = state.noise
    if "noise" in dealt:
        noise = noise.at[: len(dealt["noise"])].set(jnp.array(dealt["noise"]))
    return popgym.Noisy(Cart(jnp.array(dealt["place"]), state.cart.time), noise)


def lived(env, state, actions):
    """What is seen, the rewards, and whether the episode is over."""

    def step(state, action):
        state, reward, over = env.act(state, action)
        return state, (env.see(state), reward, over)

    _, (seen, rewards, over) = jax.lax.scan(step, state, jnp.array(actions))
    return np.concatenate([env.see(state)[None], seen]), rewards, over


@pytest.mark.parametrize("name", popgym.TASKS)
def test_an_episode_is_that_of_the_package(name):
    env = popgym.TASKS[name]
    for episode in EPISODES[name]:
        start = placed(env.begin(jax.random.key(0)), episode["dealt"])
        seen, rewards, over = lived(env, start, episode["actions"])
        np.testing.assert_allclose(rewards, episode["rewards"], rtol=1e-6, atol=1e-9)
        assert np.flatnonzero(over).tolist() == [len(over) - 1]
        assert len(over) <= env.steps
        assert seen.shape == (len(over) + 1, env.inputs)
        if "CartPole" in name:
            np.testing.assert_allclose(seen, episode["seen"], rtol=1e-4, atol=1e-5)
        else:
            assert {*np.unique(seen)} <= {0, 1}
            assert [np.flatnonzero(x).tolist() for x in seen] == episode["seen"]


@pytest.mark.parametrize("name", popgym.TASKS)
def test_episodes_differ(name):
    """By what is dealt, which is drawn anew, and by the actions."""
    env = popgym.TASKS[name]
    actions = np.random.default_rng(0).integers(env.actions, size=env.steps)

    def told(seed, actions):
        seen, rewards, _ = lived(env, env.begin(jax.random.key(seed)), actions)
        return np.concatenate([seen[1:], rewards[:, None]], 1)

    assert not np.array_equal(told(0, actions), told(1, actions))
    assert not np.array_equal(told(0, actions), told(0, (actions + 1) % env.actions))
