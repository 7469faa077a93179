"""`etpc.suggest`: what it measures is what an independent reference gives, and the advice follows from it."""

import functools
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
from etpc import Candidate, nn
from etpc.checking import suggest as _suggest
from etpc.checking._lags import Measurement, Online, Reverse
from etpc.checking._trial import Trial
from tests.helpers import loss, normal, weights
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
        _, found = Measurement(online(batch, rule)).cosines(reference)
        np.testing.assert_allclose(found, by_lag, atol=1e-9)
    behind = online(batch, etpc.D_RTRL(window=4, lookback=8))
    whole, found = Measurement(behind).cosines(reference)
    np.testing.assert_allclose(found[0], 1, atol=1e-9)
    assert 0.1 < found[1] < 0.999
    assert 0.5 < whole < 0.9999


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
    for _ in range(2):
        arguments = model, opt_state, learner.restarted(carry), XS, TARGETS
        model, opt_state, carry, losses = learner.update(*arguments, mask=mask)
        np.testing.assert_allclose(way.update(), losses.sum() / 6, rtol=1e-9)
    np.testing.assert_allclose(flat(way.trained[0]), flat(model), rtol=1e-9)


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
    for _ in range(3):
        value, grads = gradient(model)
        changes, opt_state = update(grads, opt_state, model, value=value)
        model = eqx.apply_updates(model, changes)
        np.testing.assert_allclose(way.update(), value, rtol=1e-9)
    np.testing.assert_allclose(flat(way.trained[0]), flat(model), rtol=1e-9)
    np.testing.assert_array_equal(flat(batch.arrays), flat(MODEL))
    way.move_to(way.trained)
    np.testing.assert_allclose(flat(way.gradient()), T * flat(gradient(model)[1]), rtol=1e-9)


# --- what is suggested ----------------------------------------------------------------------------


def test_where_all_is_exact_there_is_nothing_to_choose(capsys):
    suggestion = suggest(LEAKY)
    assert suggestion.rule == etpc.D_RTRL()
    assert [row.name for row in suggestion.rows] == ["BPTT", "D_RTRL()"]
    assert suggestion.reasons == (_suggest.EXACT,)
    assert suggestion.left_out == ()
    np.testing.assert_allclose(suggestion.rows[1].by_lag, 1, atol=1e-9)
    assert not capsys.readouterr().err  # a bar of progress is for terminals


@pytest.fixture(scope="module")
def measured():
    return suggest(budget=1e3, optimiser=optax.sgd(1e-3))


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
    cut, full = (by_rule[r] for r in (etpc.D_RTRL(), etpc.D_RTRL(window=4, backprop="full")))
    far = [f"{c:.2f} from {a} to {b}" for c, (a, b) in zip(cut.by_lag, measured.lags, strict=True)]
    assert all(c < 0.9 for c in cut.by_lag)
    assert all(text in measured.reasons[2] for text in far)
    numbers = ", ".join(f"{c:.2f}" for c in full.by_lag)
    assert measured.reasons[2].endswith(f"inside windows of 4 steps it is {numbers}.")
    untrained = suggest(budget=1e-9).rows[1]
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
def test_an_exact_rule_that_is_too_large_gives_way():
    model = Independent(weights(N, 40, seed=1), jnp.linspace(0.2, 0.9, N))
    xs = normal(T, B, 40, seed=6)
    memory = etpc.compile(model, etpc.ES_D_RTRL(rank=4), inputs=xs[0, 0]).memory(B).total - 1
    assert memory > etpc.compile(model, etpc.ES_D_RTRL(decay=0.9), inputs=xs[0, 0]).memory(B).total
    found = suggest(model, xs, memory=memory)
    assert [row.name for row in found.rows] == ["BPTT", "ES_D_RTRL(decay=0.99)", "TBPTT(1)"]
    assert found.rule == etpc.ES_D_RTRL(decay=0.99)
    assert len(found.left_out) == 2


def test_weights_without_a_trace():
    found = suggest(LEAKY, weights=lambda model: model.leak, budget=1e-9)
    assert found.reasons[0] == "Under D-RTRL these learn from the current step alone: .into."


@pytest.mark.slow
def test_the_budget():
    found = suggest(budget=1e-9)
    assert [row.name for row in found.rows] == ["BPTT", "D_RTRL()"]
    assert found.rule is None
    assert any("D_RTRL() is the only rule that was measured" in text for text in found.reasons)
    assert not any("highest" in text for text in found.reasons)
    (left,) = found.left_out
    assert left.startswith("D_RTRL(window=4, backprop='full'), ")
    assert left.endswith("as the budget of 1e-09 s was spent")


@pytest.mark.slow
def test_an_interrupt_gives_what_was_measured(monkeypatch):
    def interrupt(done, count, name):
        if count and done == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(_suggest, "show", interrupt)
    for stop in (1, 2):
        found = suggest()
        assert len(found.rows) == 1 + stop
        assert found.rule in ([None], [row.rule for row in found.rows[1:]])[stop - 1]
        assert found.left_out == ("what was left when it was interrupted",)
    stop = 0
    with pytest.raises(KeyboardInterrupt):
        suggest()


