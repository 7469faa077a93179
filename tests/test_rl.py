"""The examples of reinforcement learning: their parts against NumPy, and their gradients against BPTT."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from examples.published import tmaze
from examples.rl import chains, conditioning, encoder, popgym, ppo, runs, streaming
from examples.rl.environments import evaluate, memory_chain
from examples.rl.runs import Arm

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def as_a_user():
    """Without the check of ranks that tests run with."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_advantages():
    """The sum of discounted errors of the value up to the end of the episode, each by itself."""
    rng, T, B = np.random.default_rng(1), 7, 3
    rewards, values, last = rng.normal(size=(T, B)), rng.normal(size=(T, B)), rng.normal(size=B)
    over = rng.random((T, B)) < 0.3
    found = ppo.advantages(*map(jnp.asarray, (rewards, over, values, last)))
    assert over.any()
    after = np.concatenate([values[1:], last[None]])
    for b in range(B):
        for t in range(T):
            expected, weight = 0.0, 1.0
            for k in range(t, T):
                error = rewards[k, b] + ppo.GAMMA * after[k, b] * ~over[k, b] - values[k, b]
                expected += weight * error
                weight *= ppo.GAMMA * ppo.LAMBDA
                if over[k, b]:
                    break
            assert found[t, b] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", runs.MEASURES)
def test_the_page_has_the_tables_of_the_runs(name):
    page = (DOCS / "rl.md").read_text()
    assert runs.table(DOCS / "rl" / f"{name}.json") in page
    assert f"(rl/{name}.svg)" in page


def test_the_page_has_the_tables_of_the_chains_and_of_popgym():
    page, records = (
        (DOCS / "rl.md").read_text(),
        json.loads((DOCS / "rl" / "chains.json").read_text()),
    )
    assert chains.table(records) in page
    assert popgym.table(DOCS / "rl" / "popgym.json") in page


@pytest.mark.slow
def test_each_seed_of_a_chain_is_its_own():
    """Also where the length and the steps are others than those of the first run."""
    trained = lambda *about: chains.trained(*about)["curves"]
    both = trained(3, "GRU, TBPTT(1)", 400, range(2))
    assert both[0] != both[1]
    assert trained(3, "GRU, TBPTT(1)", 400, range(1, 2)) == both[1:]
    assert trained(4, "GRU, TBPTT(1)", 600, range(2)) != both


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 10])
def test_the_maze(length):
    """Of 16 agents, half turn to the side of the sign at the junction, a quarter to the other, and a quarter wait."""
    keys = jax.random.split(jax.random.key(0), 2 * length)
    maze = tmaze.begin(jax.random.key(1))
    goal, total, right_ones, done_at = maze.goal, np.zeros(16), np.zeros(16, bool), np.full(16, -1)
    assert {*goal.tolist()} == {0, 1}
    turn = jnp.where(jnp.arange(16) < 8, 1 + goal, jnp.where(jnp.arange(16) < 12, 2 - goal, 0))
    for t, key in enumerate(keys):
        seen = tmaze.see(maze, length).argmax(1)
        going = done_at < 0
        kinds = goal if t == 0 else np.full(16, 2 if t < length else 3)
        assert np.array_equal(seen[going], kinds[going])
        action = turn if t == length else jnp.zeros(16, int)
        reward, done, right, maze = tmaze.act(maze, action, length, key)
        total += np.where(going, reward, 0)
        done_at[going & np.asarray(done)] = t
        right_ones |= going & np.asarray(right)
        assert not maze.time[done].any()
        assert not maze.place[done].any()
    assert np.array_equal(right_ones, np.arange(16) < 8)
    assert np.array_equal(done_at, np.where(np.arange(16) < 12, length, 2 * length - 1))
    last = np.where(np.arange(16) < 8, 4.0, np.where(np.arange(16) < 12, -0.4, -0.1))
    np.testing.assert_allclose(total, -0.1 * done_at + last, rtol=1e-6)


