"""Published results, `examples/published/`: short forms of the runs, and the tables."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from benchmarks import pages
from examples.published import (
    chaotic_series,
    copy_lru,
    eprop,
    eprop_online,
    gradient_cosines,
    real_series,
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


def test_a_study_goes_on_where_its_file_ends(tmp_path):
    """Rows of other versions are run anew."""
    file, runs = tmp_path / "rows.json", []

    def noted(seed):
        runs.append(seed)
        return numbers(seed)

    first = dataclasses.replace(STUDY.cases[0], run=noted)
    noting = dataclasses.replace(STUDY, cases=(first, *STUDY.cases[1:]))
    options = ["--json", str(file), "--resume", "--seeds"]
    for seeds in "2", "4", "3":
        study.main(noting, [*options, seeds])
    assert runs == [0, 1, 2, 3]
    rows = study.load(file)
    assert [row.ours for row in rows] == [[0.5, 1.5, 2.5, 3.5], [0, 2, 4, 6], [7]]
    study.save([dataclasses.replace(row, versions={"jax": "0"}) for row in rows], file)
    study.main(noting, [*options, "1"])
    assert runs == [0, 1, 2, 3, 0]
    with pytest.raises(SystemExit):
        study.main(noting, ["--resume"])


def test_the_page_has_what_the_records_say():
    page = (pages.DOCS / "results.md").read_text()
    assert page == pages.published_page(), "run `python -m benchmarks.pages`"
    for name in pages.PUBLISHED:
        rows = study.load(pages.DOCS / f"results/{name}.json")
        assert rows, name
        assert all(f"| {row.name} |" in page for row in rows), name


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


# --- sunspots and a laser ---


def test_streams_are_parts_of_a_ring(monkeypatch, tmp_path):
    """Of the numbers 0 to 3328; 3329 // 8 = 416, and the first of 3,000 steps has the value of place 64."""
    monkeypatch.setattr(real_series, "read", lambda *_: np.arange(3329.0))
    seen = []

    def losses_of(xs, targets, rule, every, seed):
        seen.append((xs, targets))
        return np.arange(15_000.0)

    monkeypatch.setattr(real_series, "losses_of", losses_of)
    (found,) = real_series.error(tmp_path, real_series.SERIES["Sunspots"], etpc.RTRL(), 3)
    ends = [13_750, 14_000, 14_250, 14_500, 14_750]  # of records of 200 steps, these included
    assert found == np.mean([np.arange(end - 199, end + 1).mean() for end in ends])
    ((xs, targets),) = seen
    start = int(np.random.default_rng(3).integers(3329))
    raw = (start + 64 + np.arange(3001)[:, None] + 416 * np.arange(8)) % 3329
    scaled = (raw - raw[:2000].mean(0)) / raw[:2000].std(0, ddof=1)
    assert xs.shape == targets.shape == (15_000, 8)
    for first in range(0, 15_000, 3000):
        np.testing.assert_allclose(xs[first : first + 3000], scaled[:3000], atol=1e-12)
        np.testing.assert_allclose(targets[first : first + 3000], scaled[1:], atol=1e-12)


def test_other_data_are_refused(tmp_path, monkeypatch, capsys):
    laser = real_series.SERIES["Laser"]
    with pytest.raises(FileNotFoundError, match=r"no file .*laser.txt"):
        real_series.read(tmp_path, laser)
    (tmp_path / "laser.txt").write_text("86\n141\n")
    with pytest.raises(ValueError, match="SHA-256"):
        real_series.read(tmp_path, laser)
    for arguments, message in ([], "SILSO"), (["--data", str(tmp_path)], "no file"):
        monkeypatch.setattr("sys.argv", ["real_series", *arguments])
        with pytest.raises(SystemExit, match=message):
            real_series.main()


# --- gradients beside those of exact RTRL ---


def drawn(task, steps):
    return gradient_cosines.TASKS[task].draw(np.random.default_rng(1), steps)


