"""The tasks of the examples: their data follows the rule, and the harness compares what it says."""

import dataclasses
import functools
import json
import math
import re
import types
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from benchmarks import pages
from etpc import nn
from examples.tasks import (
    adding,
    arms,
    conductance,
    copying,
    cue_alif,
    delayed_xor,
    dms,
    encoder,
    evidence,
    flip_flop,
    interval,
    memory_chain,
    ordered_bursts,
    parity,
    recall,
    store_recall,
    suggested,
    tmaze_encoder,
    waves,
)

DOCS = Path(__file__).parents[1] / "docs"
MODULES = [copying, dms, memory_chain, evidence, conductance]


# --- data ---


copies = jax.jit(copying.batch)


@pytest.mark.parametrize("level", [1, 4, 12])
def test_copying_asks_for_the_bits_that_were_shown(level: int) -> None:
    xs, targets, mask = map(np.asarray, copies(jax.random.key(0), jnp.asarray(level)))
    assert xs.shape == (copying.STEPS, copying.BATCH, 3)
    assert targets.shape == mask.shape == xs.shape[:2]
    lengths = []
    for x, target, asked in zip(*(a.swapaxes(0, 1) for a in (xs, targets, mask)), strict=True):
        t = 0
        while t < len(x):
            bits = []
            while t < len(x) and x[t, 1]:
                assert abs(x[t, 0]) == 1
                assert not asked[t]
                bits.append(x[t, 0] > 0)
                t += 1
            if t == len(x):
                break
            assert x[t].tolist() == [0, 0, 1]
            assert not asked[t]
            lengths.append(len(bits))
            answer = slice(t + 1, t + 1 + len(bits))
            assert asked[answer].all()
            assert not x[answer].any()
            wanted = bits[: len(target[answer])]
            assert target[answer].tolist() == wanted
            t = answer.stop
    assert set(lengths) == set(range(max(level - 5, 1), level + 1))


def batch_of(task, inputs, asked=1):
    """A batch whose label, of which both occur, is asked at the last steps alone."""
    xs, targets, mask = map(np.asarray, jax.jit(task.batch)(jax.random.key(0)))
    assert xs.shape == (task.STEPS, task.BATCH, inputs)
    assert 0 < targets[0].sum() < task.BATCH
    assert (mask == (np.arange(task.STEPS) >= task.STEPS - asked)[:, None]).all()
    return xs, targets


def test_the_label_is_the_side_with_more_cues() -> None:
    E = evidence
    assert conductance.TASK.batch is E.TASK.batch
    xs, targets = batch_of(E, 4 * E.GROUP, E.ASK)
    left, right, ask, noise = np.split(xs, 4, axis=2)
    cues = (E.CUES, E.CUE + E.GAP)
    per_cue = [
        a[: E.CUES * (E.CUE + E.GAP)].reshape(*cues, E.BATCH, E.GROUP).any((1, 3))
        for a in (left, right)
    ]
    assert (per_cue[0] ^ per_cue[1]).all()  # each cue has one side
    assert (targets == (per_cue[1].sum(0) > per_cue[0].sum(0))).all()
    assert ask[-E.ASK :].any((0, 2)).all()
    assert not ask[: -E.ASK].any()
    assert not xs[E.CUES * (E.CUE + E.GAP) : -E.ASK, :, : 3 * E.GROUP].any()  # the delay
    assert noise.any()


def test_the_label_is_whether_the_stimuli_match() -> None:
    xs, targets = batch_of(dms, dms.STIMULI * dms.GROUP, dms.TEST)
    groups = xs.reshape(*xs.shape[:2], dms.STIMULI, dms.GROUP).sum(3)
    first = groups[dms.BEFORE : dms.BEFORE + dms.SAMPLE].sum(0).argmax(1)
    second = groups[-dms.TEST :].sum(0).argmax(1)
    assert set(first) == set(range(dms.STIMULI))
    assert (targets == (first == second)).all()
    delay = groups[dms.BEFORE + dms.SAMPLE : -dms.TEST]
    assert delay.mean() < 2 * dms.SILENT * dms.GROUP


def test_the_answer_is_one_of_the_first_bits() -> None:
    C = memory_chain
    xs, targets = batch_of(C, 2 * C.BITS + 1)
    shown, first, asked = np.split(xs, [C.BITS, C.BITS + 1], axis=2)
    assert (np.abs(shown[:-1]) == 1).all()
    assert not shown[-1].any()
    assert first[0].all()
    assert not first[1:].any()
    assert not asked[:-1].any()
    assert (asked[-1].sum(1) == 1).all()
    assert set(asked[-1].argmax(1)) == set(range(C.BITS))
    assert (targets == (shown[0] * asked[-1] > 0).any(1)).all()


