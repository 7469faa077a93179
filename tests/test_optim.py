"""Optax transformations against sums by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc.optim import RewardScale, RunningStatistics, obgd, trace_of_gradient
from tests.test_errors import unchecked
from tests.test_online import PLAIN, D, arrays, close, data, loss, program_of

T, DECAY = 6, 0.6
REWARDS = np.random.default_rng(5).normal(size=T)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, 1])
def test_late_rewards_of_one_stream(batch):
    """`sum_t r_t sum_{s <= t} decay^(t - s) g_s`, while the weights stay."""
    (xs, targets), program = data(T, batch), program_of(PLAIN, D)
    optimizer = optax.chain(trace_of_gradient(DECAY), optax.scale(2.0))
    run = program.value_and_grad(loss, "sum")
    carry, updates = program.init(batch), []
    state = optimizer.init(eqx.filter(PLAIN, eqx.is_inexact_array))
    for t in range(T):
        (_, carry), grads = run(PLAIN, xs[t : t + 1], targets[t : t + 1], carry)
        update, state = jax.jit(optimizer.update)(grads, state, reward=REWARDS[t])
        updates.append(arrays(update))
    each, carry, parameters = [], program.init(), eqx.filter(PLAIN, eqx.is_inexact_array)
    for x, target in zip(xs.reshape(T, -1), targets.reshape(T, -1), strict=True):

        def one(parameters, x=x, target=target, carry=carry):
            y, after = program(eqx.combine(parameters, PLAIN), x, carry)
            return loss(y, target), after

        grads, carry = jax.grad(one, has_aux=True)(parameters)
        each.append(arrays(grads))
    expected = [
        2 * sum(REWARDS[t] * DECAY ** (t - s) * g[s] for t in range(T) for s in range(t + 1))
        for g in zip(*each, strict=True)
    ]
    assert min(np.abs(e).max() for e in expected) > 1e-2
    close([sum(u) for u in zip(*updates, strict=True)], expected, 1e-10)


def test_without_a_reward_it_is_the_trace_itself_of_which_a_reset_leaves_nothing():
    """Not even what is not finite."""
    optimizer, gradients = trace_of_gradient(DECAY), np.random.default_rng(0).normal(size=(T, 3))
    gradients[1] = np.nan, np.inf, 1.0
    state, trace = optimizer.init({"w": jnp.zeros(3), "none": None}), np.zeros(3)
    for t, g in enumerate(gradients):
        reset = {"reset": t in (2, 4)} if t else {}
        grads = {"w": jnp.asarray(g), "none": None}
        update, state = jax.jit(optimizer.update)(grads, state, **reset)
        trace = g if t in (2, 4) else DECAY * trace + g
        np.testing.assert_allclose(update["w"], trace, rtol=1e-12)


def obgd_in_numpy(gradients, errors, decay, step_size, kappa):
    """Algorithm 3 of Elsayed et al., with the trace, for parameters as one vector: the sum of all steps."""
    z, total = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    for g, error in zip(gradients, errors, strict=True):
        z = decay * z + g
        bound = step_size * kappa * max(abs(error), 1.0) * np.abs(z).sum()
        total += min(step_size, step_size / bound) * error * z
    return total


@pytest.mark.parametrize(("step_size", "kappa"), [(1.0, 2.0), (0.1, 3.0), (1e-3, 2.0)])
def test_obgd(step_size, kappa):
    """Steps that are bounded, and steps that are not."""
    rng = np.random.default_rng(1)
    gradients, errors = rng.normal(size=(T, 5)), 3 * rng.normal(size=T)
    optimizer = optax.chain(trace_of_gradient(DECAY), obgd(step_size, kappa))
    w = {"a": jnp.zeros(2), "b": jnp.zeros((3, 1)), "none": None}
    state = optimizer.init(w)
    for g, error in zip(gradients, errors, strict=True):
        grads = {"a": jnp.asarray(g[:2]), "b": jnp.asarray(g[2:, None]), "none": None}
        updates, state = jax.jit(optimizer.update)(grads, state, w, error=error)
        w = optax.apply_updates(w, updates)
    expected = obgd_in_numpy(gradients, errors, DECAY, step_size, kappa)
    np.testing.assert_allclose(np.concatenate([w["a"], w["b"][:, 0]]), expected, rtol=1e-12)


def test_obgd_does_not_overshoot():
    """Without a bound this step would: the value of a linear function, whose features are at most 1."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.uniform(-1, 1, 20))
    for error in (0.3, -0.8, 5.0):
        for kappa in (1.0, 2.0):
            update, _ = obgd(kappa=kappa).update(x, optax.EmptyState(), error=error)
            change = float(update @ x) / error
            assert 0 < change <= min(1.0, 1.0 / abs(error)) / kappa
            assert abs(error * float(x @ x)) > abs(error)