def test_the_loss_of_the_maze_has_the_gradient_of_the_source():
    logits, value, action, target = jnp.array([0.3, -0.2, 0.7]), 0.4, 2, 1.5

    def source(output):
        logits, value = output
        td, log_p = target - value, jax.nn.log_softmax(logits)
        entropy = -(jnp.exp(log_p) * log_p).sum()
        return -jax.lax.stop_gradient(td) * log_p[action] + 0.5 * td**2 - tmaze.ENTROPY * entropy

    found = jax.grad(lambda out: tmaze.loss(out, action, target - out[1]))((logits, value))
    for a, b in zip(found, jax.grad(source)((logits, value)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def spells(on):
    """When a stimulus begins, and for how many steps it is on."""
    changes = np.diff(np.concatenate([[0], on, [0]]))
    begins, ends = np.flatnonzero(changes > 0), np.flatnonzero(changes < 0)
    return begins[:-1], (ends - begins)[:-1]  # the last one may have been cut


@pytest.mark.parametrize("isi", [4, 10])
def test_trials_of_conditioning(isi):
    puff, end = conditioning.begin(isi, jax.random.key(1))
    trial = conditioning.Trial(jnp.int32(0), puff, end, jnp.zeros(10, int))
    step = lambda trial, key: (conditioning.goes_on(isi, trial, key), conditioning.see(trial))
    seen = np.asarray(jax.lax.scan(step, trial, jax.random.split(jax.random.key(0), 8000))[1])
    (puffs, of_puffs), (tones, of_tones) = spells(seen[:, 0]), spells(seen[:, 1])
    trials = min(len(puffs), len(tones))
    assert trials > 60
    assert {*of_puffs} == {2}
    assert {*of_tones} == {4}
    assert {*(puffs[:trials] - tones[:trials])} == set(range(isi - isi // 3, isi + isi // 3 + 1))
    pauses = tones[1:trials] - puffs[: trials - 1]
    assert pauses.min() in range(80, 85)
    assert pauses.max() in range(116, 121)
    for n, probability in enumerate(1 / np.arange(10, 110, 10)):
        begins, lasts = spells(seen[:, 2 + n])
        assert {*lasts} == {4}
        # a distractor is off for at least a step, and then begins with this probability
        assert len(begins) == pytest.approx(8000 / (4 + 1 / probability), rel=0.25)


@pytest.mark.slow
def test_evaluation():
    """A policy that remembers is always right, and half of the time if its memory is erased."""

    def policy(x, bit):
        bit = jnp.where(x[2] == 0, bit, x[2])
        return jnp.stack([-bit, bit]), bit

    seen = etpc.optim.RunningStatistics((3,))
    score = lambda **how: evaluate(
        policy, jnp.zeros(()), memory_chain(3), seen, jax.random.key(0), **how
    )
    assert score() == 1.0
    assert abs(score(remembers=False)) < 0.4


def value_of(model, xs):
    """The value and the logarithm of the policy after a sequence, by the model alone."""
    state = model.init_state()
    for x in xs:
        (logits, value), state = model(x, state)
    return value, jax.nn.log_softmax(logits)


@pytest.mark.slow
def test_the_traces_of_a_streaming_agent_are_those_of_bptt(monkeypatch):
    """With weights that stay, the trace of the gradient is a sum of gradients through all of the past."""
    still = lambda **_: optax.GradientTransformationExtraArgs(
        lambda _: optax.EmptyState(),
        lambda z, state, parameters=None, **_: (jax.tree.map(jnp.zeros_like, z), state),
    )
    monkeypatch.setattr(etpc.optim, "obgd", still)
    monkeypatch.setattr(streaming, "ENTROPY", 0.0)
    env, steps = memory_chain(6), 12
    agent, step = streaming.learner(env, streaming.ARMS["D-RTRL"], jax.random.key(0))
    # the heads are zero at first
    weights = jax.tree.map(
        lambda w: w + 0.1 * jnp.cos(jnp.arange(w.size)).reshape(w.shape), agent.model
    )
    agent = agent._replace(model=weights)
    step, xs, actions, fresh = jax.jit(step), [], [], []
    for key in jax.random.split(jax.random.key(1), steps):
        xs.append(agent.seen.normalise(env.see(agent.place)))
        fresh.append(bool(agent.fresh))
        if fresh[-1]:
            begin = len(xs) - 1
        _, log_p = value_of(weights, xs[begin:])
        actions.append(int(jax.random.categorical(jax.random.split(key)[0], log_p)))
        agent, _ = step(agent, key)
    assert fresh == [t % 7 == 0 for t in range(steps)]
    first, total = 7, jax.tree.map(jnp.zeros_like, weights)
    for t in range(first, steps):

        def grows(model, t=t):
            value, log_p = value_of(model, xs[first : t + 1])
            return value + log_p[actions[t]]

        grads = jax.grad(grows)(weights)
        decayed = jax.tree.map(lambda g: streaming.GAMMA * streaming.LAMBDA * g, total)
        total = jax.tree.map(jnp.add, decayed, grads)
    trace = agent.opt_state[0].trace
    for found, expected in zip(jax.tree.leaves(trace), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    assert float(jnp.abs(total.actor.cell.W_re).max()) > 1e-4


@pytest.mark.slow
def test_ppo_acts_with_the_state_that_it_learns_with():
    agent, rollout = ppo.learner(memory_chain(3), ppo.ARMS["D-RTRL"], jax.random.key(0))
    rollout = jax.jit(rollout)
    for key in jax.random.split(jax.random.key(1), 2):
        agent, _ = rollout(agent, key)
        (state,) = jax.tree.leaves(agent.carry.state)
        np.testing.assert_allclose(state, agent.state, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_gradient_of_an_encoder_is_compared_with_that_of_bptt(monkeypatch):
    """SnAp(1) is exact there, in rollouts in which episodes end and in single calls."""
    monkeypatch.setattr(encoder, "SETTLED", 1)
    monkeypatch.setattr(encoder, "COMPARED", 2)
    model = encoder.ActorCritic(jax.random.key(0))
    heads = lambda m: (m.actor.weight, m.critic.weight)  # zero at first
    model = eqx.tree_at(
        heads, model, [jnp.cos(jnp.arange(w.size)).reshape(w.shape) for w in heads(model)]
    )
    data = eqx.filter_jit(encoder.recorded)(model, jax.random.key(1))
    seen, program = encoder.sequence(data), encoder.program_of(etpc.SnAp(1))
    assert seen[1][encoder.DELAY + 1].all()
    exactly = eqx.filter_jit(encoder.by_bptt)
    rollouts = program.value_and_grad(encoder.loss), program.init(encoder.BATCH)
    found = encoder.gradient(*rollouts, model, data)
    wanted = exactly(model, seen, jnp.arange(24) >= 8) / (encoder.BATCH * encoder.WINDOW)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    episode = jax.tree.map(lambda a: a[: encoder.DELAY + 1], seen)
    found, _ = encoder.by_calls(program, model, episode)
    wanted = exactly(model, episode, jnp.arange(encoder.DELAY + 1) == encoder.DELAY)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    assert jnp.abs(wanted).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "world"), [(streaming, memory_chain(3)), (ppo, memory_chain(3)), (conditioning, 4)]
)
def test_a_stopped_run_goes_on(module, world, tmp_path):
    begin, step = module.learner(world, Arm(etpc.D_RTRL()), jax.random.key(0))
    step, keys = jax.jit(step), jax.random.split(jax.random.key(1), 8)
    agent = begin
    for key in keys[:4]:
        agent, _ = step(agent, key)
    etpc.save(tmp_path / "agent.etpc", agent)
    resumed = etpc.load(tmp_path / "agent.etpc", like=begin)
    for key in keys[4:]:
        (agent, _), (resumed, _) = step(agent, key), step(resumed, key)
    for one, other in zip(jax.tree.leaves(agent), jax.tree.leaves(resumed), strict=True):
        assert jnp.array_equal(one, other)