def test_the_label_is_whether_the_first_two_bits_are_equal() -> None:
    xs, targets = batch_of(encoder, encoder.BITS)
    assert (np.abs(xs[0]) == 1).all()
    assert np.abs(xs[1:]).max() < 0.6
    assert (targets == (xs[0, :, 0] == xs[0, :, 1])).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [m.__name__.split(".")[-1] for m in MODULES])
def test_networks_are_alive(name) -> None:
    (task,) = (m.TASK for m in MODULES if m.__name__.endswith(name))
    learner_key, data_key = jax.random.split(jax.random.key(0))
    model = task.make_model(learner_key)
    level = [] if task.curriculum is None else [jnp.asarray(2)]
    xs, targets, mask = jax.jit(task.batch)(data_key, *level)
    steps = xs.shape[0]
    assert steps % task.window == 0
    assert steps % (task.every or steps) == 0
    weights = arms.full_mask(xs, mask)
    _, grads = etpc.bptt(
        model,
        xs,
        (targets, weights),
        arms.weighted(task.loss_fn),
        batch_size=task.batch_size,
        reduction="sum",
    )
    for grad in jax.tree.leaves(grads):
        assert jnp.isfinite(grad).all()
        assert jnp.abs(grad).max() > 0


# --- the harness ---


def tiny_model(key):
    return nn.LeakyRateReadout(1, 2, key=key)


def tiny_batch(key):
    """The sign of the first input is asked at the last of 6 steps."""
    first = jax.random.normal(key, (8,))
    xs = jnp.zeros((6, 8, 1)).at[0, :, 0].set(first)
    mask = jnp.broadcast_to((jnp.arange(6) == 5)[:, None], (6, 8))
    return xs, jnp.broadcast_to((first > 0).astype(jnp.int32), (6, 8)), mask


TINY = arms.Task(
    name="first sign",
    make_model=tiny_model,
    batch=tiny_batch,
    loss_fn=optax.softmax_cross_entropy_with_integer_labels,
    score=lambda ys, targets, mask: ((ys.argmax(-1) == targets) * mask).sum() / mask.sum(),
    batch_size=8,
    window=2,
)


ROW = arms.Row(
    *("t", "A", 0, 0.5, 0.1, "u", 0.0, 1.0, 0.25, 0.5, 2.0, 2048, 1024, [0, 1], [0.1, 0.5]),
    *(1e-3, 0.7, 0.8, 0.9),
)


@pytest.mark.slow
def test_rows() -> None:
    def batch(key):
        xs, *others = tiny_batch(key)
        return (xs + 0.1 * jax.random.normal(key, xs.shape), *others)  # each step has an influence

    task = dataclasses.replace(arms.fast(TINY), batch=batch, every=2)
    chosen = [
        arms.Arm("D-RTRL", etpc.D_RTRL()),
        arms.Arm("immediate", etpc.TBPTT(1)),
        arms.Arm("credit", etpc.CreditRTRL(1, window=2)),
        arms.Arm("look-back", etpc.TBPTT(4, 2)),
    ]
    so_far = []
    rows = arms.run(task, chosen, seeds=(0,), found=lambda rows: so_far.append(len(rows)))
    assert [row.arm for row in rows] == ["BPTT", "D-RTRL", "immediate", "credit", "look-back"]
    assert so_far == [1, 2, 3, 4, 5]
    bptt, d_rtrl, immediate, credit, back = rows
    assert bptt.error_initial == bptt.error_trained == 0
    for exact in (d_rtrl, credit):  # a leak escapes no trace
        assert max(exact.error_initial, exact.error_trained) < 1e-9
        assert min(exact.past_initial, exact.past_trained, exact.cosine_own) > 1 - 1e-9
        assert min(exact.lags) > 1 - 1e-9
    assert bptt.bins == [0, 2, 4]  # from the last window to the one before, and to the first step
    assert bptt.lags is None
    assert immediate.lags == [0, 0]
    assert (
        back.lags[0] > 1 - 1e-9
    )  # what reaches back over 4 steps, and nothing of what does so over 6
    assert back.lags[1] == 0
    assert min(immediate.error_initial, immediate.error_trained) > 0.1
    assert len({row.curve[0] for row in rows}) == 1  # the same initial weights and test data
    assert d_rtrl.carry_bytes > immediate.carry_bytes > 0
    assert bptt.batches == [0, 2]
    for row in rows:
        assert 0 <= row.score <= 1
        assert row.ms_per_batch > 0
        assert row.rate in [factor * task.rate for factor in arms.GRID]


