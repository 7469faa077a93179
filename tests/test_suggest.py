"""`etpc.suggest`: what it measures is what an independent reference gives, and the advice follows from it."""

import io
import itertools
import json
import math
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc import _suggest
from etpc._measured import Batch, Measurement, Online, Reverse
from etpc._suggest import Candidate
from etpc._trial import Trial
from tests.helpers import loss, normal, weights

T, B, I, N = 32, 3, 2, 4


class Recurrent(eqx.Module):
    into: jax.Array
    back: jax.Array

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, x, h):
        h = jnp.tanh(0.8 * h + self.into @ x + self.back @ h)
        return h, h


class Independent(eqx.Module):
    """Units that influence only themselves."""

    into: jax.Array
    leak: jax.Array

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, x, h):
        h = jnp.tanh(self.leak * h) + self.into @ x
        return h, h


class Begins(eqx.Module):
    """Its initial state is learned."""

    first: jax.Array
    cell: Recurrent

    def init_state(self):
        return jnp.sin(self.first)

    def __call__(self, x, h):
        return self.cell(x, h)


MODEL = Recurrent(weights(N, I, seed=1), weights(N, N, seed=2))
LEARNED = Begins(normal(N, seed=3), MODEL)
XS, TARGETS = normal(T, B, I, seed=4), normal(T, B, N, seed=5)
OPTIONS = dict(batch_size=B)


def batch_of(model=MODEL, steps=T, **options):
    settings = {name: options.pop(name) for name in ("every", "optimiser") if name in options}
    data = XS[:steps], TARGETS[:steps]
    return Batch(Trial(model, *data, loss, **{"batch_size": B, **options}), **settings)


def online(batch, rule, model=MODEL):
    return Online(batch, etpc.compile(model, rule, inputs=XS[0, 0], batch_size=B))


def gradient_from(model, first, weight):
    """By `jax.grad`: nothing passes the state before step `first`."""

    def total(model):
        def one_example(*data):
            def step(h, step_data):
                t, x, target, weight = step_data
                h = jnp.where(t == first, jax.lax.stop_gradient(h), h)
                y, h = model(x, h)
                return h, weight * loss(y, target)

            return jax.lax.scan(step, model.init_state(), (jnp.arange(T)[:steps], *data))[1].sum()

        steps = len(weight)
        return jax.vmap(one_example, in_axes=1)(XS[:steps], TARGETS[:steps], weight).mean()

    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(jax.jit(jax.grad(total))(model))])


def flat(tree):
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)])