def check_times(stream, length, wanted):
    steps = np.arange(len(stream.xs))
    assert stream.xs.shape[1] == 8
    np.testing.assert_array_equal(stream.wanted, steps % length >= length - wanted)
    np.testing.assert_array_equal(stream.begins, np.repeat((steps % length == 0)[:, None], 8, 1))


def test_copying_asks_for_the_symbols_in_order():
    stream = drawn("copying", 170)
    check_times(stream, 50, 5)
    assert stream.xs.shape == (170, 8, 10)
    assert (stream.xs.sum(2) == 1).all()
    shown = stream.xs.argmax(2)
    for begin in 0, 50, 100:
        episode = shown[begin : begin + 50]
        assert (episode[:5] < 8).all() & (episode[5:45] == 8).all() & (episode[45:] == 9).all()
        np.testing.assert_array_equal(stream.targets[begin + 45 : begin + 50], episode[:5])
    assert np.unique(shown[100:105]).size > 4
    assert (shown[:5] != shown[50:55]).any()


def test_adding_adds_one_number_of_each_half():
    stream = drawn("adding", 250)
    check_times(stream, 100, 1)
    assert (stream.xs.shape, stream.targets.shape) == ((250, 8, 2), (250, 8, 1))
    for begin in 0, 100:
        numbers, marks = np.moveaxis(stream.xs[begin : begin + 100], 2, 0)
        assert (numbers.min() >= 0) & (numbers.max() < 1) & (numbers.std() > 0.2)
        for lane in range(8):
            first, second = np.flatnonzero(marks[:, lane])
            assert first < 50 <= second
            total = numbers[first, lane] + numbers[second, lane]
            assert stream.targets[begin + 99, lane, 0] == pytest.approx(total)


def test_rotation_wants_the_vector_turned_once_more_at_each_step():
    stream = drawn("rotation", 130)
    check_times(stream, 64, 64)
    assert (stream.xs.shape, stream.targets.shape) == ((130, 8, 9), (130, 8, 8))
    assert (stream.xs[::64, :, 8] == 1).all()
    assert not np.delete(stream.xs, [0, 64, 128], 0).any()
    np.testing.assert_allclose(np.linalg.norm(stream.xs[64, :, :8], axis=1), 1)
    turn = np.linalg.lstsq(stream.xs[0, :, :8], stream.targets[0])[0].T
    np.testing.assert_allclose(turn @ turn.T, np.eye(8), atol=1e-9)
    assert np.linalg.det(turn) == pytest.approx(1)
    assert np.abs(turn - np.eye(8)).max() > 0.3
    vectors = stream.xs[64, :, :8]
    for step in range(64):
        vectors = vectors @ turn.T
        np.testing.assert_allclose(stream.targets[64 + step], vectors, atol=1e-9)


def test_counting_is_of_strings_that_end():
    stream = drawn("counting", 3000)
    symbols, lengths = stream.xs.argmax(2), set()
    assert stream.wanted.all()
    for lane in range(8):
        text = "".join("ab."[symbol] for symbol in symbols[:, lane])
        *whole, _ = text.split(".")
        for string in whole:
            n = string.count("a")
            assert string == "a" * n + "b" * n
            lengths.add(n)
        begins = np.flatnonzero(stream.begins[:, lane])
        assert begins.tolist() == [i for i in range(3000) if i == 0 or text[i - 1] == "."]
        wanted = [2 if a == "." else "ab.".index(b) for a, b in itertools.pairwise(text)]
        assert stream.targets[:-1, lane].tolist() == wanted
    assert lengths == set(range(1, 17))
    assert gradient_cosines.TASKS["counting"].longest == 33


def test_the_last_fifth_of_the_records_counts():
    """As one would log it: at steps 0, 250, ... the mean of the last 200 cosines so far."""
    wanted = np.arange(3000) % 3 == 2
    cosines = np.random.default_rng(0).normal(size=wanted.sum())
    cosines[700] = np.nan
    log, so_far, left = [], [], list(cosines)
    for step in range(3000):
        if wanted[step]:
            so_far.append(left.pop(0))
        if step % 250 == 0 and so_far:
            last = [c for c in so_far[-200:] if c == c]
            log.append(sum(last) / len(last))
    assert len(log) == 11
    found = gradient_cosines.recorded(cosines, wanted)
    assert found == pytest.approx(sum(log[-2:]) / 2, rel=1e-12)