@pytest.mark.slow
def test_the_rate_is_that_with_the_lowest_loss() -> None:
    task = dataclasses.replace(TINY, updates=60, points=2, rate=1e-3)
    learner = arms.Learner(task, arms.Arm("BPTT", None))
    measure = arms.measured(learner, arms.evaluator(task))
    assert arms.tuned(learner, measure, 30) == pytest.approx(3e-3)  # all of them are small
    wild = dataclasses.replace(task, schedule=lambda rate: jnp.where(rate > 5e-4, jnp.nan, rate))
    learner = arms.Learner(wild, arms.Arm("BPTT", None))
    assert arms.tuned(learner, measure, 30) == pytest.approx(1e-3 / 3)


@pytest.mark.slow
def test_random_directions_stay_and_those_of_credit_move() -> None:
    xs, targets, mask = tiny_batch(jax.random.key(1))
    cell = nn.Sequential([eqx.nn.GRUCell(1, 6, key=jax.random.key(0))])
    moved = {}
    for rule in (arms.RandomRTRL(2, None, window=2), etpc.CreditRTRL(2, None, window=2)):
        task = dataclasses.replace(
            TINY, make_model=lambda key: cell, loss_fn=lambda y, t: (y.sum() - t) ** 2
        )
        fresh = arms.make_rule(task, arms.Arm("", rule), cell, xs)
        assert fresh.carry.traces
        carry, wanted = fresh.carry, (targets, arms.full_mask(xs, mask))
        for _ in range(2):  # the first one ends with the only window that has a loss
            (_, carry), _ = fresh.gradient(cell, xs, wanted, fresh.restart(carry))
        restarted = fresh.restart(carry)
        assert bool(restarted.fresh.all())
        assert not any(bool(a.any()) for a in jax.tree.leaves(restarted.traces))
        assert (restarted.shared[0] == carry.shared[0]).all()
        moved[type(rule)] = bool((carry.shared[0] != fresh.carry.shared[0]).any())
    assert moved == {arms.RandomRTRL: False, etpc.CreditRTRL: True}


def test_new_rows_replace_those_of_their_arm() -> None:
    changed = functools.partial(dataclasses.replace, ROW)
    before = [changed(arm="BPTT"), changed(arm="D-RTRL"), changed(arm="BPTT", seed=1)]
    new = [changed(arm="BPTT", score=0.9), changed(arm="TBPTT(2)")]
    found = [(r.arm, r.score) for r in arms.merged(TINY, before, new)]
    assert found == [("BPTT", 0.9), ("TBPTT(2)", 0.5), ("D-RTRL", 0.5)]


@pytest.mark.slow
def test_backpropagation_is_that_of_the_package() -> None:
    model = tiny_model(jax.random.key(0))
    xs, targets, mask = tiny_batch(jax.random.key(1))
    mask = arms.full_mask(xs, mask) + 0.5
    loss_fn = arms.weighted(TINY.loss_fn)
    (loss, _), grads = arms.backpropagation(loss_fn)(model, xs, (targets, mask), jnp.zeros((8, 2)))
    loss_wanted, wanted = etpc.bptt(
        model, xs, (targets, mask), loss_fn, batch_size=8, reduction="sum"
    )
    np.testing.assert_allclose(loss, loss_wanted, rtol=1e-12)
    assert arms.fidelity(grads, wanted)[0] < 1e-12


@pytest.mark.slow
def test_training_learns_and_levels_rise() -> None:
    batch = lambda key, level: tiny_batch(key)
    rises = arms.Curriculum(threshold=0.3, last=5)
    task = dataclasses.replace(TINY, batch=batch, curriculum=rises, updates=120, points=2, rate=0.1)
    (row,) = arms.run(task, [arms.Arm("BPTT", None)], seeds=(0,))
    assert row.curve[0] == 1
    assert row.curve[-1] == 5


