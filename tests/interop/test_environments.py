"""The environments of `examples/rl` are those of gymnax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.rl.environments import Cart, Chain, cart_pole, memory_chain

pytestmark = pytest.mark.third_party


@pytest.mark.parametrize("length", [2, 5])
def test_memory_chain(length):
    pytest.importorskip("gymnax")
    from gymnax.environments.bsuite.memory_chain import MemoryChain

    theirs, env = MemoryChain(), memory_chain(length)
    params = theirs.default_params.replace(memory_length=length)
    for seed in range(6):
        keys = jax.random.split(jax.random.key(seed), length + 2)
        seen, state = theirs.reset_env(keys[0], params)
        ours = Chain(state.context[0] == 1, jnp.int32(0))
        for t, key in enumerate(keys[1:]):
            np.testing.assert_allclose(env.see(ours), seen, atol=1e-6)
            action = jax.random.bernoulli(key).astype(int)
            _, state, reward, over, _ = theirs.step_env(key, state, action, params)
            seen = theirs.get_obs(state, params)
            ours, our_reward, our_end = env.act(ours, action)
            assert (float(our_reward), bool(our_end)) == (float(reward), bool(over))
            assert bool(our_end) == (t == length)


@pytest.mark.parametrize("time", [0, 480])
def test_cart_pole(time):
    """From the begin of an episode until the pole falls, and near the end of the longest."""
    pytest.importorskip("gymnax")
    from gymnax.environments.classic_control.cartpole import CartPole

    theirs, env = CartPole(), cart_pole((0, 1, 2, 3))
    params, ends = theirs.default_params, 0
    for seed in range(4):
        key = jax.random.key(seed)
        _, state = theirs.reset_env(key, params)
        state = state.replace(time=time)
        ours = Cart(
            jnp.stack([state.x, state.x_dot, state.theta, state.theta_dot]), jnp.int32(time)
        )
        for t in range(60):
            # the pole stays up for the longest episode, and falls in the other
            action = int(ours.place[2] + 0.5 * ours.place[3] > 0) if time else t % 3 == 0
            seen, state, reward, fallen, _ = theirs.step_env(key, state, int(action), params)
            over = bool(fallen) or bool(theirs.is_truncated(state, params))
            ours, our_reward, our_end = env.act(ours, jnp.int32(action))
            np.testing.assert_allclose(env.see(ours), seen, rtol=1e-5, atol=1e-6)
            assert float(our_reward) == float(reward)
            assert bool(our_end) == over
            if over:
                ends += 1
                assert not time or int(ours.time) == 500
                break
    assert ends == 4


def test_what_is_hidden_of_the_pole():
    place = jnp.arange(4.0)
    assert cart_pole().see(Cart(place, jnp.int32(0))).tolist() == [0, 2]