@pytest.mark.slow
def test_the_gradient_of_rtrl_has_the_weights_of_each_step():
    """The influence is moved forwards by hand; episodes are of four steps at most, as many as are kept."""
    draw, inputs = np.random.default_rng(0), 2
    model = chaotic_series.Network(jax.random.key(0), inputs, 1)
    past = gradient_cosines.Past.none(4, inputs)
    rows = 64, 64 + inputs + 1
    hidden, influence = np.zeros((8, 64)), np.zeros((8, 64, *rows))
    for step in range(6):
        weight, x = draw.normal(size=rows) / 8, draw.normal(size=(8, inputs))
        begins = np.isin(range(8), {0: range(8), 2: range(5, 8), 3: range(5)}.get(step, ()))
        model = eqx.tree_at(lambda m: m.weight, model, jnp.asarray(weight))
        past = past.step(model, jnp.asarray(x), jnp.asarray(begins))
        hidden[begins], influence[begins] = 0, 0
        data = np.concatenate([hidden, x, np.ones((8, 1))], 1)
        hidden = np.tanh(data @ weight.T)
        slopes = 1 - hidden**2
        jacobian = slopes[:, :, None] * weight[:, :64]
        influence = (jacobian @ influence.reshape(8, 64, -1)).reshape(8, 64, *rows)
        influence[:, range(64), range(64)] += slopes[:, :, None] * data[:, None]
    credit = draw.normal(size=(8, 64))
    found = past.gradient(jnp.asarray(credit))
    np.testing.assert_allclose(past.hidden, hidden, rtol=1e-12)
    np.testing.assert_allclose(found, np.einsum("bn,bnmi->mi", credit, influence), atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("task", gradient_cosines.TASKS)
def test_exact_rtrl_has_the_cosine_one_and_the_current_step_less(task):
    stream, about = drawn(task, 105), gradient_cosines.TASKS[task]
    run = lambda rule: gradient_cosines.cosines(about, rule, stream, 0)
    exact = run(etpc.RTRL())
    assert len(exact) == stream.wanted.sum()
    np.testing.assert_allclose(exact, 1, rtol=0, atol=1e-10)
    assert np.mean(run(etpc.TBPTT(1))) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", ["KF_AT_ONCE", "UORO_AT_ONCE"])
def test_what_is_mixed_at_once_has_the_gradient_as_its_mean(name):
    """Over 1,000 draws of signs, within five standard errors; three steps."""
    mixed, inputs, draw = getattr(gradient_cosines, name), 2, np.random.default_rng(0)
    model = chaotic_series.Network(jax.random.key(0), inputs, 1)
    past, steps = gradient_cosines.Past.none(3, inputs), []
    for step in range(3):
        x = jnp.asarray(draw.normal(size=(8, inputs)))
        past = past.step(model, x, jnp.full(8, step == 0))
        jacobian = past.slopes[step][:, :, None] * model.weight[None, :, :64]
        steps.append((jacobian, past.slopes[step], past.data[step]))
    credit = jnp.asarray(draw.normal(size=(8, 64)))
    direction = jnp.asarray(draw.normal(size=(64, 64 + inputs + 1)))

    def along(key):
        factors = tuple(jnp.zeros((8, *size)) for size in mixed.size(64 + inputs + 1))
        for number, step in enumerate(steps):
            factors = mixed.step(jax.random.fold_in(key, number), factors, *step)
        return jnp.sum(direction * mixed.gradient(factors, credit))

    found = jax.jit(lambda keys: jax.lax.map(along, keys))(
        jax.random.split(jax.random.key(1), 1000)
    )
    exact = jnp.sum(direction * past.gradient(credit))
    assert abs(found.mean() - exact) < 5 * found.std() / 1000**0.5
    assert found.std() > 0.1 * abs(exact)


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