def test_a_table_has_a_line_for_each_arm(tmp_path: Path) -> None:
    other = dataclasses.replace(ROW, arm="B", rate=None, past_trained=None)
    rows = [ROW, dataclasses.replace(ROW, seed=1, score=0.7), other]
    lines = arms.table(rows).splitlines()
    assert lines[2:] == [
        "| A | 2 | 0.001 | 0.6 | 0.5 to 0.7 | 1.000 | 0.500 | 0.700 | 0.80 | 0.90 | 2.0 | 2 | 1 |",
        "| B | 1 | - | 0.5 | 0.5 to 0.5 | 1.000 | 0.500 | 0.700 | 0.80 | - | 2.0 | 2 | 1 |",
    ]
    assert arms.lag_table(rows) == ""
    by_lag = [
        dataclasses.replace(ROW, bins=[0, 8, 24], lags=lags)
        for lags in ([0.5, 1.0], [1.0, math.nan])
    ]
    assert arms.lag_table([other, *by_lag]).splitlines() == [
        "| arm | 0 to 8 steps before | 8 to 24 steps before |",
        "| --- | ---: | ---: |",
        "| A | 0.75 | - |",
    ]
    arms.save(rows, tmp_path / "rows.json")
    assert arms.load(tmp_path / "rows.json") == rows
    arms.plot(rows, tmp_path / "rows.svg")
    assert (tmp_path / "rows.svg").stat().st_size > 1000


# --- the page ---


@pytest.mark.parametrize("name", pages.PAGES)
def test_pages_of_results_show_what_was_measured(name: str) -> None:
    text = (DOCS / name).read_text()
    assert text == pages.PAGES[name](), "run `python -m benchmarks.pages`"
    folder = (DOCS / name).parent
    for image in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (folder / image).exists()


def test_the_table_of_scores_is_that_of_the_results() -> None:
    """The table on the page of conclusions has the columns of some rules."""
    rows = re.findall(r"^\| (\w.*) \|$", (DOCS / "tasks.md").read_text(), re.MULTILINE)
    shown = [row.split(" | ")[1:] for row in rows[1:]]
    rules = [
        "BPTT",
        "TBPTT(W)",
        "D-RTRL",
        "D-RTRL, full windows",
        "ES-D-RTRL, decay 0.99",
        "ES-D-RTRL, rank 4",
        "credit, q = 4, rank 4",
        "immediate gradient",
    ]
    tasks = {name: arms.load(DOCS / "tasks" / f"{name}.json") for name in pages.TASKS}
    lines = [line.strip("| ").split(" | ") for line in pages.scores(tasks).splitlines()]
    all_scores = {line[0]: line[1:] for line in lines}
    assert shown == [
        list(column) for column in zip(*(all_scores[rule] for rule in rules), strict=True)
    ]


