"""`etpc.suggest`: what it measures is what an independent reference gives, and the advice follows from it."""

import functools
import io
import itertools
import json
import math
import pickle
import re
import sys
import types
import zlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc import nn
from etpc.checking import _race
from etpc.checking import suggest as _suggest
from etpc.checking._data import Data
from etpc.checking._lags import Batch, Measurement, Online, Reverse
from etpc.checking._trial import Trial
from tests.helpers import loss, normal, weights
from tests.marks import few
from tests.zoo.check import model

T, B, I, N = 32, 3, 2, 4


@functools.partial(model, start=jnp.zeros(N))
def Recurrent(x, h, into, back):
    h = jnp.tanh(0.8 * h + into @ x + back @ h)
    return h, h


@functools.partial(model, start=jnp.zeros(N))
def Independent(x, h, into, leak):
    """Units that influence only themselves."""
    h = jnp.tanh(leak * h) + into @ x
    return h, h


class Begins(eqx.Module):
    """Its initial state is learned."""

    first: jax.Array
    cell: eqx.Module

    def init_state(self):
        return jnp.sin(self.first)

    def __call__(self, x, h):
        return self.cell(x, h)


MODEL = Recurrent(weights(N, I, seed=1), weights(N, N, seed=2))
LEARNED = Begins(normal(N, seed=3), MODEL)
XS, TARGETS = normal(T, B, I, seed=4), normal(T, B, N, seed=5)
LEAKY = Independent(weights(N, I, seed=1), jnp.linspace(0.2, 0.9, N))


def suggest(model=MODEL, xs=XS, targets=TARGETS, **options):
    return etpc.suggest(model, xs, targets, loss, **{"batch_size": B, **options})


def batch_of(model=MODEL, steps=T, **options):
    settings = {name: options.pop(name) for name in ("every", "optimiser") if name in options}
    data = XS[:steps], TARGETS[:steps]
    trial = Trial(model, *data, loss, **{"batch_size": B, **options})
    return _suggest._batch(trial, **{"every": None, "optimiser": None, **settings})