@pytest.mark.slow
def test_a_terminal_gets_a_bar_that_goes(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    suggest(budget=1e-9)
    shown = terminal.getvalue().split("\r\x1b[K")
    assert shown[1].endswith("] D_RTRL()")
    assert shown[-1] == ""


def candidate(rule, ms, by_lag, losses=(), updates=12):
    """`losses`: the first and the last, or none."""
    losses = [float(losses[n > 0]) for n in range(updates)] if losses else []
    return Candidate(str(rule), rule, float(ms), 1, 0.5, tuple(by_lag), False, tuple(losses))


FULL, CREDIT = etpc.D_RTRL(backprop="full"), etpc.CreditRTRL()
BLOCKS = etpc.TBPTT(8, every=4)
LAGS = [(0, 4), (4, 12)]


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
        ([candidate(FULL, 1, [0.8], [2, 1], 9), candidate(CREDIT, 9, [1.0], [2, 1.5], 9)], CREDIT),
        *(  # no training, so that losses say nothing
            ([candidate(FULL, 1, [0.8], [2, a]), candidate(CREDIT, 9, [1.0], [2, b])], CREDIT)
            for a, b in [(3, 9), (math.nan, math.nan), (2 - 1e-9, 2), (2, 3)]
        ),
    ],
)
def test_the_fastest_of_the_best(rows, best):
    found, why = _suggest._best(rows, LAGS[: len(rows[0].by_lag)])
    assert found.rule == best
    assert why
    start, ends = 2, [row.losses[-1] for row in rows if row.losses]
    trains = any(end < start - 1e-6 for end in ends)
    assert any("no rule lowers" in text for text in why) == (len(ends) > 0 and not trains)
    rises = ends and not any(end <= start for end in ends)
    assert any("The optimiser diverges" in text for text in why) == bool(rises)


def test_where_one_gives_nothing_the_other_is_named_with_its_cosine():
    rows = [candidate(BLOCKS, 1, [1.0, 0.0]), candidate(CREDIT, 9, [0.6, 0.2])]
    _, why = _suggest._best(rows, LAGS)
    assert why[0] == (
        f"From 4 to 12 steps back {CREDIT} has a cosine of 0.20 with BPTT, and {BLOCKS} gives nothing."
    )


def test_a_training_that_needs_no_memory_is_told():
    rows = [candidate(FULL, 1, [0.9], [2, 1]), candidate(etpc.TBPTT(1), 1, [0.0], [2, 1])]
    assert any("TBPTT(1), trains as well" in text for text in _suggest._best(rows, LAGS[:1])[1])


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
    silent, spiking = (
        suggest(scale * jnp.ones((N, I + N)), jnp.abs(XS), **options) for scale in (1e-6, 1e2)
    )
    assert (
        "the layer is silent. Scale its weights with `etpc.nn.init_from_data`." in silent.reasons[0]
    )
    assert not any("silent" in text for text in spiking.reasons)


@pytest.mark.slow
def test_windows_that_are_longer_than_the_sequence(monkeypatch):
    """There are no lags: the cosine is that of the whole gradient, and is called so."""
    rules = [etpc.D_RTRL(), etpc.D_RTRL(window=T + 1, backprop="full")]
    monkeypatch.setattr(_suggest, "_rules", lambda *_: rules)
    found = suggest(every=T + 1)
    assert found.rule == rules[1]
    assert found.lags == ()
    cut = found.rows[1].cosine
    assert found.reasons[1:3] == (
        f"The cosine of D-RTRL with BPTT is {cut:.2f}; with nothing cut inside windows of {T + 1} steps it is 1.00.",
        f"D_RTRL(window={T + 1}, backprop='full') has a cosine of 1.00 with BPTT, the highest of these.",
    )


# --- the budget -----------------------------------------------------------------------------------


class Work:
    """A clock that stands still but for what is measured, of which each piece takes a known time.

    - `compiling`, `a_pass`: the seconds of BPTT and of each rule, in the order in which they are measured.
    - `broken`: which of these has a gradient that is NaN.
    """

    def __init__(self, monkeypatch, compiling, a_pass, broken=None):
        self.now, self.compiling, self.a_pass, self.broken = 0.0, compiling, a_pass, broken
        self.begun = 0
        work = self

        class Way(Online):
            passes, trained = 5, None

            def __init__(self, batch, program=None):
                self.n, self.compiled, self.updates = work.begun, False, 0
                work.begun += 1

            def run(self, passes):
                work.now += passes * a_pass[self.n] + (not self.compiled) * compiling[self.n]
                self.compiled = True

            def seconds(self, windows):
                self.run(windows / 8)
                return windows / 8 * a_pass[self.n]

            def move_to(self, at):
                pass

            def update(self):
                self.run(1)
                self.updates += 1
                return 1 / self.updates

        class Measured(Measurement):
            def __init__(self, way):
                way.run(5)
                self.finite = self.comparable = way.n != broken

            def cosines(self, reference):
                return 0.5, (0.5, 0.5, 0.5)

        def step_ms(way):
            way.run(1)
            return 1e3 * a_pass[way.n] / T

        cut = Trial(MODEL, XS, TARGETS, loss, batch_size=B).program(etpc.D_RTRL())

        def program(trial, rule):
            trial.__dict__.setdefault("shown", cut)
            return cut

        monkeypatch.setattr(Trial, "program", program)
        for name, fake in dict(
            Online=Way,
            Reverse=Way,
            Measurement=Measured,
            step_ms=step_ms,
            monotonic=lambda: work.now,
        ).items():
            monkeypatch.setattr(_suggest, name, fake)