@pytest.mark.slow
def test_the_answers_of_new_tasks() -> None:
    """Each follows from what was shown, and is asked last."""
    drawn = {}
    for task in (recall, delayed_xor, adding, tmaze_encoder, cue_alif):
        xs, targets, mask = map(np.asarray, jax.jit(task.TASK.batch)(jax.random.key(0)))
        assert xs.shape[:2] == targets.shape == mask.shape == (task.STEPS, task.BATCH)
        assert mask[-1].all()
        assert not mask[: task.STEPS // 2].any()
        assert (targets == targets[-1:]).all()
        assert len(set(targets[-1].tolist())) > 1
        drawn[task] = xs, targets[-1]
    xs, symbols = drawn[recall]
    assert (xs[0].argmax(1) == symbols).all()
    xs, differ = drawn[delayed_xor]
    bits = xs[[delayed_xor.FIRST, delayed_xor.SECOND], :, 0] > 0
    assert ((bits[0] != bits[1]) == differ).all()
    xs, totals = drawn[adding]
    assert (xs[..., 1].sum(0) == 2).all()
    np.testing.assert_allclose((xs[..., 0] * xs[..., 1]).sum(0), totals, rtol=1e-5)
    xs, sides = drawn[tmaze_encoder]
    signs = np.asarray(tmaze_encoder.SEEN)[:2]
    assert ((np.linalg.norm(xs[0, :, None] - signs[None], axis=2)).argmin(1) == sides).all()
    xs, sides = drawn[cue_alif]
    shown = xs[: cue_alif.STEPS // 2].sum(0)
    group = evidence.GROUP
    assert ((shown[:, group : 2 * group].sum(1) > shown[:, :group].sum(1)) == sides).all()


@pytest.mark.slow
def test_the_answers_of_untried_tasks() -> None:
    """Each follows from what was shown, by a loop over steps."""
    drawn = {}
    for task in (flip_flop, interval, ordered_bursts, parity, store_recall, waves):
        arrays = map(np.asarray, jax.jit(task.TASK.batch)(jax.random.key(0)))
        xs, targets, mask = drawn[task] = tuple(arrays)
        assert xs.shape[:2] == targets.shape[:2] == mask.shape == (task.STEPS, task.BATCH)
        assert len(np.unique(targets)) > 1
    xs, bits, _ = drawn[flip_flop]
    kept = np.zeros(bits.shape[1:])
    for x, bit in zip(xs, bits, strict=True):
        kept = np.where(np.abs(x) > 0.5, x > 0, kept)
        assert (kept == bit).all()
    xs, long, mask = drawn[interval]
    pulses = [np.flatnonzero(x > 0.5) for x in xs[..., 0].T]
    assert all(len(pulse) == 2 for pulse in pulses)
    assert [b - a > interval.LIMIT for a, b in pulses] == long[-1].tolist()
    assert (mask == (xs[..., 1] > 0)).all()
    assert mask[-1].all()
    xs, odd, mask = drawn[parity]
    assert (np.cumsum(xs[..., 0], 0) % 2 == odd).all()
    assert (mask == xs[..., 0]).all()
    xs, stored, asked = drawn[store_recall]
    groups = xs.reshape(*xs.shape[:2], 4, -1).sum(3)
    store = groups[..., 2] > 0
    shown = [(groups[..., n] * store).sum(0) for n in (0, 1)]
    assert ((shown[1] > shown[0]) == stored[-1]).all()
    assert not (groups[..., :2].sum(2) * asked).any()
    assert ((groups[..., 3] > 0) <= (asked > 0)).all()
    assert (asked.sum(0) == store_recall.PART).all()
    xs, label, mask = drawn[ordered_bursts]
    slots = np.asarray(ordered_bursts.slots_of_classes())
    assert len({tuple(row) for row in slots}) == ordered_bursts.CLASSES
    assert ((slots >= 0).sum(1) == ordered_bursts.PART).all()
    t, begins = np.arange(ordered_bursts.STEPS), np.arange(8, 20)[:, None, None]
    since = t[:, None] - begins - ordered_bursts.BURST * slots[:, None, None]
    shown = (since >= 0) & (since < ordered_bursts.BURST)  # [classes, begins, steps, channels]
    spikes = xs[..., : ordered_bursts.CHANNELS]
    found = np.einsum("knti,tbi->bkn", shown, spikes).max(2).argmax(1)
    assert (found == label[-1]).mean() > 0.9
    assert (mask.sum(0) == ordered_bursts.ASK).all()
    xs, values, mask = drawn[waves]
    off = xs[1:, :, 0] - values[:-1]
    heights = np.abs(values).max(0)
    assert 0.3 < (off.std(0) / heights).mean() < 0.7
    assert not mask[: waves.STEPS // 2].any()


# --- suggestions ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_suggestion_is_trained_as_an_arm_is() -> None:
    """With the same data, weights, and clipped gradients: an arm at that rate has the same scores."""
    task = dataclasses.replace(memory_chain.TASK, updates=6, points=3, test_batches=1)
    record = {"rule": "D_RTRL(window=9, backprop='full')", "rate": 3.0}
    arm, done = suggested.arm_of(record["rule"]), dict[str, list[float]]()
    columns = suggested.columns("memory_chain", task, record, done, 2, tuning=1)
    best, kept = columns["suggested"][1], columns["kept"][1]
    for scores, tune in ((best, True), (kept, False)):
        tried = task if tune else dataclasses.replace(task, rate=3 * task.rate)
        rows = arms.run(tried, [arm], range(2), tune=tune)
        assert scores == [row.score for row in rows if row.arm == arm.name]
    assert [*done] == ["D-RTRL, full windows, tuned", f"{arm.name}, x 3", f"{arm.name}, tuned"]
    assert suggested.columns("memory_chain", task, record, done, 2, tuning=1) == columns


def test_a_rule_is_found_by_the_name_that_it_is_suggested_by() -> None:
    for rule in (etpc.D_RTRL(window=3, backprop="full", lookback=8), etpc.CreditRTRL(4, rank=4)):
        assert suggested.arm_of(str(rule)).rule == rule
    arm = suggested.arm_of("TBPTT(1), RMSprop")
    assert arm.rule == etpc.TBPTT(1)
    gradient, start = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    moved = arm.optimiser(0.1).update(gradient, arm.optimiser(0.1).init(start))[0]
    assert jnp.allclose(moved["w"], -0.1 / jnp.sqrt(0.1), rtol=1e-4)


def test_what_is_within_the_seeds() -> None:
    columns: dict[str, Any] = {"suggested": ["D-RTRL", [1.0, 0.99]], "kept": [3.0, [0.5, 0.51]]}
    columns |= {"best": ["full", [1.0, 1.0]]}
    record = {"unit": "accuracy", "scores": columns}
    suggested.brought_up_to_date("memory_chain", record)
    assert len(columns["BPTT"][1]) == 10
    assert record["within"]
    assert not record["within_kept"]
    assert suggested.is_within([0.5, 0.51], [1.0, 1.0], "bits lost")
    assert not suggested.is_within([], [1.0, 1.0], "accuracy")


def test_a_task_is_asked_about_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def advice(spent: float) -> Any:
        row = types.SimpleNamespace(name="D_RTRL()", rate=3.0)
        asked.append(spent)
        headline = "D_RTRL() at 3 times the rate: ahead of 2 of 8 other rules that have trained"
        go_on = lambda more: advice(spent + more)
        return types.SimpleNamespace(
            headline=headline, rows=[None, row], decided=False, go_on=go_on
        )

    monkeypatch.setattr(suggested, "suggestion", lambda task, budget: advice(budget))
    found: dict[str, Any] = {"120": {}, "600": {}}
    suggested.ask("memory_chain", memory_chain.TASK, found, (120, 600))
    suggested.ask("memory_chain", memory_chain.TASK, found, (120, 600))
    assert asked == [120, 600]
    records = [found[budget]["memory_chain"] for budget in found]
    assert [(record["rule"], record["rate"]) for record in records] == [("D_RTRL()", 3.0)] * 2


def test_a_rate_is_chosen_by_several_seeds(monkeypatch) -> None:
    """Other ones than those of the scores; a training that diverges is the worst."""
    task, seen = memory_chain.TASK, []

    def trained(learner, seed, rate, measure, chunk):
        seen.append(seed)
        losses = {1.0: 0.5, 1 / 3: 0.4 + (seed - 100) / 5, 3.0: math.nan if seed == 104 else 0.0}
        return types.SimpleNamespace(loss=losses[rate / task.rate], level=0)

    monkeypatch.setattr(arms, "trained", trained)
    learner = types.SimpleNamespace(task=task)
    assert arms.tuned(learner, None, 1) == 3 * task.rate
    assert seen == [100] * 3
    assert arms.tuned(learner, None, 1, 5) == task.rate
    assert {*seen} == {*range(100, 105)}


def test_the_tasks_that_are_asked_about() -> None:
    folder = Path(suggested.__file__).parent
    names = suggested.ALL
    assert all((folder / f"{name}.py").exists() for name in names)
    assert {path.stem for path in suggested.SCORES.glob("*.json")} == set(names)


def test_the_page_of_suggestions() -> None:
    columns = {
        "suggested": ["D_RTRL()", [0.9, 0.8]],
        "kept": [1 / 3, [0.5, 0.5]],
        "best": ["full", [0.95, 0.9]],
        "BPTT": ["BPTT", [1]],
    }
    one = dict(task="a", decided=True, within=True, within_kept=False, text="said", scores=columns)
    page = suggested.page({"120": {"a": one}})
    row = "| a | yes, **no** | D_RTRL() (decided) | 0.850 ± 0.071 | 0.500 ± 0.000 (x 0.33) | full |"
    assert f"{row} 0.925 ± 0.035 | 1.000 ± 0.000 |" in page.splitlines()
    said = "On 0 of 1 tasks the suggested rule is within the seeds at the suggested rate; on 1 at"
    assert said in page
    assert "Decided are 1, of which 0 are within the seeds." in page


def test_the_pages_have_the_suggestions_of_the_record() -> None:
    record = json.loads((DOCS / "suggested.json").read_text())
    for tasks in record["asked"].values():
        assert {*tasks} == {*suggested.ALL}
        for name, found in tasks.items():
            again = json.loads(json.dumps(found))
            suggested.brought_up_to_date(name, again)
            assert again == found
            columns = found["scores"]
            counts = [len(columns[kind][1]) for kind in ("suggested", "kept", "best")]
            if found not in suggested.scored(tasks):
                assert counts == [0, 0, 0]
                continue
            assert counts == ([0, 0, 10] if found["rate"] is None else [10, 10, 10])
            assert columns["best"][0] == suggested.best_of(suggested.scores_of(name), found["unit"])
        assert suggested.table(tasks) in (DOCS / "choose.md").read_text()
    assert suggested.page(record["asked"]) == (DOCS / "tasks" / "suggested.md").read_text()