# --- what is measured -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", [MODEL, LEARNED], ids=["given", "learned"])
@pytest.mark.parametrize("steps", [T, 29])
def test_the_parts_of_bptt_and_of_rtrl(model, steps):
    """By how far they reach back; 29 steps are not whole windows, and one example ends early."""
    mask = np.ones((steps, B)) * np.array([1.0, 0.5, 2.0])
    mask[20:, 1] = 0
    batch = batch_of(model, steps, mask=mask)
    assert (batch.window, batch.count) == ((4, 8) if steps == T else (3, 10))
    last = (batch.count - 1) * batch.window
    late = mask * (np.arange(steps) >= last)[:, None]
    assert batch.lags[0] == (0, batch.window)
    assert batch.lags[-1][1] == last
    firsts = [first * batch.window or -1 for first in batch.firsts]
    wanted = [gradient_from(model, first, late) for first in firsts]
    assert min(np.linalg.norm(a - b) for a, b in itertools.pairwise(wanted)) > 1e-9
    for way in (Reverse(batch), online(batch, etpc.RTRL(window=batch.window), model)):
        np.testing.assert_allclose(flat(way.gradient()), gradient_from(model, -1, mask), rtol=1e-9)
        for part, reference in zip(way.gradients_by_reach(), wanted, strict=True):
            np.testing.assert_allclose(flat(part), reference, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_cosines_by_lag():
    batch = batch_of()
    program = etpc.compile(MODEL, inputs=XS[0, 0])
    leaves = program.plan.analysis.step.model_leaves
    reference = Measurement(Reverse(batch), leaves)
    assert batch.lags == [(0, 4), (4, 12), (12, 28)]
    known = {
        etpc.RTRL(window=4): [1, 1, 1],
        etpc.TBPTT(8, every=4): [1, 0, 0],
        etpc.TBPTT(16, every=4): [1, 1, 0],
        etpc.TBPTT(1): [0, 0, 0],
    }
    for rule, by_lag in known.items():
        _, found = Measurement(online(batch, rule), leaves).cosines(reference)
        np.testing.assert_allclose(found, by_lag, atol=1e-9)
    behind = online(batch, etpc.D_RTRL(window=4, lookback=8))
    whole, found = Measurement(behind, leaves).cosines(reference)
    np.testing.assert_allclose(found[0], 1, atol=1e-9)
    assert 0.1 < found[1] < 0.999
    assert 0.5 < whole < 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("model", [MODEL, LEARNED], ids=["given", "learned"])
def test_the_parts_of_truncated_bptt(model):
    """Its windows look back: where a part of the past begins, there are no steps behind them."""
    batch = batch_of(model)
    last = (batch.count - 1) * batch.window
    late = np.ones((T, B)) * (np.arange(T) >= last)[:, None]
    way = online(batch, etpc.TBPTT(8, every=batch.window), model)
    for first, part in zip(batch.firsts, way.gradients_by_reach(), strict=True):
        wanted = gradient_from(model, max(first * batch.window, T - 8), late)
        np.testing.assert_allclose(flat(part), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_training_is_that_of_a_loop():
    optimiser = optax.adam(1e-2)
    batch = batch_of(optimiser=optimiser)
    program = etpc.compile(MODEL, etpc.D_RTRL(window=4), inputs=XS[0, 0])
    ways = {
        Reverse(batch): lambda m: etpc.bptt(m, XS, TARGETS, loss, batch_size=B),
        Online(batch, program): lambda m: _gradient_of(program, m),
    }
    for way, gradient in ways.items():
        found = [way.update() for _ in range(3)]
        model, opt_state, wanted = MODEL, optimiser.init(MODEL), []
        for _ in range(3):
            value, grads = gradient(model)
            changes, opt_state = optimiser.update(grads, opt_state, model)
            model = eqx.apply_updates(model, changes)
            wanted.append(float(value))
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
        np.testing.assert_allclose(flat(way.trained[0]), flat(model), rtol=1e-9)
        np.testing.assert_array_equal(flat(way.batch.arrays), flat(MODEL))
        way.move_to(way.trained)
        np.testing.assert_allclose(flat(way.gradient()), T * flat(gradient(model)[1]), rtol=1e-9)


def _gradient_of(program, model):
    (value, _), grads = program.value_and_grad(loss)(model, XS, TARGETS, program.init(B))
    return value, grads


@pytest.mark.slow
def test_directions_follow_the_credit_at_other_weights():
    other = jax.tree.map(lambda a: 1.5 * a[::-1], MODEL), None
    batch = batch_of()
    one = online(batch, etpc.CreditRTRL(1, None, window=4))
    before = one.carry.shared
    one.move_to(other)
    assert any(jnp.any(a != b) for a, b in zip(before, one.carry.shared, strict=True))
    leaves = one.program.plan.analysis.step.model_leaves
    reference, every = Reverse(batch), online(batch, etpc.CreditRTRL(N, None, window=4))
    for way in (reference, every):
        way.move_to(other)
    found = Measurement(every, leaves).cosines(Measurement(reference, leaves))[1]
    np.testing.assert_allclose(found, 1, atol=1e-6)  # as many as there are states keep all of it


@pytest.mark.slow
def test_training_every_few_steps_is_that_of_online():
    """Also where no loss counts in some windows: there nothing moves."""
    optimiser = optax.adam(1e-2)
    mask = np.ones((T, B))
    mask[8:16] = 0
    batch = batch_of(optimiser=optimiser, every=4, mask=mask)
    program = etpc.compile(MODEL, inputs=XS[0, 0])
    way = Online(batch, program)
    learner = etpc.online(program, loss, optimiser, every=4)
    model, (opt_state, carry) = MODEL, learner.init(MODEL, B)
    for _ in range(2):
        arguments = model, opt_state, learner.restarted(carry), XS, TARGETS
        model, opt_state, carry, losses = learner.update(*arguments, mask=mask)
        np.testing.assert_allclose(way.update(), losses.sum() / 6, rtol=1e-9)
    np.testing.assert_allclose(flat(way.trained[0]), flat(model), rtol=1e-9)


# --- what is suggested ----------------------------------------------------------------------------


def test_where_all_is_exact_there_is_nothing_to_choose(capsys):
    model = Independent(weights(N, I, seed=1), jnp.linspace(0.2, 0.9, N))
    suggestion = etpc.suggest(model, XS, TARGETS, loss, **OPTIONS)
    assert suggestion.rule == etpc.D_RTRL()
    assert [row.name for row in suggestion.rows] == ["BPTT", "D_RTRL()"]
    assert suggestion.reasons == (_suggest.EXACT,)
    assert suggestion.left_out == ()
    np.testing.assert_allclose(suggestion.rows[1].by_lag, 1, atol=1e-9)
    assert not capsys.readouterr().err  # a bar of progress is for terminals


@pytest.fixture(scope="module")
def measured():
    return etpc.suggest(MODEL, XS, TARGETS, loss, **OPTIONS, budget=1e3, optimiser=optax.sgd(1e-3))


@pytest.mark.slow
def test_a_network_from_which_influence_escapes(measured):
    rules = [row.rule for row in measured.rows]
    assert rules[:2] == [None, etpc.D_RTRL()]
    assert {etpc.TBPTT(1), etpc.RTRL(window=4), etpc.CreditRTRL(window=4)} < {*rules}
    assert measured.rule in rules[1:]
    by_rule = {row.rule: row for row in measured.rows}
    best = max(row.mean_cosine for row in measured.rows[1:])
    assert by_rule[measured.rule].mean_cosine > best - _suggest.NEAR
    assert "The cosines by lag are those at the weights that" in measured.reasons[0]
    assert measured.reasons[1] == "D-RTRL ignores hidden state -> .back -> hidden state."
    untrained = etpc.suggest(MODEL, XS, TARGETS, loss, **OPTIONS, budget=1e-9).rows[1]
    assert untrained.cosine == pytest.approx(by_rule[etpc.D_RTRL()].cosine)
    assert untrained.by_lag != pytest.approx(by_rule[etpc.D_RTRL()].by_lag, abs=1e-6)
    np.testing.assert_allclose(by_rule[etpc.RTRL(window=4)].by_lag, 1, atol=1e-9)
    assert len({len(row.losses) for row in measured.rows}) == 1
    assert all(row.losses[-1] < row.losses[0] for row in measured.rows)
    assert etpc.compile(MODEL, measured.rule, inputs=XS[0, 0]).algorithm == measured.rule


@pytest.mark.slow
def test_as_text_and_as_json(measured):
    lines = str(measured).splitlines()
    assert lines[0].startswith("suggested: ")
    assert lines[2].split()[-1] == "loss"
    assert len(lines) == 5 + len(measured.rows) + len(measured.reasons)
    record = json.loads(json.dumps(measured.as_dict()))
    assert record["schema"] == "etpc-suggestion/1"
    assert record["rule"] == str(measured.rule)
    assert [row["name"] for row in record["rows"]] == [row.name for row in measured.rows]
    assert record["rows"][1]["by_lag"] == [*measured.rows[1].by_lag]


def test_numbers_that_are_not_finite():
    row = candidate(FULL, 1, [math.nan, 0.5], [2, math.nan])
    found = etpc.Suggestion(FULL, (row,), ((0, 4), (4, 8)), (), ())
    (record,) = json.loads(json.dumps(found.as_dict(), allow_nan=False))["rows"]
    assert (record["by_lag"], record["loss"]) == ([None, 0.5], None)
    assert record["losses"] == [2, *[None] * 11]
    assert str(found).splitlines()[-1].split()[-3:] == ["-", "0.50", "inf"]


@pytest.mark.slow
def test_limits():
    whole = etpc.compile(MODEL, inputs=XS[0, 0]).memory(B).total
    found = etpc.suggest(MODEL, XS, TARGETS, loss, **OPTIONS, memory=whole, budget=1e-9)
    assert found.rule == etpc.D_RTRL()
    found = etpc.suggest(MODEL, XS, TARGETS, loss, **OPTIONS, memory=10)
    assert found.rule is None
    assert f"D_RTRL(), which carries {whole:,} bytes" in found.left_out
    assert [row.name for row in found.rows] == ["BPTT"]
    assert any("No rule fits memory=10." in text for text in found.reasons)
    assert any("Recurrence of each unit with itself alone" in text for text in found.reasons)
    assert str(found).startswith("no rule fits\n")
    found = etpc.suggest(MODEL, XS, TARGETS, loss, **OPTIONS, time=1e-9, budget=1e-9)
    assert found.rule is None
    assert any("No rule fits time=1e-09. The fastest is D_RTRL()" in t for t in found.reasons)


@pytest.mark.slow
def test_an_exact_rule_that_is_too_large_gives_way():
    model = Independent(weights(N, 40, seed=1), jnp.linspace(0.2, 0.9, N))
    xs = normal(T, B, 40, seed=6)
    memory = etpc.compile(model, etpc.ES_D_RTRL(rank=4), inputs=xs[0, 0]).memory(B).total - 1
    assert memory > etpc.compile(model, etpc.ES_D_RTRL(decay=0.9), inputs=xs[0, 0]).memory(B).total
    found = etpc.suggest(model, xs, TARGETS, loss, **OPTIONS, memory=memory)
    assert [row.name for row in found.rows] == ["BPTT", "ES_D_RTRL(decay=0.99)", "TBPTT(1)"]
    assert found.rule == etpc.ES_D_RTRL(decay=0.99)
    assert len(found.left_out) == 2


def test_weights_without_a_trace():
    model = Independent(weights(N, I, seed=1), jnp.linspace(0.2, 0.9, N))
    chosen = lambda model: model.leak
    found = etpc.suggest(model, XS, TARGETS, loss, **OPTIONS, weights=chosen, budget=1e-9)
    assert found.reasons[0] == "Under D-RTRL these learn from the current step alone: .into."


@pytest.mark.slow
def test_the_budget():
    found = etpc.suggest(MODEL, XS, TARGETS, loss, **OPTIONS, budget=1e-9)
    assert [row.name for row in found.rows] == ["BPTT", "D_RTRL()"]
    assert found.rule == etpc.D_RTRL()
    (left,) = found.left_out
    assert left.startswith("D_RTRL(window=4, backprop='full'), ")
    assert left.endswith("as the budget of 1e-09 s was spent")


@pytest.mark.slow
def test_an_interrupt_gives_what_was_measured(monkeypatch):
    def interrupt(done, count, name):
        if count and done == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(_suggest, "show", interrupt)
    stop = 1
    found = etpc.suggest(MODEL, XS, TARGETS, loss, **OPTIONS)
    assert found.rule == etpc.D_RTRL()
    assert found.left_out == ("what was left when it was interrupted",)
    stop = 0
    with pytest.raises(KeyboardInterrupt):
        etpc.suggest(MODEL, XS, TARGETS, loss, **OPTIONS)


@pytest.mark.slow
def test_a_terminal_gets_a_bar_that_goes(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    etpc.suggest(MODEL, XS, TARGETS, loss, **OPTIONS, budget=1e-9)
    shown = terminal.getvalue().split("\r\x1b[K")
    assert shown[1].endswith("] D_RTRL()")
    assert shown[-1] == ""


def candidate(rule, ms, by_lag, losses=(), updates=12):
    """`losses`: the first and the last, or none."""
    losses = [float(losses[n > 0]) for n in range(updates)] if losses else []
    return Candidate(str(rule), rule, float(ms), 1, 0.5, tuple(by_lag), False, tuple(losses))


FULL, CREDIT = etpc.D_RTRL(backprop="full"), etpc.CreditRTRL()
BLOCKS = etpc.TBPTT(8, every=4)


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([candidate(FULL, 1, [0.9, 0.6]), candidate(CREDIT, 9, [1.0, 0.9])], CREDIT),
        ([candidate(FULL, 1, [0.9, 0.9]), candidate(CREDIT, 9, [1.0, 0.88])], FULL),
        ([candidate(FULL, 1, [0.9, math.nan]), candidate(CREDIT, 9, [0.92, math.nan])], FULL),
        ([candidate(FULL, 1, [0.9], [2, 1]), candidate(CREDIT, 9, [1.0], [2, 0.5])], CREDIT),
        ([candidate(FULL, 1, [0.9], [2, 1]), candidate(CREDIT, 9, [1.0], [2, 1.5])], FULL),
        ([candidate(FULL, 1, [0.8], [2, 1]), candidate(CREDIT, 9, [1.0], [2, 1.04])], CREDIT),
        ([candidate(FULL, 1, [0.8], [2, 1]), candidate(CREDIT, 9, [1.0], [2, math.nan])], FULL),
        ([candidate(BLOCKS, 1, [1.0, 0.0]), candidate(CREDIT, 9, [0.6, 0.2])], CREDIT),
        ([candidate(BLOCKS, 1, [1.0, 0.0]), candidate(CREDIT, 9, [0.6, 0.01])], BLOCKS),
        ([candidate(BLOCKS, 1, [1.0, math.nan]), candidate(CREDIT, 9, [0.6, math.nan])], BLOCKS),
    ],
)
def test_the_fastest_of_the_best(rows, best):
    found, why = _suggest._best(rows)
    assert found.rule == best
    assert why


def test_a_short_training_says_nothing():
    rows = [candidate(FULL, 1, [0.8], [2, 1], 9), candidate(CREDIT, 9, [1.0], [2, 1.5], 9)]
    found, why = _suggest._best(rows)
    assert found.rule == CREDIT
    assert "9 updates of each, too few to compare losses" in why[0]


def test_a_training_that_needs_no_memory_is_told():
    rows = [candidate(FULL, 1, [0.9], [2, 1]), candidate(etpc.TBPTT(1), 1, [0.0], [2, 1])]
    assert any("TBPTT(1), trains as well" in text for text in _suggest._best(rows)[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(memory=0), "memory must be a number above zero, not 0"),
        (dict(time=-1.0), "time must be a number above zero, not -1"),
        (dict(budget=0.0), r"budget must be a number above zero, not 0\.0"),
        (dict(every=0), "every must be an int >= 1, not 0"),
        (dict(mask=np.zeros((T, B))), "mask is zero everywhere"),
        (dict(batch_size=None), r"batch_size= is not given.*batch_size=3"),
    ],
)
def test_wrong_arguments(options, words):
    with pytest.raises(etpc.InputError, match=words):
        etpc.suggest(MODEL, XS, TARGETS, loss, **{**OPTIONS, **options})


def test_auto_is_gone():
    with pytest.raises(AttributeError, match=r"etpc\.suggest"):
        etpc.Auto  # noqa: B018