@pytest.mark.parametrize("optimiser", [None, optax.adam(1e-2)], ids=["", "trains"])
@pytest.mark.parametrize("seed", range(4))
def test_the_budget_is_kept(monkeypatch, optimiser, seed):
    """But for what one rule takes longer to compile than all before."""
    rng = np.random.default_rng(seed)
    compiling, a_pass = rng.uniform(1, 8, 10), rng.uniform(0, 0.6, 10)
    a_pass[4] *= 100  # directions of credit settle
    budget = 60 + 50 * rng.uniform()
    work = Work(monkeypatch, compiling, a_pass)
    found = suggest(budget=budget, optimiser=optimiser)
    surprises = [max(0, compiling[n] - compiling[1:n].max()) for n in range(2, work.begun)]
    assert len(found.rows) > 2
    assert work.now <= 1.1 * budget + max(surprises)
    left = budget * (1 if optimiser is None else 2 / 3) - work.now
    assert work.begun == 10 or left < compiling[1 : work.begun].max()


def test_what_the_budget_is_spent_on(monkeypatch):
    Work(monkeypatch, [1.0] * 10, [0.01] * 10)
    found = suggest(budget=1e3, optimiser=optax.adam(1e-2))
    assert [len(row.losses) for row in found.rows] == [200] * 10
    assert found.left_out == ()
    assert "The cosines by lag are those at the weights that BPTT has trained." in found.reasons
    assert "No windows but those of 4 steps were measured." not in found.reasons  # of D-RTRL
    Work(monkeypatch, [1.0] * 10, [0.02, 0.02, *[0.01] * 8])
    found = suggest(budget=1e3)
    assert found.rule == etpc.D_RTRL(window=4, backprop="full")
    assert "No windows but those of 4 steps were measured." in found.reasons
    Work(monkeypatch, [1.0] * 10, [*[0.01] * 4, 20.0, *[0.01] * 5])
    found = suggest(budget=60.0, optimiser=optax.adam(1e-2))
    assert len(found.rows) == 9
    (left,) = found.left_out
    assert left.startswith(
        "CreditRTRL(4, rank=4, window=4), as the budget of 60 s is too short for "
    )
    assert left.endswith("5 passes through the data of 20 s each")
    Work(monkeypatch, [1.0] * 10, [0.4] * 10)
    found = suggest(budget=30.0, optimiser=optax.adam(1e-2))
    count = len(found.rows[1].losses)
    assert (
        f"The budget left time for {count} updates of each, too few to compare losses."
        in found.reasons
    )
    assert "The cosines by lag are those at the first weights." in found.reasons


def test_a_rule_whose_gradient_is_not_finite_is_out(monkeypatch):
    Work(monkeypatch, [1.0] * 10, [0.01] * 10, broken=2)
    found = suggest(budget=1e3)
    assert len(found.rows) == 9
    assert found.left_out == (
        "D_RTRL(window=4, backprop='full'), whose gradient is NaN or infinite",
    )


@pytest.mark.parametrize(
    ("error", "options", "words"),
    [
        (etpc.InputError, dict(memory=0), "memory must be a number above zero, not 0"),
        (etpc.InputError, dict(time=-1.0), "time must be a number above zero, not -1"),
        (etpc.InputError, dict(budget=0.0), r"budget must be a number above zero, not 0\.0"),
        (etpc.InputError, dict(every=0), "every must be an int >= 1, not 0"),
        (etpc.InputError, dict(mask=np.zeros((T, B))), "mask is zero everywhere"),
        (etpc.InputError, dict(optimiser=optax.lbfgs()), r"\(`value_fn`\), as line searches need"),
        (etpc.InputTypeError, dict(optimiser="adam"), "'adam', which has no `init` and `update`"),
        (etpc.InputTypeError, dict(optimiser=optax.constant_schedule(0.1)), "Pass one of Optax's"),
    ],
)
def test_wrong_arguments(error, options, words):
    with pytest.raises(error, match=words):
        suggest(**options)


def test_auto_is_gone():
    with pytest.raises(AttributeError, match=r"etpc\.suggest"):
        etpc.Auto  # noqa: B018