def trained(way, updates, rate=1.0, mask=None):
    """Weights after some updates on one batch, and the loss before each."""
    batch, losses = way.batch, []
    data = batch.padded(XS, TARGETS, jnp.ones((T, B)) if mask is None else jnp.asarray(mask))
    training = (*batch.start, way.first)
    for _ in range(updates):
        training, loss = way.train(training, data, rate)
        losses.append(loss)
    return training[0], losses


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
def test_the_parts_of_each_gradient(model, steps):
    """By how far they reach back; 29 steps are not whole windows, and one example ends early."""
    mask = np.ones((steps, B)) * np.array([1.0, 0.5, 2.0])
    mask[20:, 1] = 0
    batch = batch_of(model, steps, mask=mask)
    assert (batch.window, batch.count) == ((4, 8) if steps == T else (3, 10))
    last = (batch.count - 1) * batch.window
    late = mask * (np.arange(steps) >= last)[:, None]
    reaches = sorted((batch.count - reach, batch.count - 1) for reach in batch.reaches)
    wanted = [gradient_from(model, first * batch.window or -1, late) for first, _ in reaches]
    assert min(np.linalg.norm(a - b) for a, b in itertools.pairwise(wanted)) > 1e-9
    for way in (Reverse(batch), online(batch, etpc.RTRL(window=batch.window), model)):
        np.testing.assert_allclose(flat(way.gradient()), gradient_from(model, -1, mask), rtol=1e-9)
        for part, reference in zip(way.reaching(batch.late, reaches), wanted, strict=True):
            np.testing.assert_allclose(flat(part), reference, rtol=1e-9, atol=1e-12)
    if steps != T:
        return
    # The windows of truncated BPTT look back: where a part of the past begins, there are no steps behind them.
    truncated = online(batch, etpc.TBPTT(8, every=batch.window), model)
    for (first, _), part in zip(reaches, truncated.reaching(batch.late, reaches), strict=True):
        wanted = gradient_from(model, max(first * batch.window, steps - 8), late)
        np.testing.assert_allclose(flat(part), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_cosines_by_lag():
    batch = batch_of()
    reference = Measurement(Reverse(batch))
    assert batch.reaches == [1, 2, 4, 8]
    known = {
        etpc.RTRL(window=4): [1, 1, 1],
        etpc.TBPTT(8, every=4): [1, 0, 0],
        etpc.TBPTT(16, every=4): [1, 1, 0],
        etpc.TBPTT(1): [0, 0, 0],
    }
    for rule, by_lag in known.items():
        found = Measurement(online(batch, rule)).lags(reference)
        np.testing.assert_allclose(found, by_lag, atol=1e-9)
    behind = online(batch, etpc.D_RTRL(window=4, lookback=8))
    found = Measurement(behind)
    np.testing.assert_allclose(found.lags(reference)[0], 1, atol=1e-9)
    assert 0.1 < found.lags(reference)[1] < 0.999
    assert 0.5 < found.cosine(reference) < 0.9999


@pytest.mark.slow
def test_directions_follow_the_credit_at_other_weights():
    other = jax.tree.map(lambda a: 1.5 * a[::-1], MODEL), None
    one = online(batch_of(), etpc.CreditRTRL(1, None, window=4))
    before = one.carry.shared
    one.move_to(other)
    assert any(jnp.any(a != b) for a, b in zip(before, one.carry.shared, strict=True))


OPTIMISERS = {
    "adam": optax.adam(1e-2),
    "momo": optax.contrib.momo(),
    "polyak_sgd": optax.polyak_sgd(0.1),
    "reduce_on_plateau": optax.chain(
        optax.sgd(1e-2), optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_every_few_steps_is_that_of_online(name):
    """Also where no loss counts in some windows: there nothing moves."""
    optimiser = OPTIMISERS[name]
    mask = np.ones((T, B))
    mask[8:16] = 0
    batch = batch_of(optimiser=optimiser, every=4, mask=mask)
    program = etpc.compile(MODEL, inputs=XS[0, 0])
    way = Online(batch, program)
    learner = etpc.online(program, loss, optimiser, every=4)
    model, (opt_state, carry) = MODEL, learner.init(MODEL, B)
    found, before = trained(way, 2, mask=mask)
    for value in before:
        arguments = model, opt_state, learner.restarted(carry), XS, TARGETS
        model, opt_state, carry, losses = learner.update(*arguments, mask=mask)
        np.testing.assert_allclose(value, losses.sum() / 6, rtol=1e-9)
    np.testing.assert_allclose(flat(found), flat(model), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("rule", [None, etpc.D_RTRL(window=4)], ids=["BPTT", "D-RTRL"])
def test_training_is_that_of_a_loop(name, rule):
    """Optimisers that ask for the loss get that of the sequence."""
    optimiser = OPTIMISERS[name]
    batch = batch_of(optimiser=optimiser)
    way = Reverse(batch) if rule is None else online(batch, rule)

    def gradient(model):
        if rule is None:
            return etpc.bptt(model, XS, TARGETS, loss, batch_size=B)
        program = way.program
        (value, _), grads = program.value_and_grad(loss)(model, XS, TARGETS, program.init(B))
        return value, grads

    model, opt_state = MODEL, optimiser.init(MODEL)
    update = optax.with_extra_args_support(optimiser).update
    found, before = trained(way, 3, rate=0.5)
    for loss_before in before:
        value, grads = gradient(model)
        changes, opt_state = update(grads, opt_state, model, value=value)
        model = eqx.apply_updates(model, jax.tree.map(lambda a: 0.5 * a, changes))
        np.testing.assert_allclose(loss_before, value, rtol=1e-9)
    np.testing.assert_allclose(flat(found), flat(model), rtol=1e-9)
    np.testing.assert_array_equal(flat(batch.arrays), flat(MODEL))
    way.move_to((found, None))
    np.testing.assert_allclose(flat(way.gradient()), T * flat(gradient(model)[1]), rtol=1e-9)


# --- what is suggested ----------------------------------------------------------------------------


def test_where_all_is_exact_there_is_nothing_to_choose(capsys):
    suggestion = suggest(LEAKY)
    assert suggestion.rule == etpc.D_RTRL()
    assert suggestion.decided
    assert [row.name for row in suggestion.rows] == ["BPTT", "D_RTRL()"]
    assert suggestion.reasons == (_suggest.EXACT,)
    assert suggestion.left_out == ()
    np.testing.assert_allclose(suggestion.rows[1].by_lag, 1, atol=1e-9)
    assert not capsys.readouterr().err  # a bar of progress is for terminals


def ticking(monkeypatch, tick=0.01):
    """A clock that goes on whenever it is read."""
    reads = itertools.count()
    for module in (_suggest, _race):
        monkeypatch.setattr(module, "monotonic", lambda: tick * next(reads))


def follow(key):
    """The mean of the last inputs is asked."""
    xs = jax.random.normal(key, (T, B, I))
    return xs, jnp.broadcast_to(jnp.tanh(jnp.cumsum(xs, 0)[..., :1] / 4), (T, B, N))


RULES = [etpc.D_RTRL(), etpc.RTRL(window=4), etpc.TBPTT(1)]
FEW = [etpc.D_RTRL(), etpc.TBPTT(1)]


def raced(budget, data=follow, model=MODEL, **options):
    usual = dict(batch_size=B, optimiser=optax.adam(1e-2), score=lambda y, t: -loss(y, t))
    return etpc.suggest(model, data, loss, budget=budget, **(usual | options))


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        ticking(patch)
        return raced(30.0, rules=RULES), raced(15.0, rules=RULES).go_on(15.0)


@pytest.mark.slow
def test_a_network_from_which_influence_escapes(measured):
    found, _ = measured
    assert [row.rule for row in found.rows] == [None, *RULES]
    bptt, _, exact, now = found.rows
    assert [row.exact for row in found.rows] == [True, False, True, False]
    assert bptt.losses == exact.losses  # they train as one
    assert (bptt.curve, bptt.rate) == (exact.curve, exact.rate)
    assert now.by_lag == (0, 0, 0)
    np.testing.assert_allclose(exact.by_lag, 1, atol=1e-9)
    assert "D-RTRL ignores hidden state -> .back -> hidden state." in found.reasons
    for row in found.rows:
        assert row.updates == len(row.losses) >= 16
        assert row.score > row.curve[0][2]
        wanted = [0, *(16 * B << n for n in range(len(row.curve) - 1))]
        assert [n for n, _, _ in row.curve] == wanted
        assert np.mean(row.losses[-8:]) < row.losses[0]
    assert found.rule in RULES
    assert any("the best scores on what is held out are" in text for text in found.reasons)
    assert any(" has a mean cosine by lag of " in text for text in found.reasons)
    assert etpc.compile(MODEL, found.rule, inputs=XS[0, 0]).algorithm == found.rule


@pytest.mark.slow
def test_going_on_is_as_one_longer_search(measured):
    whole, parts = measured
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert min(one.updates, other.updates) >= 16
        if one.rate == other.rate:
            # Two ways to an exact gradient differ in rounding, and later in more.
            np.testing.assert_allclose(one.losses[:16], other.losses[:16], rtol=1e-6)
            assert [n for n, _, _ in one.curve][:2] == [n for n, _, _ in other.curve][:2]


@pytest.mark.slow
def test_as_text_and_as_json(measured):
    found, _ = measured
    lines = str(found).splitlines()
    assert lines[0].startswith("suggested: ")
    assert lines[2].split()[:5] == ["rule", "rate", "score", "seeds", "updates"]
    assert len(lines) == 5 + len(found.rows) + len(found.reasons) + len(found.left_out)
    record = json.loads(json.dumps(found.as_dict()))
    assert record["schema"] == "etpc-suggestion/1"
    assert record["rule"] == str(found.rule)
    assert record["decided"] == found.decided
    assert str(pickle.loads(pickle.dumps(found))) == str(found)
    assert [row["name"] for row in record["rows"]] == [row.name for row in found.rows]
    assert record["rows"][1]["by_lag"] == [*found.rows[1].by_lag]
    assert record["rows"][1]["updates"] == found.rows[1].updates


def test_numbers_that_are_not_finite():
    row = etpc.Candidate("x", None, 1.0, 1, 0.5, (math.nan, 0.5), False, (2.0, math.nan), 1.0)
    found = etpc.Suggestion(None, (row,), ((0, 4), (4, 8)), (), ())
    (record,) = json.loads(json.dumps(found.as_dict(), allow_nan=False))["rows"]
    assert (record["by_lag"], record["losses"]) == ([None, 0.5], [2, None])
    assert str(found).splitlines()[-1].split()[-2:] == ["-", "0.50"]


@pytest.mark.slow
def test_limits():
    whole = etpc.compile(MODEL, inputs=XS[0, 0]).memory(B).total
    found = suggest(memory=whole, budget=1e-9)
    assert [row.rule for row in found.rows] == [None, etpc.D_RTRL()]
    found = suggest(memory=10)
    assert found.rule is None
    assert f"D_RTRL(), which carries {whole:,} bytes" in found.left_out
    assert [row.name for row in found.rows] == ["BPTT"]
    assert any("No rule fits memory=10." in text for text in found.reasons)
    assert any("Recurrence of each unit with itself alone" in text for text in found.reasons)
    assert str(found).startswith("suggested: no rule\n")
    found = suggest(time=1e-9, budget=1e-9)
    assert found.rule is None
    assert any("No rule fits time=1e-09. The fastest is D_RTRL()" in t for t in found.reasons)


@pytest.mark.slow
def test_an_exact_rule_that_is_too_large_gives_way(monkeypatch):
    ticking(monkeypatch, 0.1)
    model = Independent(weights(N, 40, seed=1), jnp.linspace(0.2, 0.9, N))
    xs = normal(T, B, 40, seed=6)
    memory = etpc.compile(model, etpc.ES_D_RTRL(rank=4), inputs=xs[0, 0]).memory(B).total - 1
    assert memory > etpc.compile(model, etpc.ES_D_RTRL(decay=0.9), inputs=xs[0, 0]).memory(B).total
    found = suggest(model, xs, memory=memory, budget=50.0)
    assert [row.name for row in found.rows] == [
        *("BPTT", "ES_D_RTRL(decay=0.99)", "TBPTT(1)", _suggest.BASELINE)
    ]
    assert len(found.left_out) == 2


@pytest.mark.slow
def test_what_is_exact_is_taken_unless_another_rule_is_ahead(monkeypatch):
    """With an optimiser approximations train too."""
    ticking(monkeypatch)
    found = raced(8.0, model=LEAKY, rules=["d_rtrl", etpc.TBPTT(1)])
    assert [row.name for row in found.rows] == ["BPTT", "D_RTRL()", "TBPTT(1)"]
    assert found.rows[0].losses == found.rows[1].losses
    assert found.rule == etpc.D_RTRL()
    assert found.decided == (_suggest.UNLESS not in found.reasons)


def test_weights_without_a_trace():
    found = suggest(LEAKY, weights=lambda model: model.leak, budget=1e-9)
    assert found.reasons[0] == "Under D-RTRL these learn from the current step alone: .into."


@pytest.mark.slow
def test_the_budget():
    found = suggest(budget=1e-9)
    assert [row.name for row in found.rows] == ["BPTT", "D_RTRL()"]
    assert found.rule is None
    assert any("D_RTRL() is the only rule that was measured" in text for text in found.reasons)
    (left,) = found.left_out
    assert left.startswith("ES_D_RTRL(decay=0.99), TBPTT(1), ")
    assert "as the budget of 1e-09 s was spent; to compile them takes about " in left


@pytest.mark.slow
def test_an_interrupt_gives_what_was_measured(monkeypatch):
    def interrupt(done, count, name):
        if count and done == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(_suggest, "show", interrupt)
    for stop in (1, 2):
        found = suggest()
        assert len(found.rows) == 1 + stop
        assert found.rule is None
        assert found.left_out == ("what was left when it was interrupted",)
    assert len(found.go_on(1e-9).rows) == 3
    stop = 0
    with pytest.raises(KeyboardInterrupt):
        suggest()


@pytest.mark.slow
def test_an_interrupt_of_the_race_keeps_what_was_trained(monkeypatch):
    ticking(monkeypatch)
    calls = itertools.count()

    def interrupt(done, count, name):
        if next(calls) == 120:
            raise KeyboardInterrupt

    monkeypatch.setattr(_race, "show", interrupt)
    found = raced(1e6, rules=FEW)
    assert sum(row.updates for row in found.rows) > 0
    assert found.left_out == ("what was left when it was interrupted",)
    again = found.go_on(6.0)
    assert again.left_out == ()
    assert again.rows[1].updates > found.rows[1].updates


@pytest.mark.slow
def test_a_terminal_gets_a_bar_that_goes(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    suggest(budget=1e-9)
    shown = terminal.getvalue().split("\r\x1b[K")
    assert shown[1].endswith("] D_RTRL()")
    assert shown[-1] == ""


@pytest.mark.slow
def test_what_diverges_is_said_first(monkeypatch):
    ticking(monkeypatch)

    def step(model, x, h):
        h = 0.5 * h + model.into @ x + 0.1 * model.back @ h
        return h, h

    called = dict(step=step, state=jnp.zeros(N), rules=FEW)
    found = raced(10.0, optimiser=optax.sgd(1e-2), rates=(1.0, 1e300), **called)
    names = re.fullmatch(r"At 1e\+300 times the rate these diverge: (.*)\.", found.reasons[0])
    assert {*names[1].split(", ")} == {"BPTT", "D_RTRL()", "TBPTT(1)"}
    assert found.rows[1].rate == 1
    found = raced(10.0, optimiser=optax.sgd(1e300), **called)
    assert found.rule is None
    assert any("Nothing was learned" in text for text in found.reasons)


def test_arguments_that_are_refused():
    with pytest.raises(TypeError, match=r"suggest takes `\(model, data, loss_fn\)`"):
        etpc.suggest(MODEL, (XS, TARGETS))
    with pytest.raises(ValueError, match="mask= is for xs and targets"):
        etpc.suggest(LEAKY, (XS, TARGETS), loss, mask=jnp.ones((T, B)))
    with pytest.raises(ValueError, match="There is nothing to go on with"):
        etpc.Suggestion(None, (), (), (), ()).go_on(1.0)
    with pytest.raises(ValueError, match="budget must be a number above zero"):
        suggest(LEAKY).go_on(0.0)


ONE_NUMBER = "score must return one number for one example at one step, and returns"
WRONG = [
    *(
        (dict(rates=r), "rates must be finite numbers above zero")
        for r in ([], [1.0, 0.0], [math.inf])
    ),
    (dict(rates=["1.0"]), "rates must be finite numbers above zero"),
    (dict(rates=1.0), r"rates must be a list of numbers, not 1.0. Pass \[1.0\]"),
    (dict(rules="d_rtrl"), r"list of algorithms or their names, not 'd_rtrl'. Pass \['d_rtrl'\]"),
    (dict(rules=etpc.RTRL()), "rules must be a list of algorithms or their names, not RTRL"),
    (dict(rules=[]), "rules is empty. Leave it out"),
    (dict(score="accuracy"), r"score must be a function \(y, target\), not 'accuracy'"),
    (dict(score=lambda y, t: y), rf"{ONE_NUMBER} float\d\d\[4\]. Sum or average"),
    (dict(score=lambda y, t: (y[0], 1.0)), rf"{ONE_NUMBER} \(float\d\d\[\], .*Return one number"),
    (dict(score=lambda y, t: None), f"{ONE_NUMBER} None. It ends without a value"),
    (dict(score=lambda y, t: y[0] + 1j), f"{ONE_NUMBER} complex.* Take its real part"),
]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(("options", "words"), WRONG)
def test_options_that_are_refused_by_name(options, words):
    with pytest.raises((etpc.InputError, etpc.InputTypeError), match=words):
        suggest(LEAKY, **options)


def test_an_error_in_a_score_says_what_it_was_called_with():
    with pytest.raises(TypeError) as caught:
        suggest(LEAKY, score=lambda y, t: jnp.dot(y, t, "precise"))
    assert caught.value.__notes__[0].startswith("etpc called score with y float")


# --- where there is nothing to compare ------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "xs", "words"),
    [
        (MODEL, XS.at[2, 0, 1].set(jnp.nan), "NaN or infinite, as xs[2, 0, 1] is"),
        pytest.param(
            eqx.tree_at(lambda m: m.back, MODEL, MODEL.back.at[1, 0].set(jnp.inf)),
            *(XS, "NaN or infinite, as .back[1, 0] is"),
            marks=pytest.mark.slow,
        ),
        pytest.param(MODEL, 0 * XS, "zero", marks=pytest.mark.slow),
    ],
    ids=["data", "weights", "zero"],
)
def test_a_gradient_of_bptt_that_nothing_can_be_compared_with(model, xs, words):
    found = suggest(model, xs, 0 * TARGETS, optimiser=optax.adam(1e-2))
    assert found.rule is None
    assert [row.name for row in found.rows] == ["BPTT"]
    assert found.reasons[0] == f"No rule can be compared: the gradient of BPTT is {words}."
    assert not any("cosine" in text for text in found.reasons)


@pytest.mark.slow
def test_what_is_exact_is_so_for_any_data():
    """And an input that is masked may be anything."""
    xs, mask = XS.at[2, 0, 1].set(jnp.nan), np.ones((T, B))
    found = suggest(LEAKY, xs)
    assert found.rule == etpc.D_RTRL()
    assert "xs[2, 0, 1]" in found.reasons[0]
    mask[2, 0] = 0
    found = suggest(LEAKY, xs, mask=mask)
    assert found.reasons == (_suggest.EXACT,)


@pytest.mark.slow
def test_a_silent_layer_is_told():
    lif = nn.LIF(N)

    def step(w, x, V):
        return lif(w @ jnp.concatenate([x, lif.spike(V)]), V)

    options = dict(step=step, state=lif.init_state(), budget=1e-9)
    for scale, is_silent in ((1e-6, True), (1e2, False)):
        found = suggest(scale * jnp.ones((N, I + N)), jnp.abs(XS), **options)
        said = "the layer is silent. Scale its weights with `etpc.nn.init_from_data`."
        assert any(said in text for text in found.reasons) == is_silent


@pytest.mark.slow
def test_windows_that_are_longer_than_the_sequence(monkeypatch):
    """There are no lags: the cosine is that of the whole gradient, and is called so."""
    rules = [etpc.D_RTRL(), etpc.D_RTRL(window=T + 1, backprop="full")]
    ticking(monkeypatch)
    found = raced(8.0, every=T + 1, rules=rules)
    assert found.lags == ()
    assert [row.updates > 0 for row in found.rows] == [False, True, True]  # BPTT has none within
    cut = found.rows[1].cosine
    inside = f"with nothing cut inside windows of {T + 1} steps it is 1.00."
    assert f"The cosine of D-RTRL with BPTT is {cut:.2f}; {inside}" in found.reasons


# --- data -----------------------------------------------------------------------------------------


def test_one_example_of_four_is_held_out():
    mask = np.ones((T, 9)) * np.arange(1, 10)
    mask[:, 2] = 0
    data = Data((np.zeros((T, 9, I)), np.zeros((T, 9)), mask), 9)
    assert data.single
    assert data.parted
    for seed, out in ((0, [0, 5]), (1, [1, 6])):
        (held,), train = data.held(seed), data.training(seed, 7)
        assert np.flatnonzero(held[2][0]).tolist() == out
        np.testing.assert_array_equal(held[2] + train[2], mask)
    alone = Data((XS[:, 0], TARGETS[:, 0]), None)
    assert not alone.parted
    np.testing.assert_array_equal(alone.held(0)[0][2], alone.training(0, 3)[2])


def numbered(number, size=64):
    return np.full((T, size, I), number), np.zeros((T, size))


def test_streams_are_held_out_and_trained_on_apart():
    number = lambda batch: int(batch[0].ravel()[0])
    taken = []

    def endless():
        for n in itertools.count():
            taken.append(n)
            yield numbered(n)

    data = Data(endless(), 64)
    assert [number(b) for b in data.held(0)] == [number(b) for b in data.held(1)] == [0, 1, 2, 3]
    assert [number(data.training(0, n)) for n in range(3)] == [4, 5, 6]
    assert [number(data.training(1, n)) for n in (2, 0)] == [7, 8]
    assert [number(data.training(seed, 0)) for seed in (1, 0)] == [8, 4]
    assert taken == list(range(16))
    assert data.repeats == 0
    short = Data([numbered(n) for n in range(9)], 64)
    assert [number(b) for b in short.held(0)] == [0, 1]
    assert [number(short.training(0, n)) for n in range(7)] == [*range(2, 9)]
    assert short.repeats == 0
    assert {number(short.training(1, n)) for n in range(100)} == {*range(2, 9)}
    assert short.repeats == 7


def test_what_a_function_of_a_key_draws_is_new_and_the_same_again():
    data = Data(lambda key: (jax.random.normal(key, (T, B, I)), jnp.zeros((T, B))), B)
    assert data.count == 8
    drawn = [np.asarray(batch[0]) for batch in data.held(0)]
    drawn += [np.asarray(data.training(seed, n)[0]) for seed in (0, 1) for n in range(4)]
    assert len({a.tobytes() for a in drawn}) == 16
    np.testing.assert_array_equal(drawn[9], data.training(0, 1)[0])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text", "data is a str"),
        ([], "data has no batch"),
        ([3], "A batch of data is a int"),
        ([numbered(0), numbered(1, 32)], "Fill them up to one shape"),
    ],
)
def test_data_that_is_none(data, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Data(data, 64)


def drawn(number):
    return follow(jax.random.key(number))


def rotating(w, x, h):
    h = w["turn"] * h + w["into"] @ x + 0.1 * jnp.sum(h)
    return jnp.concatenate([h.real, h.imag]), h


MASK = np.ones((T, B)) * np.array([1.0, 0.5, 2.0])
MASK[20:, 1] = 0
PADDED = drawn(0)[0].at[25, 1].set(jnp.nan), drawn(0)[1]
COMPLEX = {"turn": jnp.asarray([0.5 + 0.4j, 0.7j]), "into": weights(2, I) * (1 + 1j)}
DIRECTIONS = [etpc.CreditRTRL(2, None, window=4), etpc.TBPTT(1)]
FORMS = {
    "one batch": (drawn(0), {}),
    "with a mask": ((*PADDED, MASK), {}),
    "as four arguments": (PADDED, dict(mask=MASK)),
    "one sequence": (jax.tree.map(lambda a: a[:, 0], drawn(0)), dict(batch_size=None)),
    "one sequence, few updates": (
        jax.tree.map(lambda a: a[:, 0], drawn(0)),
        dict(batch_size=None, updates=20),
    ),
    "a list": ([drawn(n) for n in range(5)], {}),
    "an endless iterator": (map(drawn, itertools.count()), {}),
    "a list with masks": ([(*drawn(n), (1 + n) * MASK) for n in range(5)], {}),
    "within sequences": (follow, dict(every=4)),
    "directions": (follow, dict(rules=DIRECTIONS)),
    "directions within sequences": (follow, dict(every=4, rules=DIRECTIONS)),
    "a learned initial state": (follow, dict(model=LEARNED)),
    "complex": (follow, dict(model=COMPLEX, state=jnp.zeros(2, complex), step=rotating)),
    "another optimiser": (follow, dict(optimiser=optax.contrib.momo(), score=None)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_data_and_model_trains(monkeypatch, name):
    data, options = FORMS[name]
    ticking(monkeypatch)
    options = dict(rules=FEW) | options
    if "mask" in options:
        settings = dict(batch_size=B, optimiser=optax.adam(1e-2), budget=8.0)
        found = etpc.suggest(MODEL, *data, loss, **settings, **options)
    else:
        found = raced(8.0, data, **options)
    for row in found.rows[1:]:
        assert row.updates >= 16
        assert math.isfinite(row.score)
        assert row.score > row.curve[0][2]
        assert np.isfinite(row.by_lag[0])
    alone, repeated = name.startswith("one sequence"), name in ("a list", "a list with masks")
    assert any("nothing is held out" in text for text in found.reasons) == alone
    assert any("The data was repeated after 4 batches." in t for t in found.reasons) == repeated


# --- the race -------------------------------------------------------------------------------------


class Fakes:
    """Rules that are made up and how they are judged, on a clock that stands still but for what they take.

    Weights are a rule, a learning rate and the number of updates.

    - `skill`: of each rule, `skill(updates, rate)` is the score. - `seconds`: what an update of it takes.
    """

    def __init__(self, monkeypatch, skill, seconds, noise=0.0):
        self.now, self.skill, self.seconds, self.ran = 0.0, dict(skill), seconds, []
        fakes = self

        class Judge(_race.Judge):
            seconds = 0.1

            def __init__(self, *_):
                pass

            def __call__(self, weights, seed):
                fakes.now += 0.1
                rule, rate, updates = weights if isinstance(weights, tuple) else ("none", 1, 0)
                score = fakes.skill[rule](updates, rate) if updates else 0.0
                rng = np.random.default_rng(
                    [updates, seed, zlib.crc32(f"{rule}{rate if rate > 1 else ''}".encode())]
                )
                return score + noise * rng.normal(size=(2, 16))

        class Way(Online):
            first = None

            def __init__(self, rule):
                self.rule = rule

            def run(self, passes):
                fakes.now += passes * fakes.seconds[self.rule]

            def train(self, training, data, rate):
                self.run(1)
                weights = training[0]
                updates = weights[2] + 1 if isinstance(weights, tuple) else 1
                fakes.ran.append((self.rule, rate, updates))
                value = fakes.skill[self.rule](updates, rate)
                return ((self.rule, rate, updates), None, None), -value

        self.Way = Way
        monkeypatch.setattr(_race, "Judge", Judge)
        for module in (_suggest, _race):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)


class Track(Fakes):
    """A race of such rules."""

    def __init__(self, monkeypatch, skill, seconds, rates=(1.0,), noise=0.0, longest=None):
        super().__init__(monkeypatch, skill, dict(seconds), noise)

        batch, data = object.__new__(Batch), object.__new__(Data)
        batch.start, batch.arrays, batch.padded = (None, None), None, lambda *_: None
        data.training, data.single = lambda *_: (), False
        self.race, self.Way.batch = _race.Race(batch, data, None, rates, longest), batch
        for rule in skill:
            self.race.add(rule, self.Way(rule))

    def updates(self):
        """Of each contender, with each seed."""
        return {
            (c.name, c.rate): [len(t.losses) for t in c.trainings] for c in self.race.contenders
        }

    def bracket(self):
        """Work until two are left for the first time."""
        for _, work in self.race.pieces():
            if self.race._final:
                return
            work()


CONSTANT = {f"rule {n}": lambda updates, rate, n=n: float(n) for n in range(8)}
SECONDS = dict.fromkeys(CONSTANT, 1.0)


def test_the_better_half_goes_on(monkeypatch):
    track = Track(monkeypatch, CONSTANT, SECONDS)
    track.bracket()
    wanted = {0: [16, 0, 0], 3: [16, 0, 0], 4: [32, 0, 0], 5: [32, 0, 0], 6: [64] * 3, 7: [64] * 3}
    assert {n: track.updates()[f"rule {n}", 1] for n in wanted} == wanted
    assert [c.name for c in track.race.order] == ["rule 7", "rule 6"]
    assert track.race.updates == 64
    assert track.race.ahead(*track.race.order)
    assert not track.race.ahead(*track.race.order[::-1])


def test_rules_are_compared_once_all_have_trained_at_the_first_rate(monkeypatch):
    """In a budget that ends before the other rates have had their turn."""
    track = Track(monkeypatch, CONSTANT, SECONDS, rates=(1.0, 3.0))
    track.race.run(8 * (16 * 1.0 + 0.1) - 1.0)
    assert not track.race.order
    track.race.run(8 * (16 * 1.0 + 0.1) + 30.0)
    assert [c.name for c in track.race.order] == [f"rule {n}" for n in reversed(range(8))]
    assert {c.rate for c in track.race.order} == {1.0}
    assert not track.race.settled(track.race.order[0])


def test_the_best_rate_of_each_rule_is_before_second_ones(monkeypatch):
    skill = {
        "good": lambda n, rate: 10 + rate,
        "bad": lambda n, rate: rate,
        "worse": lambda n, rate: -rate,
    }
    track = Track(monkeypatch, skill, dict.fromkeys(skill, 1.0), rates=(1.0, 2.0, 3.0))
    track.bracket()
    assert [(c.name, c.rate) for c in track.race.order] == [("good", 3), ("bad", 3)]
    assert track.updates()["worse", 1] == [64, 0, 0]  # the best of its rates
    assert track.updates()["worse", 3] == [16, 0, 0]
    best = track.race.best("good")
    assert (best.rate, best.score(128), best.spread(128)) == (3, 13, 0)
    track.race.run(track.now + 4000)
    order = track.race.order
    assert [(c.name, c.rate) for c in order[:2]] == [("good", 3), ("bad", 3)]
    assert len({c.name for c in order}) == len(order) == 3


def test_who_is_better_in_equal_time_goes_on_too(monkeypatch):
    """Of four, the one that is best after equal numbers of updates, and the one that is fast."""
    skill = {
        "slow": lambda n, rate: 2.0 * n,
        "slower": lambda n, rate: 1.5 * n,
        "fast": lambda n, rate: 1.0 * n,
        "no": lambda n, rate: 0.5 * n,
    }
    track = Track(monkeypatch, skill, {"slow": 10.0, "slower": 20.0, "fast": 0.1, "no": 0.1})
    track.bracket()
    assert [c.name for c in track.race.order] == ["slow", "fast"]


def test_all_begin_again_with_twice_the_updates(monkeypatch):
    """Who learns late is out at first."""
    skill = CONSTANT | {"late": lambda n, rate: 100.0 * (n > 20)}
    track = Track(monkeypatch, skill, dict.fromkeys(skill, 0.01))
    track.bracket()
    assert track.updates()["late", 1] == [16, 0, 0]
    track.race.run(track.now + 30)
    assert track.race.order[0].name == "late"
    assert track.race.updates >= 128


@pytest.mark.parametrize("seed", range(3))
def test_stopping_changes_nothing(monkeypatch, seed):
    """What is next follows from what was done; also after an error in the middle."""
    skill = {f"{n}": lambda k, rate, n=n: math.sin(n * k) + rate for n in range(5)}
    seconds = dict(zip(skill, np.random.default_rng(seed).uniform(0.1, 2, 5), strict=True))
    found = []
    for longest in (900, 100):
        track = Track(monkeypatch, skill, seconds, rates=(1.0, 0.3), noise=1.0)
        rng, left = np.random.default_rng(seed), 900
        while left:
            count = min(left, int(rng.integers(1, longest + 1)))
            for _, work in itertools.islice(track.race.pieces(), count):
                work()
            left -= count
        found.append((track.ran, [c.name for c in track.race.order]))
    assert found[0] == found[1]


def test_a_rule_is_added_once_and_may_come_late(monkeypatch):
    track = Track(monkeypatch, CONSTANT, SECONDS)
    track.race.add("rule 0", track.Way("rule 0"))
    assert len(track.race.contenders) == 8
    track.bracket()
    track.skill["late"], track.seconds["late"] = lambda n, rate: 50.0, 1.0
    track.race.add("late", track.Way("late"))
    track.race.run(track.now + 400)
    assert track.race.order[0].name == "late"
    assert track.race.order[0].trainings[1].losses


def test_after_the_longest_come_more_seeds(monkeypatch):
    """No training is longer, the better half gets one seed more each time, and then the race is over."""
    track = Track(monkeypatch, CONSTANT, SECONDS, noise=1.0, longest=40)
    assert not track.race.run(1e9)
    counts = track.updates()
    assert {max(losses) for losses in counts.values()} == {40}
    assert {losses[0] for losses in counts.values()} == {40}
    seeds = sorted(sum(n == 40 for n in losses) for losses in counts.values())
    assert seeds[-2:] == [track.race.seeds] * 2
    assert seeds[:4] == [1] * 4
    first, other = track.race.order[:2]
    assert {first.name, other.name} <= {"rule 5", "rule 6", "rule 7"}
    assert first.spread(40) == pytest.approx(1 / math.sqrt(16 * track.race.seeds), rel=0.5)


def test_a_rule_left_behind_does_not_win_by_the_luck_of_the_others_with_the_first_seed(
    monkeypatch,
):
    """Of equal rules those that trained with all seeds are less lucky in the mean than with the first one."""
    higher = 0
    for n in range(8):
        equal = {f"rule {n}.{k}": lambda updates, rate: 0.0 for k in range(32)}
        track = Track(monkeypatch, equal, dict.fromkeys(equal, 1.0), noise=4.0, longest=10)
        track.race.run(1e9)
        first, *others = track.race.order
        assert len(first.scores(10)) == track.race.seeds
        higher += any(c.score(10) > first.score(10) for c in others)
    assert higher


def test_which_rate_is_the_best_depends_on_how_long_you_train(monkeypatch):
    """A high rate is ahead at first, and a low one in the end; so the fast rule is not ahead for being fast."""
    skill = {
        "a": lambda n, rate: min(n * rate, 200 / rate),
        "b": lambda n, rate: min(n * rate, 100 / rate) / 2,
        "fast": lambda n, rate: n * rate / 20,
    }
    seconds = {"a": 1.0, "b": 1.0, "fast": 0.001}
    best = {}
    for longest in (20, 1000):
        track = Track(monkeypatch, skill, seconds, rates=(0.5, 1.0, 3.0), longest=longest)
        track.race.run(1e9)
        best[longest] = track.race.order[0].name, track.race.order[0].rate
    assert best == {20: ("a", 3.0), 1000: ("a", 0.5)}


def test_who_diverges_is_last_and_rests(monkeypatch):
    skill = CONSTANT | {"bad": lambda n, rate: 99.0 if n < 5 else math.nan}
    track = Track(monkeypatch, skill, dict.fromkeys(skill, 1.0))
    track.race.run(1000.0)
    assert track.updates()["bad", 1] == [5, 0, 0]
    assert track.race.order[0].name == "rule 7"
    alone = Track(monkeypatch, {"bad": skill["bad"]}, {"bad": 1.0})
    assert not alone.race.run(1000.0)
    assert alone.now < 20


def test_a_longer_comparison_counts_if_its_rate_is_chosen_too(monkeypatch):
    """However long the race is, the rule that is ahead has trained at all rates with three seeds."""
    skill = {f"{n}": lambda k, rate, n=n: n * k * rate for n in range(1, 6)}
    reached = set()
    for budget in (400, 500, 600, 800, 1000, 1500, 2000, 3000):
        track = Track(monkeypatch, skill, dict.fromkeys(skill, 0.1), rates=RATES)
        track.race.run(float(budget))
        best = track.race.order[0]
        assert (best.name, best.rate, track.race.settled(best)) == ("5", 3.0, True), budget
        assert track.now <= budget
        reached.add(track.race.updates)
    assert len(reached) > 2


def test_a_piece_of_more_than_half_of_the_time_is_done_if_it_fits(monkeypatch):
    track = Track(
        monkeypatch, {"a": lambda n, rate: n, "b": lambda n, rate: 0.0}, {"a": 7.0, "b": 7.0}
    )
    track.race.run(8.0)
    track.race.run(16.0)
    assert [rule for rule, *_ in track.ran] == ["a", "a"]
    assert track.race.run(17.0)
    assert len(track.ran) == 2


def test_where_the_number_of_updates_is_given_time_does_not_count(monkeypatch):
    skill = {"slow": lambda n, rate: 2.0 * n, "slower": lambda n, rate: 1.5 * n}
    skill |= {"fast": lambda n, rate: 1.0 * n, "no": lambda n, rate: 0.5 * n}
    seconds = {"slow": 10.0, "slower": 20.0, "fast": 0.1, "no": 0.1}
    track = Track(monkeypatch, skill, seconds, longest=10**6)
    track.bracket()
    assert [c.name for c in track.race.order] == ["slow", "slower"]


def test_what_is_learned_with_one_seed_of_three_is_learned(monkeypatch):
    """The mean of so different seeds is not ahead of the first weights beyond doubt."""
    track = Track(
        monkeypatch, {"a": lambda n, rate: 0.0, "b": lambda n, rate: 0.0}, {"a": 1, "b": 1}
    )
    track.bracket()
    race, (one, other) = track.race, track.race.order
    assert race.lucky(one) == race.lucky(other) == 0
    one.trainings[1].judged[race.updates] += 1.0
    assert not race.ahead(one, None)
    assert (race.lucky(one), race.lucky(other)) == (1, 0)
    for training in one.trainings:
        training.judged[race.updates] = 0 * training.judged[race.updates] + 1.0
    assert race.ahead(one, None)
    assert race.lucky(one) == 0
    for training, score in zip(one.trainings, (1.0, -1.0, 0.0), strict=True):
        training.judged = {0: np.zeros((2, 1)), race.updates: np.full((2, 1), score)}
    assert race.lucky(one) == 0  # one example has no spread


def test_rates_are_chosen_once_all_rules_have_been_compared_at_all_rates(monkeypatch):
    """In a budget of twice what the first rates take."""
    track = Track(monkeypatch, CONSTANT, SECONDS, rates=RATES)
    track.race.run(2 * 8 * (16 * 1.0 + 0.1))
    assert {seeds[1:] == [0, 0] for seeds in track.updates().values()} == {True}
    assert all(track.updates()[rule, rate][0] for rule in CONSTANT for rate in RATES[:2])


def test_noise_is_not_ahead(monkeypatch):
    skill = {"a": lambda n, rate: 0.0, "b": lambda n, rate: 0.0}
    track = Track(monkeypatch, skill, {"a": 1.0, "b": 1.0}, noise=1.0)
    track.bracket()
    one, other = track.race.order
    assert not track.race.ahead(one, other)
    assert not track.race.ahead(one, None)
    assert 0.1 < one.spread(track.race.updates) < 1


# --- the budget -----------------------------------------------------------------------------------


class Work(Fakes):
    """`etpc.suggest` of such rules, which are numbered in the order in which they are measured, BPTT first.

    - `compiling`, `a_pass`: the seconds of each. - `broken`: which of these has a gradient that is NaN.
    - `near`: the cosine of each with BPTT.
    """

    def __init__(
        self,
        monkeypatch,
        compiling,
        a_pass,
        broken=None,
        skill=lambda n, k: k * (1 + n),
        near=lambda n: 0.5,
    ):
        skills = {n: lambda k, rate, n=n: skill(n, k) for n in range(len(a_pass))}
        super().__init__(monkeypatch, skills, a_pass)
        self.begun = 0
        work = self

        class Way(self.Way):
            passes = 5

            def __init__(self, batch, program=None):
                super().__init__(work.begun)
                self.batch = batch
                self.compiled = False
                self.program = types.SimpleNamespace(exact=False)
                work.begun += 1

            def run(self, passes):
                super().run(passes)
                work.now += (not self.compiled) * compiling[self.rule]
                self.compiled = True

            def seconds(self, windows):
                self.run(windows / 8)
                return windows / 8 * a_pass[self.rule]

            def move_to(self, at):
                pass

        class Measured(Measurement):
            def __init__(self, way):
                way.run(1)
                self.way = way
                self.finite = self.comparable = way.rule != broken

            def cosine(self, reference):
                return near(self.way.rule)

            def lags(self, reference):
                self.way.run(4)
                return (near(self.way.rule),) * 3

        def step_ms(way):
            way.run(1)
            return 1e3 * a_pass[way.rule] / T

        cut = Trial(MODEL, XS, TARGETS, loss, batch_size=B).program(etpc.D_RTRL())

        def program(trial, rule):
            trial.__dict__.setdefault("shown", cut)
            return cut

        monkeypatch.setattr(Trial, "program", program)
        fakes = dict(Online=Way, Reverse=Way, Measurement=Measured, step_ms=step_ms)
        for name, fake in fakes.items():
            monkeypatch.setattr(_suggest, name, fake)


@pytest.mark.parametrize("seed", range(4))
def test_the_budget_is_kept(monkeypatch, seed):
    """But for what one rule takes longer to compile than all before."""
    rng = np.random.default_rng(seed)
    compiling, a_pass = rng.uniform(1, 8, 10).tolist(), rng.uniform(0, 0.3, 10).tolist()
    a_pass[4] *= 100  # directions of credit settle
    budget = 60 + 50 * rng.uniform()
    work = Work(monkeypatch, compiling, a_pass)
    found = suggest(budget=budget)
    surprises = [max(0, compiling[n] - max(compiling[1:n])) for n in range(2, work.begun)]
    assert len(found.rows) > 2
    assert 0.8 * budget < work.now <= 1.1 * budget + max(surprises)
    begun, before = work.now, sum(row.updates for row in found.rows)
    again = found.go_on(budget)
    assert work.now - begun <= 1.1 * budget + max(surprises)
    assert sum(row.updates for row in again.rows) > before


def test_what_the_budget_is_spent_on(monkeypatch):
    Work(monkeypatch, [1.0] * 10, [0.01] * 10)
    found = suggest(budget=100.0)
    assert all(row.updates >= 16 for row in found.rows)
    assert found.left_out == ()
    assert found.decided
    assert found.rule == found.rows[-1].rule
    work = Work(monkeypatch, [1.0] * 10, [*[0.01] * 4, 20.0, *[0.01] * 5])
    found = suggest(budget=60.0)
    assert len(found.rows) == 11
    assert [row.updates > 0 for row in found.rows] == [True] * 5 + [False] + [True] * 5
    assert str(found).splitlines()[9].split()[2:6] == ["-"] * 4
    slow = "Too slow to train within this budget: TBPTT(16, every=4)."
    assert slow in found.reasons
    begun = work.begun
    again = found.go_on(6000.0)
    assert again.rows[5].updates >= 16
    assert slow not in again.reasons
    assert work.begun == begun  # nothing is compiled again
    Work(monkeypatch, [1.0] * 10, [0.06] * 10)
    found = suggest(budget=15.0)
    assert found.rule is None
    assert any("no time to compare scores: go on with" in text for text in found.reasons)


def test_a_rule_whose_gradient_is_not_finite_is_out(monkeypatch):
    Work(monkeypatch, [1.0] * 10, [0.01] * 10, broken=2)
    found = suggest(budget=50.0)
    assert len(found.rows) == 10
    assert found.left_out == ("ES_D_RTRL(decay=0.99), whose gradient is NaN or infinite",)


@pytest.mark.parametrize("rules", few([None, FEW], None))
@pytest.mark.parametrize("ahead", [True, False])
def test_bptt_takes_no_place_of_a_rule(monkeypatch, rules, ahead):
    """It is no rule to compile with. The last two are rules, and BPTT trains along to the end, best or worst."""
    skill = lambda n, k: k * (9 - n) if n or ahead else -k
    Work(monkeypatch, [1.0] * 10, [0.01] * 10, skill=skill)
    found = suggest(budget=100.0, rules=rules)
    assert found.rule == etpc.D_RTRL()
    assert found.decided
    assert any(text.startswith("BPTT scores higher (") for text in found.reasons) == ahead
    race = found.advice.race
    names = [c.name for c in race.order]
    assert names.index("exact") == (0 if ahead else len(names) - 1)
    last = [c for c in race.order if all(len(t.losses) >= race.updates for t in c.trainings)]
    assert len(last) == 3


@pytest.mark.parametrize("scores", [(9, 0, 0, 0), (0, 0, 0, 0), (9, 1, 2, 2), (0, 1, 1, 1)])
def test_what_is_suggested(monkeypatch, scores):
    """The highest score, of equal ones the faster; the nearest to BPTT where that alone has learned."""
    rules = [etpc.D_RTRL(), etpc.D_RTRL(window=4), etpc.ES_D_RTRL(decay=0.9)]
    near, seconds = [1.0, 0.2, 0.9, 0.6], [0.01, 0.02, 0.02, 0.01]
    skill = lambda n, k: k and float(scores[n])
    Work(monkeypatch, [1.0] * 4, seconds, skill=skill, near=near.__getitem__)
    found = suggest(budget=20.0, rules=rules)
    wanted = {(9, 0, 0, 0): rules[1], (0, 0, 0, 0): None, (9, 1, 2, 2): rules[2]}
    assert found.rule == wanted.get(scores, rules[2])
    assert not found.decided
    alone = any("What BPTT has learned no rule" in text for text in found.reasons)
    assert alone == (sum(scores) == 9)
    assert any("Nothing was learned" in text for text in found.reasons) == (sum(scores) == 0)
    nearer = "a nearer gradient, that of D_RTRL(window=4) (0.90), does not score higher"
    assert any(nearer in text for text in found.reasons) == any(scores[1:])


@pytest.mark.parametrize("learned", [True, False])
def test_for_how_many_updates_you_will_train(monkeypatch, learned):
    Work(monkeypatch, [1.0] * 10, [0.01] * 10, skill=lambda n, k: float(learned and k > 0))
    found = suggest(budget=100.0, updates=20)
    assert max(row.updates for row in found.rows) == 20
    assert not found.decided
    assert (found.rule is not None) == learned
    text = (
        "not decided with 3 seeds which rule is better."
        if learned
        else "take more than `updates=20`."
    )
    assert text in " ".join(found.reasons)
    assert not any("go on" in reason for reason in found.reasons)
    with pytest.raises(ValueError, match="updates"):
        suggest(budget=100.0, updates=0)


def test_who_went_as_far_in_a_later_bracket_counts(monkeypatch):
    """Who is out before the last two, and the best as soon as it comes as far as they."""
    skill = CONSTANT | {"late": lambda n, rate: 100.0 * (n > 20)}
    track = Track(monkeypatch, skill, dict.fromkeys(skill, 1.0))
    track.bracket()
    assert track.race.updates == 128
    assert [c.name for c in track.race.order] == ["rule 7", "rule 6"]
    for _, work in track.race.pieces():
        if 128 in {c.name: c for c in track.race.contenders}["late"].trainings[0].judged:
            break
        work()
    assert track.race.updates == 128
    late, other = track.race.order[:2]
    assert (late.name, other.name) == ("late", "rule 7")
    assert track.race.ahead(late, other)
    assert not track.race.decided(late, other)  # with one seed


# --- what the advice is worth ---------------------------------------------------------------------


def test_the_first_line_says_what_was_raced_and_how_sure_that_is(monkeypatch):
    """And nothing is decided while a rule that was asked for has not trained."""
    Work(monkeypatch, [6.0] * 10, [0.003] * 10, skill=lambda n, k: k * (9 - n))
    found = suggest(budget=40.0)
    count = len(found.advice.waiting)
    assert 0 < count < 7
    assert found.rule == etpc.D_RTRL()
    assert not found.decided
    at, *sure = found.headline.split("; ")
    trained = len(found.rows) - 2
    assert re.fullmatch(
        rf"D_RTRL\(\) at .*: ahead of {trained} of {trained} other rules that have trained", at
    )
    assert sure[0] == f"{count} did not train (budget)"
    assert str(found).startswith(f"suggested: {found.headline}\n")
    assert f"to compile them takes about {6 * count} s" in found.left_out[0]
    again = found.go_on(200.0)
    assert again.advice.waiting == []
    assert again.decided
    assert re.fullmatch(
        r"D_RTRL\(\) at 0.\d+: ahead of 9 of 9 other rules that have trained", again.headline
    )
    assert again.as_dict()["headline"] == again.headline


def test_each_rule_trains_shortly_before_any_trains_long(monkeypatch):
    work = Work(monkeypatch, [1.0] * 10, [0.01] * 10)
    suggest(budget=100.0)
    long = next(n for n, (_, _, updates) in enumerate(work.ran) if updates > 16)
    assert {rule for rule, _, _ in work.ran[:long]} == set(range(10))
    first = [rate for _, rate, _ in work.ran[:long]]
    assert first == sorted(first, key=[1.0, 1 / 3, 3.0].index)


def test_the_baseline_is_compiled_with_the_rule_of_its_gradient(monkeypatch):
    work = Work(monkeypatch, [1.0] * 13, [0.01] * 13)
    found = suggest(budget=100.0)
    names = [row.name for row in found.rows]
    place = names.index(_suggest.BASELINE)
    assert names[place - 1] == "TBPTT(1)"
    assert found.rows[place].compile_s == 0
    assert found.rows[place].updates >= 16
    assert work.begun == len(found.rows) - 1
    assert found.advice.rms_rate == pytest.approx(_suggest.RATE, rel=1e-3)  # as Adam moves at first
    assert _suggest.BASELINE not in str(suggest(budget=1e-9, rules=FEW))


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, 4])
def test_the_baseline_trains_as_rmsprop_does(every):
    optimiser = optax.rmsprop(1e-2, decay=0.9)
    batch = batch_of(optimiser=optax.adam(1e-2), every=every)
    way = online(batch, etpc.TBPTT(1)).with_optimiser(batch_of(optimiser=optimiser, every=every))
    same = online(batch_of(optimiser=optimiser, every=every), etpc.TBPTT(1))
    np.testing.assert_array_equal(flat(trained(way, 3)[0]), flat(trained(same, 3)[0]))


RATES = (1.0, 1 / 3, 3.0)


def test_a_rate_is_the_best_of_three_seeds(monkeypatch):
    """The chart and the table have the mean, and the row says of how many."""
    skill = lambda n, k: k * (1 + n)
    Work(monkeypatch, [1.0] * 10, [0.01] * 10, skill=skill)
    found = suggest(budget=200.0)
    best = next(row for row in found.rows[1:] if row.rule == found.rule)
    assert (best.seeds, best.spread) == (3, 0)
    race = found.advice.race
    mine = [c for c in race.contenders if c.name == best.name]
    assert [len(c.scores(race.updates)) for c in mine] == [3, 3, 3]
    assert min(row.seeds for row in found.rows) == 1
    assert all(row.curve[-1][2] == row.score for row in found.rows)
    assert str(found).splitlines()[2].split()[:5] == ["rule", "rate", "score", "seeds", "updates"]


@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_a_rate_at_the_edge_that_is_unstable_or_in_doubt_is_not_suggested(monkeypatch, noise):
    """Higher by little against noise, or by much and falling."""
    falling = lambda n, rate: 99.0 * min(n, 40) - 9.0 * n if rate == 3 else 10.0 * n
    doubtful = lambda n, rate: 10.0 * n + 3 * (rate == 3)
    skill = {"a": doubtful if noise else falling, "b": lambda n, rate: 0.0}
    track = Track(monkeypatch, skill, {"a": 1.0, "b": 1.0}, rates=RATES, noise=noise)
    track.race.run(1000.0)
    far = track.race.ranked(track.race.updates)
    assert [c.rate for c in track.race.order if c.name == "a"] != [3.0]
    edge = next(c for c in far if (c.name, c.rate) == ("a", 3.0))
    assert track.race.in_doubt(edge, far)
    sure = {"a": lambda n, rate: 10.0 * n * rate, "b": lambda n, rate: 0.0}
    track = Track(monkeypatch, sure, {"a": 1.0, "b": 1.0}, rates=RATES)
    track.race.run(1000.0)
    assert track.race.order[0].rate == 3  # ahead beyond doubt


@pytest.mark.parametrize("of_bptt", [9, 1, 5])
def test_advice_on_bptt_and_on_the_network_follows_from_scores_and_is_said_once(
    monkeypatch, of_bptt
):
    skill = lambda n, k: k * (5 if n else of_bptt)
    Work(monkeypatch, [1.0] * 3, [0.01] * 3, skill=skill)
    found = suggest(budget=30.0, rules=FEW)
    wanted = {
        9: "BPTT scores higher (",
        1: "BPTT is exact and scores less (",
        5: "BPTT is not surely ahead (",
    }
    (text,) = (text for text in found.reasons if "BPTT takes" in text)
    assert text.startswith(wanted[of_bptt])
    assert ("take it" in " ".join(found.reasons)) == (of_bptt == 9)
    changes = [text for text in found.reasons if "A change of the network" in text]
    assert len(changes) == (of_bptt == 9)
