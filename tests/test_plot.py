"""Charts: what is drawn is what was computed, into the axes that were given."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from benchmarks.network import N_IN, N_OUT, Network
from etpc import Row
from etpc.checking.compare import Report, Result
from tests.helpers import loss

plt = pytest.importorskip("matplotlib.pyplot")

from matplotlib.text import Text  # noqa: E402

from etpc import plot  # noqa: E402


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


MODEL = Network(6, key=jax.random.key(0))
XS = jax.random.bernoulli(jax.random.key(1), 0.4, (20, 3, N_IN)).astype(float)  # T, B, I


@functools.cache
def compiled(algo):
    return etpc.compile(MODEL, algo, inputs=jnp.zeros(N_IN))


def report(program, *rows):
    result = Result(program.algorithm, rows, rows[0], 0, program)
    return Report((result,), (), 1e-9, 1.0)


def marks(ax):
    """What is drawn in an axis, by the place of the parameter and the mark."""
    return {
        (float(x), round(float(y), 6), line.get_marker())
        for line in ax.lines
        for x, y in zip(*line.get_data(), strict=True)
        if line.get_linestyle() == "None"
    }


def test_gradient_agreement_of_one_report():
    program = compiled("d_rtrl")
    found = report(
        program,
        Row(".a", 0.9, 0.3, 1.0, 1.0, "approximate", None),
        Row(".b", 1.0, 1e-12, 1.0, 1.0, "exact", True),
        Row(".c", 1.0, 0.0, 1.0, 1.0, "exact", True),
    )
    figure = plot.gradient_agreement(found)
    errors, cosines = figure.axes
    assert marks(errors) == {(0.3, 0.0, "o"), (1e-12, 1.0, "s"), (plot.SMALLEST, 2.0, "s")}
    assert marks(cosines) == {(0.9, 0.0, "o"), (1.0, 1.0, "s"), (1.0, 2.0, "s")}
    assert [label.get_text() for label in errors.get_yticklabels()] == [".a", ".b", ".c"]
    assert errors.get_xscale() == "log"
    assert errors.get_ylim() == cosines.get_ylim() == (2.5, -0.5)


@pytest.mark.slow
@pytest.mark.parametrize("parse_math", [True, False])
def test_names_are_shown_as_they_are(monkeypatch, parse_math):
    """And not read as mathematics, which these would be, or would fail to parse."""
    monkeypatch.setitem(plt.rcParams, "text.parse_math", parse_math)
    names = [r"$\frac$", "$x$", r"\$y$ and $"]
    model = {name: jnp.ones(3) for name in names}
    state = {name: jnp.zeros(3) for name in names}
    step = lambda m, x, state: ({name: 0.5 * h + m[name] * x for name, h in state.items()},) * 2
    program = etpc.compile(model, inputs=jnp.zeros(3), state=state, step=step)
    rows = [Row(path, 0.9, 0.3, 1.0, 1.0, "approximate", None) for path in program.claims]
    reports = {name: report(program, *rows) for name in names}
    xs = jnp.ones((4, 3))
    figures = [
        plot.gradient_agreement(reports),
        *(plot.traces(program, model, xs, n) for n in range(3)),
    ]
    paths = list(program.claims)
    wanted = [[*paths, *names], *([f"{p}, mul: trace of {p}"] for p in paths)]
    for figure, texts in zip(figures, wanted, strict=True):
        figure.canvas.draw()
        shown = [t._preprocess_math(t.get_text()) for t in figure.findobj(Text)]
        assert {(text, False) for text in texts} <= set(shown)


@pytest.mark.slow
def test_gradient_agreement_of_several_reports():
    rule = etpc.D_RTRL(window=5)
    online = etpc.verify(MODEL, XS, jnp.ones((20, 3, N_OUT)), loss, rule, batch_size=3)
    assert online.ok
    other = (Row(row.path, 0.5, 0.7, 1.0, 1.0, "approximate", None) for row in online.rows)
    reports = {"online": online, "other": report(online.program, *other)}
    figure, given = plt.subplots(2, 1)
    assert plot.gradient_agreement(reports, axes=given) is figure
    drawn = marks(given[0])
    for shift, found in zip((-0.125, 0.125), reports.values(), strict=True):
        for place, row in enumerate(found.rows):
            mark = "s" if row.claim == "exact" else "o"
            assert (max(row.error, plot.SMALLEST), place + shift, mark) in drawn
    assert len(drawn) == 6
    assert {m for *_, m in drawn} == {"s", "o"}
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["said to be exact", "approximate", "online", "other"]


def test_reports_that_cannot_be_compared():
    program = compiled("d_rtrl")
    a, b = (
        report(program, Row(path, 1.0, 0.1, 1.0, 1.0, "approximate", None)) for path in (".a", ".b")
    )
    with pytest.raises(etpc.InputError, match=r"'\.a', '\.b'"):
        plot.gradient_agreement({"a": a, "b": b})
    with pytest.raises(etpc.InputError, match="0 reports"):
        plot.gradient_agreement({})
    comparison = etpc.Comparison((), (), 1e-9, 1.0)
    for other in (comparison, {"a": a, "b": comparison}):
        with pytest.raises(etpc.InputTypeError, match="and no Comparison"):
            inspect.unwrap(plot.gradient_agreement)(other)
    with pytest.raises(etpc.InputError, match="should be 2 axes, and are 1"):
        plot.gradient_agreement(a, axes=[plt.figure().add_subplot()])


def stepped(program, example):
    """The traces of an example at every step, by calls."""
    carry = program.init()
    found = []
    for x in XS[:, example]:
        _, carry = program(MODEL, x, carry)
        found.append(carry.traces)
    return found


SHOWN = ["d_rtrl", etpc.ES_D_RTRL(decay=0.8), etpc.ES_D_RTRL(rank=2)]


@pytest.mark.slow
@pytest.mark.parametrize("algo", SHOWN)
def test_traces(algo):
    program = compiled(algo)
    figure = plot.traces(program, MODEL, XS[:, 2], ".hidden.weight", units=3)
    all_steps = [t[0] for t in stepped(program, 2)]
    if isinstance(algo, str):
        wanted = [[np.asarray(t[0]) for t in all_steps]]
    elif algo.rank == 2:
        wanted = [[np.einsum("ri,ro->oi", t[0], t[1]) for t in all_steps]]
    else:
        wanted = [[np.asarray(t[i]) for t in all_steps] for i in (0, 1)]
    inputs, spikes, *below = figure.axes
    assert len(below) == len(wanted)
    for ax, values in zip(below, wanted, strict=True):
        assert len(ax.lines) == 3
        assert len({line.get_label() for line in ax.lines}) == 3
        for line in ax.lines:
            index = tuple(map(int, line.get_label().strip("[]").split(",")))
            np.testing.assert_allclose(line.get_ydata(), [v[index] for v in values], 1e-9, 1e-12)
            assert np.ptp(line.get_ydata()) > 0
    times, units = np.nonzero(XS[:, 2])
    np.testing.assert_array_equal(inputs.lines[0].get_data(), (times, units))
    assert spikes.get_ylabel() == "spikes"


@pytest.mark.slow
def test_spikes_are_those_of_the_model():
    """Each once, though the step reads the last spikes again."""
    figure = plot.traces(compiled("d_rtrl"), MODEL, XS[:, 1])
    state, times, units = MODEL.init_state(), [], []
    for t, x in enumerate(XS[:, 1]):
        _, state = MODEL(x, state)
        fired = np.flatnonzero(MODEL.lif.spike(state[0]))
        times += [t] * len(fired)
        units += list(fired)
    assert 5 < len(times) < 100
    drawn = figure.axes[1].lines[0].get_data()
    np.testing.assert_array_equal(drawn, (times, units))


@pytest.mark.slow
def test_a_network_without_spikes_shows_its_states():
    weights = jax.random.normal(jax.random.key(0), (3, 3 + 4))
    cell = lambda x, h: 0.5 * h + weights @ jnp.concatenate([jnp.tanh(h), x])
    step = lambda w, x, h: (h, 0.5 * h + w @ jnp.concatenate([jnp.tanh(h), x]))
    program = etpc.compile(weights, inputs=jnp.zeros(4), state=jnp.zeros(3), step=step)
    xs = jax.random.normal(jax.random.key(1), (6, 4))
    _, given = plt.subplots(3, 1)
    plot.traces(program, weights, xs, "model", units=2, axes=given)
    states, h = [], jnp.zeros(3)
    for x in xs:
        h = cell(x, h)
        states.append(h)
    np.testing.assert_allclose(given[1].images[0].get_array(), np.stack(states).T, 1e-9)
    np.testing.assert_allclose(given[0].images[0].get_array(), xs.T)
    assert given[1].get_ylabel() == "state"
    assert len(given[2].lines) == 2


def test_traces_that_are_not_there():
    program = compiled("d_rtrl")
    with pytest.raises(etpc.SelectionError, match=r"no traced operation '\.out'.*\.hidden\.weight"):
        plot.traces(program, MODEL, XS, ".out")
    with pytest.raises(etpc.InputError, match=r"has shape \[20\]"):
        plot.traces(program, MODEL, XS[:, 0, 0])
    with pytest.raises(etpc.InputError, match="units must be an int >= 1"):
        plot.traces(program, MODEL, XS[:, 0], units=0)


def test_a_suggestion():
    """The scores of each rule that trained, over examples and seconds."""
    curves = [((0, 0.0, -2.0), (128, 0.5, -1.0)), ((0, 0.0, -2.0), (128, 2.0, -0.5)), ()]
    rules = [None, etpc.D_RTRL(), etpc.TBPTT(1)]
    rows = tuple(
        etpc.Candidate(f"rule {n}", rule, 1.0, 1, 1.0, (), False, curve=curve)
        for n, (rule, curve) in enumerate(zip(rules, curves, strict=True))
    )
    found = etpc.Suggestion(etpc.D_RTRL(), rows, (), (), ())
    figure = plot.suggestion(found)
    by_examples, by_seconds = figure.axes
    for n, curve in enumerate(curves[:2]):
        examples, seconds, scores = np.transpose(curve)
        np.testing.assert_array_equal(by_examples.lines[n].get_xydata().T, [examples, scores])
        np.testing.assert_array_equal(by_seconds.lines[n].get_xydata().T, [seconds, scores])
    assert [line.get_linewidth() for line in by_seconds.lines] == [1, 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rule 0", "rule 1"]
    with pytest.raises(ValueError, match="No rule of the suggestion has trained"):
        plot.suggestion(etpc.Suggestion(None, rows[2:], (), (), ()))


def test_memory_over_steps():
    row = functools.partial(etpc.EstimatedRow, window=None, weights=1, moments=0, traces=0, data=5)
    rows = [
        row("BPTT", 10, peak=100, fits=True),
        row("BPTT", 100, peak=900, fits=False),
        row("D_RTRL()", 10, peak=50, fits=True),
        row("D_RTRL()", 100, peak=50, fits=True),
        row("RTRL()", 10),
    ]
    found = etpc.Estimate(tuple(rows), "v5e", "a $chip", 1, 500, None, "", 4, {})
    (ax,) = plot.estimate(found).axes
    shown = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert shown["BPTT"] == [[10, 100], [100, 900]]
    assert shown["D_RTRL()"] == [[10, 50], [100, 50]]
    assert shown["data alone"] == [[10, 5], [100, 5]]
    assert {tuple(line.get_ydata()) for line in ax.lines if "chip" in line.get_label()} == {
        (500, 500)
    }
    assert marks(ax) == {(10, 100, "o"), (100, 900, "x"), (10, 50, "o"), (100, 50, "o")}
    assert ax.get_yscale() == ax.get_xscale() == "log"
