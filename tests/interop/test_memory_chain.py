"""The environment of `examples/streaming_rl.py` is gymnax's MemoryChain, and its gradients are those of BPTT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from examples import streaming_rl as rl


@pytest.mark.third_party
@pytest.mark.parametrize("length", [2, 5])
def test_it_is_that_of_gymnax(length):
    pytest.importorskip("gymnax")
    from gymnax.environments.bsuite.memory_chain import MemoryChain

    env = MemoryChain()
    params = env.default_params.replace(memory_length=length)
    for seed in range(6):
        keys = jax.random.split(jax.random.key(seed), length + 2)
        seen, state = env.reset_env(keys[0], params)
        ours = rl.Chain(state.context[0] == 1, jnp.int32(0))
        for t, key in enumerate(keys[1:]):
            np.testing.assert_allclose(rl.see(ours, length), seen, atol=1e-6)
            action = jax.random.bernoulli(key).astype(int)
            _, state, reward, over, _ = env.step_env(key, state, action, params)
            seen = env.get_obs(state, params)
            our_reward, our_end, ours = rl.act(ours, action, length)
            assert (float(our_reward), bool(our_end)) == (float(reward), bool(over))
            assert bool(our_end) == (t == length)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [etpc.RTRL(), etpc.TBPTT(6, every=1)], ids=str)
def test_the_gradient_of_a_call_is_that_through_the_past(rule):
    """The gradient of one output, from a call at the last of six steps, is that through all of them."""
    model = rl.ActorCritic(rl.gru, jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (6, 3))
    program = etpc.compile(model, rule, inputs=xs[0])
    carry = program.init()
    for x in xs[:-1]:
        _, carry = program(model, x, carry)
    gradient = jax.grad(lambda m: program(m, xs[-1], carry)[0][1])(model)

    def through_time(model):
        state = model.init_state()
        for x in xs:
            (_, value), state = model(x, state)
        return value

    wanted = jax.grad(through_time)(model)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert float(jnp.abs(wanted.cell.weight_hh).max()) > 1e-4
