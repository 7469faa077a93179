"""Published results, `examples/published/`: short forms of the runs, and the tables."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from examples.published import (
    chaotic_series,
    copy_lru,
    eprop,
    eprop_online,
    sparse_rtrl,
    study,
    tmaze,
)

# --- runs and tables ---


def numbers(seed):
    return [seed + 0.5, 2.0 * seed]


STUDY = study.Study(
    title="A study",
    source="a source",
    measure="numbers",
    cases=(
        study.Case("first", ("a", "b"), numbers, (0.25, None)),
        study.Case("second", ("c",), lambda seed: [7.0 + seed], (7.0,), random=False),
    ),
    digits=".2f",
)


def test_a_case_runs_for_each_seed_and_its_rows_replace_older_ones(tmp_path, capsys):
    file = tmp_path / "rows.json"
    study.main(STUDY, ["--seeds", "3", "--json", str(file)])
    assert [row.ours for row in study.load(file)] == [[0.5, 1.5, 2.5], [0, 2, 4], [7]]
    study.main(STUDY, ["--seeds", "2", "--only", "fir", "--json", str(file)])
    rows = study.load(file)
    assert [row.ours for row in rows] == [[0.5, 1.5], [0, 2], [7]]
    assert rows[0].versions["jax"] == jax.__version__
    assert rows[0].seconds >= 0
    printed = capsys.readouterr()
    assert "| a | 0.25 | 1.00 |" in printed.out
    assert "0 min, if as before" in printed.err
    timeless = [dataclasses.replace(row, seconds=3.4) for row in rows]
    assert study.minutes(STUDY.cases, timeless, 5) == pytest.approx((5 + 1) * 3.4 / 60)
    assert study.tables(STUDY, timeless).splitlines() == [
        "| first | published | here | range | seeds | s |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
        "| a | 0.25 | 1.00 | 0.50 to 1.50 | 2 | 3 |",
        "| b | - | 1.00 | 0.00 to 2.00 | 2 | 3 |",
        "",
        "| second | published | here | range | seeds | s |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
        "| c | 7.00 | 7.00 | - | 1 | 3 |",
    ]
    study.main(STUDY, ["--only", "sec"])
    assert "| a |" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        study.main(STUDY, ["--only", "nothing"])


def test_a_case_may_run_its_seeds_together():
    case = study.Case(
        "t", ("a", "b"), lambda seeds: [[s, 2 * s] for s in seeds], (1.0, 2.0), together=True
    )
    rows = study.run(case, range(3), "command", {})
    assert [(row.name, row.published, row.ours) for row in rows] == [
        ("a", 1.0, [0, 1, 2]),
        ("b", 2.0, [0, 2, 4]),
    ]


# --- e-prop ---


def published(task):
    (case,) = (case for case in eprop.STUDY.cases if case.task == task)
    return case.published


@pytest.mark.slow
@pytest.mark.parametrize("case", eprop.STUDY.cases, ids=lambda case: case.task)
def test_all_losses_are_those_of_nest(case):
    """Of numbers with twelve decimals: 5e-15 of the larger ones, and 2e-12 of the smaller ones."""
    np.testing.assert_allclose(case.run(0), case.published, rtol=0, atol=2e-12)


@pytest.mark.slow
def test_the_regulariser_matters(monkeypatch):
    wanted = published("Pattern generation")[1]
    free = dataclasses.replace(eprop.PATTERN, rate_cost=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(eprop, "PATTERN", free)
        losses, _ = eprop.pattern_generation(2)
    assert abs(losses[1] - wanted) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", eprop_online.NEURONS)
def test_updates_at_each_step_are_those_of_nest_but_for_its_cutoff(name):
    """`tests/peer/test_nest.py` compares them with NEST without a cutoff, where it is installed."""
    neuron, published = eprop_online.NEURONS[name], eprop_online.PUBLISHED[name]
    found = eprop_online.losses(neuron)
    np.testing.assert_allclose(found[0], published[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found, published, rtol=0.2 if neuron.adam else 1e-6)
    assert np.abs(found[1] / published[1] - 1) > 1e-9


# --- chaotic series ---


@pytest.mark.slow
def test_the_series_follow_their_equations():
    x = chaotic_series.henon(0)
    np.testing.assert_allclose(x[2:], 1 - 1.4 * x[1:-1] ** 2 + 0.3 * x[:-2], rtol=1e-12)
    x = chaotic_series.mackey_glass(0)
    late = x[10:-17]
    np.testing.assert_allclose(x[27:], 0.9 * x[26:-1] + 0.2 * late / (1 + late**10), rtol=1e-12)
    assert (x[100:].min() > 0.2) & (x.max() < 1.5)
    x = chaotic_series.lorenz(0)
    assert len(x) == chaotic_series.LENGTH
    assert 15 < np.abs(x).max() < 22  # both wings of the attractor
    assert np.abs(x[-1] - x[-1, 0]).max() > 0.1  # the streams have parted
    lobes = np.diff(np.sign(x[:, 0])) != 0
    assert 0.5 < lobes.sum() / (len(x) * 0.02) < 2  # changes of the wing in each unit of time


@pytest.mark.slow
def test_the_error_is_that_of_the_last_records():
    """D-RTRL is the immediate gradient here, as no unit keeps its own state."""
    steps = 1200
    found, immediate = (
        chaotic_series.error(chaotic_series.henon, rule, 1, steps, 0)
        for rule in (etpc.D_RTRL(), etpc.TBPTT(1))
    )
    np.testing.assert_allclose(found, immediate, rtol=1e-3)
    assert 0.1 < found[0] < 1


@pytest.mark.slow
def test_rules_of_chaotic_series_run():
    for name, rule in chaotic_series.RULES.items():
        every = 25 if name == "TBPTT(25)" else 1
        (error,) = chaotic_series.error(chaotic_series.lorenz, rule, every, 600, 0)
        assert 0 < error < 2, name


# --- copying ---


def test_the_pattern_is_wanted_at_the_end():
    xs, targets, mask = copy_lru.sequences(np.random.default_rng(0), 3, 4)
    shape = (3, copy_lru.STEPS, 4)
    xs, targets, mask = (a.reshape(*shape, *a.shape[2:]) for a in (xs, targets, mask))
    shown = xs[:, : copy_lru.PATTERN, :, :-1]
    np.testing.assert_array_equal(shown, targets[:, -copy_lru.PATTERN :])
    assert 0.3 < shown.mean() < 0.7
    assert mask.sum() == 3 * 4 * copy_lru.PATTERN
    assert not xs[:, copy_lru.PATTERN :, :, :-1].any()
    marker = np.zeros(copy_lru.STEPS)
    marker[-copy_lru.PATTERN - 1] = 1
    np.testing.assert_array_equal(xs[..., -1], np.broadcast_to(marker[:, None], shape))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_the_last_layer_is_exact_and_the_encoder_is_not(depth):
    model = copy_lru.Network(depth, jax.random.key(0))
    program = etpc.compile(model, etpc.D_RTRL(), inputs=jnp.zeros(8))
    claims = {claim.claim for claim in program.claims.values()}
    assert ("approximate" in claims) == (depth > 1)
    assert program.claims[f".layers[{depth - 1}].lru.nu_log"].claim == "exact"
    assert program.claims[".encoder.weight"].claim != "exact"


def test_spatial_backpropagation_leaves_the_eigenvalues():
    model = copy_lru.Network(2, jax.random.key(0))
    optimizer = copy_lru.without_eigenvalues(optax.sgd(1.0))
    arrays = eqx.filter(model, eqx.is_array)
    moved, _ = optimizer.update(arrays, optimizer.init(arrays))
    assert not moved.layers[1].lru.nu_log.any()
    assert not moved.layers[0].lru.theta_log.any()
    assert moved.layers[1].lru.gamma_log.any()
    assert moved.encoder.weight.any()


# --- T-maze ---


@pytest.mark.slow
def test_truncation_to_an_episode_at_each_step_is_exact():
    """The gradient of the last of some steps is that of RTRL, where the weights stay."""
    model, key = tmaze.tanh(jax.random.key(0)), jax.random.key(1)
    over = np.arange(7)[:, None] == np.arange(tmaze.BATCH) % 5
    xs = jax.random.normal(key, (7, tmaze.BATCH, 4))

    def gradient(rule):
        program = etpc.compile(model, rule, inputs=jnp.zeros(4))
        carry = program.init(tmaze.BATCH)
        for x, done in zip(xs, over, strict=True):
            call = lambda m, x=x, carry=carry: program(m, x, carry)
            outputs, pull, carry = jax.vjp(call, model, has_aux=True)
            carry = program.reset(carry, jnp.asarray(done))
        return pull(jax.tree.map(jnp.ones_like, outputs))[0].cell

    rolling = gradient(etpc.TBPTT(2 * 5, every=1))
    immediate = gradient(etpc.TBPTT(1))
    exact = gradient(etpc.RTRL(window=1))
    for a, b, c in zip(*map(jax.tree.leaves, (rolling, exact, immediate)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        assert np.abs(b - c).max() > 1e-3


@pytest.mark.slow
def test_what_is_unrolled_with_the_weights_of_each_step_is_rtrl():
    """Agents that learn for 60 steps have the same weights, and others where the current ones are taken for all."""
    length, keys = 3, jax.random.split(jax.random.key(1), 60)

    def after(program_of):
        agent, step = tmaze.online(tmaze.tanh, program_of, length, jax.random.key(0))
        (model, *_), (_, done) = jax.jit(lambda agent: jax.lax.scan(step, agent, keys))(agent)
        assert done.sum() > 100
        return jax.tree.leaves(model.cell)

    rtrl = after(tmaze.under(etpc.RTRL(window=1)))
    unrolled = after(tmaze.AGENTS["RTRL, tanh"][1])
    current = after(tmaze.under(etpc.TBPTT(2 * length, every=1)))
    for a, b, c in zip(unrolled, rtrl, current, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)
        assert np.abs(c - b).max() > 1e-6


@pytest.mark.slow
def test_short_runs_of_agents():
    for name in ("RTU", "TBPTT(2N), tanh"):
        share = tmaze.run(name, 10, range(2), tmaze.BLOCK)
        assert share.shape == (2, 1)
        assert 0 <= float(share.min()) <= float(share.max()) < 0.5, name


# --- sparse RTRL ---


@pytest.mark.parametrize("paths", [0, 2, 5])
def test_sparse_rtrl_is_that_of_a_dense_reference(paths):
    """All Jacobians by `jax.jacobian`, and the trace of all weights as one matrix; five paths are all of them."""
    units, steps = 5, 7
    step = lambda w, x, h: (lambda h: (h, h))(jnp.tanh(w @ jnp.concatenate([h, x])))
    w = jax.random.normal(jax.random.key(0), (units, units + 2)) / 2
    xs = jax.random.normal(jax.random.key(1), (steps, 2, 2))  # T, B, I
    targets = jnp.broadcast_to(xs[..., :1], (steps, 2, units))
    rule = sparse_rtrl.SparseRTRL(paths, window=3)
    options = dict(inputs=xs[0, 0], state=jnp.zeros(units), step=step)
    program = etpc.compile(w, rule, **options)
    pairs = etpc.forms.Pairs(
        units, np.repeat(np.arange(units), units), np.tile(np.arange(units), units)
    )
    mask = rule.trace_form(None).kept(pairs).reshape(units, units)
    assert mask.sum(1).tolist() == [paths] * units
    loss = lambda y, target: jnp.sum((y - target) ** 2)
    _, found = program.value_and_grad(loss)(w, xs, targets, program.init(2))
    total = 0
    for n in range(2):
        h, trace = jnp.zeros(units), jnp.zeros((units, w.size))
        for x in xs[:, n]:
            of_w, of_h = jax.jacobian(lambda w, h, x=x: step(w, x, h)[1], (0, 1))(w, h)
            trace = (mask * of_h) @ trace + of_w.reshape(units, -1)
            h = step(w, x, h)[1]
            total += 2 * (h - x[0]) @ trace / (2 * steps)
    np.testing.assert_allclose(found.ravel(), total, rtol=1e-9, atol=1e-12)
    exact = etpc.compile(w, etpc.RTRL(), **options)
    _, whole = exact.value_and_grad(loss)(w, xs, targets, exact.init(2))
    assert np.allclose(found, whole, rtol=1e-9) == (paths == units)
    assert etpc.compile(w, "sparse-rtrl", **options).algorithm == sparse_rtrl.SparseRTRL()