def test_dtypes_stay():
    for optimizer in (trace_of_gradient(np.float64(0.5)), obgd(np.float64(0.5))):
        for dtype in (jnp.float32, jnp.complex64):
            w = jnp.ones(2, dtype)
            state = optimizer.init(w)
            late = dict(reward=jnp.float64(2.0), error=jnp.float64(2.0))
            for a in jax.tree.leaves(optimizer.update(w, state, **late)):
                assert a.dtype == dtype


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_running_statistics(lead):
    """After each update those of all samples so far, whatever the leading axes; in a loop and in a scan."""
    xs = np.random.default_rng(3).normal(-3.0, 2.0, size=(5, *lead, 2))
    begin = RunningStatistics((2,))
    seen = begin
    for t, x in enumerate(xs):
        seen, known = seen.update(x), xs[: t + 1].reshape(-1, 2)
        np.testing.assert_allclose(seen.mean, known.mean(0), rtol=1e-12)
        np.testing.assert_allclose(seen.variance, known.var(0), rtol=1e-12, atol=1e-15)
        assert seen.count == len(known)
        deviation = np.ones(2) if len(known) < 2 else known.std(0, ddof=1)
        normalised = (x - known.mean(0)) / np.sqrt(deviation**2 + 1e-8)
        np.testing.assert_allclose(seen.normalise(x), normalised, rtol=1e-9, atol=1e-12)
    scanned, _ = jax.lax.scan(lambda seen, x: (seen.update(x), None), begin, jnp.asarray(xs))
    close(arrays(scanned), arrays(seen), 1e-12)


def test_running_statistics_before_there_is_a_deviation():
    begin = RunningStatistics()
    assert begin.normalise(5.0) == pytest.approx(5.0)
    assert begin.update(5.0).normalise(6.0) == pytest.approx(1.0)
    assert begin.update(5).update(5).normalise(5.0) == 0.0


@pytest.mark.parametrize("size", [1, 8])
def test_running_statistics_in_float32_beside_a_large_mean(size):
    """Where the mean of squares less the square of the mean is wrong in each digit."""
    with jax.enable_x64(False):
        xs = np.random.default_rng(4).normal(1e4, 1.0, size=(4000, size)).astype(np.float32)
        update = lambda seen, x: (seen.update(x), None)
        seen, _ = jax.lax.scan(update, RunningStatistics(), jnp.asarray(xs))
        assert seen.variance.dtype == jnp.float32
        exact = xs.astype(np.float64)
        assert abs(np.square(xs).mean() - np.square(xs.mean()) - exact.var()) > 0.5
        assert float(seen.variance) == pytest.approx(exact.var(), rel=2e-3)
        assert float(seen.mean) - exact.mean() == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("before", [2.0**24, 2.0**33])
def test_running_statistics_go_on_after_many_samples(before):
    """In float32, where one more than 2**24 is 2**24, and so small a share changes no mean of 1."""
    with jax.enable_x64(False):
        many = RunningStatistics()
        many = eqx.tree_at(lambda s: (s.mean, s.count), many, (jnp.ones(()), jnp.float32(before)))
        update = lambda seen, x: (seen.update(x), None)
        seen, _ = jax.jit(lambda s: jax.lax.scan(update, s, jnp.full(1001, 3.0)))(many)
        mean, variance, count = (
            float(a) + float(lost)
            for a, lost in zip((seen.mean, seen.variance, seen.count), seen.lost, strict=True)
        )
        assert count == before + 1001
        assert mean - 1 == pytest.approx(2 * 1001 / count, rel=1e-3)
        assert variance == pytest.approx(4 * 1001 / count, rel=1e-3)


@pytest.mark.parametrize("shape", [(), (2,), (0,)])
def test_no_samples_change_no_statistics(shape):
    for seen in (RunningStatistics(shape), RunningStatistics(shape).update(jnp.ones((3, *shape)))):
        assert eqx.tree_equal(seen.update(jnp.zeros((4, 0, *shape))), seen)


@pytest.mark.parametrize("batch", [None, 3])
def test_rewards_in_units_of_the_deviation_of_their_discounted_sums(batch):
    rng, lead = np.random.default_rng(6), () if batch is None else (batch,)
    rewards, over = rng.normal(size=(12, *lead)), rng.random((12, *lead)) < 0.3
    assert over.any()
    scale = begin = RewardScale(0.9, batch)
    sums = []
    for t in range(12):
        scale = scale.update(rewards[t], over[t])
        now = np.zeros(lead)
        for s in range(t + 1):  # of the rewards since an episode was over
            since = ~over[s:t].any(0)
            now += since * 0.9 ** (t - s) * rewards[s]
        sums.append(now)
        if t > 1:
            scaled = rewards[t] / np.sqrt(np.var(sums, ddof=1) + 1e-8)
            np.testing.assert_allclose(scale.normalise(rewards[t]), scaled, rtol=1e-9)
    update = lambda scale, told: (scale.update(*told), None)
    scanned, _ = jax.lax.scan(update, begin, (jnp.asarray(rewards), jnp.asarray(over)))
    close(arrays(scanned), arrays(scale), 1e-12)


def test_what_is_normalised_goes_on_from_a_file(tmp_path):
    xs = np.random.default_rng(7).normal(size=(6, 2))
    begin = now = RunningStatistics((2,)), RewardScale(0.9, 2)
    update = lambda now, x: (now[0].update(x), now[1].update(x, x > 1))
    for x in xs[:3]:
        now = update(now, x)
    etpc.save(tmp_path / "now.etpc", now)
    resumed = etpc.load(tmp_path / "now.etpc", like=begin)
    for x in xs[3:]:
        now, resumed = update(now, x), update(resumed, x)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, now, resumed))


@pytest.mark.slow
def test_streams_side_by_side():
    """TD(lambda) in several streams with the same weights: the mean of `error_s trace_s`, of a trace for each."""
    streams, (xs, _), program = 3, data(T, 3), program_of(PLAIN, D)
    rng = np.random.default_rng(8)
    errors, begins = rng.normal(size=(T, streams)), rng.random((T, streams)) < 0.3
    assert begins[1:].any()
    optimizer, trace = optax.sgd(0.1), trace_of_gradient(DECAY)
    weights, static = eqx.partition(PLAIN, eqx.is_inexact_array)

    def one(weights, stream, x, error, begins):
        carry, traces = stream
        carry = program.reset(carry, begins)
        value = lambda w: program(eqx.combine(w, static), x, carry)
        _, pullback, carry = jax.vjp(value, weights, has_aux=True)
        (grads,) = pullback(jnp.ones(1))
        update, traces = trace.update(grads, traces, reward=-error, reset=begins)
        return update, (carry, traces)

    begin = program.init(), trace.init(weights)
    many = jax.jit(jax.vmap(one, (None, 0, 0, 0, 0)))
    side = jax.tree.map(lambda a: jnp.stack([a] * streams), begin)
    found, state = weights, optimizer.init(weights)
    for t in range(T):
        updates, side = many(found, side, xs[t], errors[t], begins[t])
        mean = jax.tree.map(lambda u: u.mean(0), updates)
        updates, state = optimizer.update(mean, state)
        found = optax.apply_updates(found, updates)

    @jax.jit
    def alone(w, x, carry):
        def value(w):
            y, after = program(eqx.combine(w, static), x, carry)
            return y[0], after

        return jax.grad(value, has_aux=True)(w)

    expected, carries = weights, [program.init() for _ in range(streams)]
    traces = [[np.zeros_like(w) for w in arrays(weights)] for _ in range(streams)]
    for t in range(T):
        total = [np.zeros_like(w) for w in arrays(weights)]
        for s in range(streams):
            if begins[t, s]:
                carries[s], traces[s] = program.init(), [np.zeros_like(z) for z in traces[s]]
            grads, carries[s] = alone(expected, xs[t, s], carries[s])
            traces[s] = [DECAY * z + g for z, g in zip(traces[s], arrays(grads), strict=True)]
            total = [u + errors[t, s] * z for u, z in zip(total, traces[s], strict=True)]
        leaves, tree = jax.tree.flatten(expected)
        steps = zip(leaves, total, strict=True)
        expected = jax.tree.unflatten(tree, [w + 0.1 * u / streams for w, u in steps])
    assert (
        max(np.abs(a - b).max() for a, b in zip(arrays(found), arrays(weights), strict=True)) > 1e-2
    )
    close(arrays(found), arrays(expected), 1e-12)


def test_bad_input():
    for decay in (-0.1, 1.5, float("nan"), "0.9", None, [0.9], 0.9j):
        with pytest.raises(etpc.InputError, match=r"decay must lie in \[0, 1\], and is"):
            unchecked(trace_of_gradient)(decay)
    optimizer = trace_of_gradient(0.5)
    w = jnp.ones(2)
    for name in ("reward", "reset"):
        with pytest.raises(etpc.InputError, match=rf"{name} has shape \[2\].* one stream"):
            optimizer.update(w, optimizer.init(w), **{name: w})
    for name in ("step_size", "kappa"):
        for value in (0.0, -1.0, float("nan"), float("inf"), "1.0", None, [1.0], 1j):
            with pytest.raises(etpc.InputError, match=f"{name} must be a finite number > 0"):
                unchecked(obgd)(**{name: value})
    with pytest.raises(etpc.InputError, match=r"error has shape \[2\].* one stream"):
        obgd().update(w, optax.EmptyState(), error=w)
    with pytest.raises(etpc.InputError, match="needs the temporal-difference error"):
        obgd().update(w, optax.EmptyState())
    for wrong in (jnp.ones(3), jnp.ones((1, 2))):
        with pytest.raises(etpc.InputError, match=r"of \['w'\] has shape .* should have \[2\]"):
            optimizer.update({"w": wrong}, optimizer.init({"w": w}))
    with pytest.raises(etpc.InputError, match=r"discount must lie in \[0, 1\], and is 1.5"):
        RewardScale(1.5)
    with pytest.raises(etpc.InputError, match="batch_size must be an int >= 1, not 0"):
        RewardScale(0.5, 0)
    for batch, shape, other in ((2, [2], [2, 1]), (2, [2], []), (None, [], [4])):
        for name, shapes in {"reward": (other, shape), "over": (shape, other)}.items():
            with pytest.raises(etpc.InputError) as caught:
                RewardScale(0.5, batch).update(*map(jnp.zeros, shapes))
            assert str(caught.value) == f"{name} has shape {other}, and should have {shape}."
    for wrong in (jnp.zeros(3), 1.0):
        for take in (RunningStatistics((2,)).update, RunningStatistics((2,)).normalise):
            with pytest.raises(etpc.InputError, match=r"shape .* and should end in .* \[2\]"):
                take(wrong)
