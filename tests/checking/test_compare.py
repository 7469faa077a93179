"""`etpc.compare`: algorithms and truncated BPTT, side by side."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import D_RTRL, ES_D_RTRL, RTRL, TBPTT, Row, SnAp
from etpc.checking.compare import Comparison, Result, short_name
from tests.checking.test_verify import T, Wrong, data, leaky, squared

CLAIMS = {
    D_RTRL(): "approximate",
    ES_D_RTRL(decay=0.5): "approximate",
    SnAp(1): "approximate",
    RTRL(): "exact",
    TBPTT(T): "exact",
    TBPTT(6): "approximate",
    TBPTT(1): "current step",
}


def recurrent():
    """Weakly enough that influence fades, in units that leak less than it."""
    model = leaky(rec=True)
    return eqx.tree_at(lambda m: m.rec, model, 0.2 * model.rec)


@pytest.fixture(scope="module")
def found():
    """A recurrent net under all of them, with a batch."""
    return etpc.compare(recurrent(), *data(2), squared, list(CLAIMS), batch_size=2)


def test_results(found):
    assert found.ok, str(found)
    assert [result.algorithm for result in found.results] == list(CLAIMS)
    for result, claim in zip(found.results, CLAIMS.values(), strict=True):
        assert result.name == short_name(result.algorithm)
        assert [row.path for row in result.rows] == [".win", ".log_tau", ".out", ".rec"]
        assert (result.program is None) == isinstance(result.algorithm, TBPTT)
        size = 2 * 4 * 8 if result.program is None else result.program.memory(2).total
        assert result.carry_bytes == size  # of blocks the states: batch, states, float64
        assert (result.total.claim, result.total.held) == (
            claim,
            True if claim == "exact" else None,
        )
        assert (result.total.error <= 1e-9) == (claim == "exact")
        assert (result.total.error > 1e-2) == (claim != "exact")
        for row in result.rows if claim == "exact" else ():
            assert (row.claim, row.held) == ("exact", True)
            assert row.error <= 1e-9
            assert row.norm > 0
    totals = {result.name: result.total for result in found.results}
    short, long, whole = (totals[f"TBPTT({w})"] for w in (1, 6, T))
    assert short.error > 1.5 * long.error > 100 * whole.error
    assert short.cosine < long.cosine < whole.cosine


def test_a_wrong_claim_is_caught():
    found = etpc.compare(leaky(), *data(), squared, [D_RTRL(), Wrong()])
    assert not found.ok
    assert not found.vacuous
    honest, wrong = found.results
    assert all(row.held for row in honest.rows)
    assert wrong.rows[0].held is False
    assert wrong.total.held is False
    assert [line.split()[-1] for line in str(found).splitlines() if ".win" in line] == ["yes", "NO"]
    assert "\nNOT ok  (" in str(found)


@pytest.mark.slow
def test_a_trace_that_was_not_read_is_noted():
    """Of each algorithm that has one."""
    xs, targets = jax.tree.map(lambda a: a[:8], data())
    algorithms = [Wrong(window=8), D_RTRL(window=8), D_RTRL(window=4), TBPTT(8)]
    found = etpc.compare(leaky(), xs, targets, squared, algorithms)
    (note,) = found.notes
    assert note.startswith("Wrong(0.5, False, True, window=8), D_RTRL(window=8): no trace was read")
    assert not found.ok


@pytest.mark.slow
def test_options_reach_the_compiler():
    model, (xs, targets) = leaky(spare=jnp.ones(2)), data()
    options = dict(step=lambda m, x, s: m["m"](x, s), weights=lambda m: m["m"].log_tau)
    options |= dict(state=jnp.ones(4), tolerance=1e-5)
    found = etpc.compare({"m": model}, xs, targets, squared, ["d_rtrl", TBPTT(2)], **options)
    online, cut = ({row.path: row for row in result.rows} for result in found.results)
    assert online["['m'].win"].claim == "current step"
    assert online["['m'].log_tau"].held is True
    assert online["['m'].spare"].claim == cut["['m'].spare"].claim == "unused"
    assert found.tolerance == 1e-5
    assert found.ok, str(found)
    with pytest.raises(etpc.MemoryLimitError, match="for 2 examples"):
        etpc.compare(model, *data(2), squared, ["d_rtrl"], batch_size=2, memory=100)


@pytest.mark.slow
def test_tbptt_compiles_without_a_trace():
    """And is backpropagation in blocks; the last one of 30 steps in blocks of 7 is shorter."""
    model, (xs, targets) = leaky(rec=True), data()
    program = etpc.compile(model, TBPTT(7), inputs=xs[0])
    assert not program.memory().traces
    _, grads = program.value_and_grad(squared)(model, xs, targets, program.init())
    assert T % 7
    assert not program.exact
    for window, equal in ((7, True), (5, False)):
        _, want = etpc.bptt(model, xs, targets, squared, window=window)
        pairs = zip(*map(jax.tree.leaves, (grads, want)), strict=True)
        errors = [float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs]
        assert (max(errors) < 1e-12) is equal


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (D_RTRL(), "D_RTRL()"),
        (D_RTRL(window=10, backprop="full"), "D_RTRL(window=10, backprop='full')"),
        (ES_D_RTRL(), "ES_D_RTRL(decay=0.99)"),
        (ES_D_RTRL(rank=8, lookback=32), "ES_D_RTRL(rank=8, backprop='full', lookback=32)"),
        (SnAp(2, window=1), "SnAp(2, window=1)"),
        (TBPTT(5), "TBPTT(5)"),
    ],
)
def test_short_names(algorithm, name):
    assert short_name(algorithm) == name


@pytest.mark.slow
def test_how_far_back_gradients_reach(found):
    """In windows of three steps: blocks of six reach back to the window before, the immediate gradient to its own."""
    lags = found.by_lag
    assert list(lags) == [result.name for result in found.results]
    assert list(lags["RTRL()"]) == [(0, 3), (3, 6), (6, 12), (12, 24)]
    for name in ("RTRL()", f"TBPTT({T})"):
        assert list(lags[name].values()) == pytest.approx([1.0] * 4)
    assert lags["TBPTT(6)"][0, 3] == pytest.approx(1.0)
    assert 0.3 < lags["TBPTT(6)"][3, 6] < 0.99
    assert not [v for v in [*lags["TBPTT(6)"].values()][2:] if v == v]
    assert lags["TBPTT(1)"][0, 3] < 1 - 1e-3
    assert lags["D_RTRL()"][0, 3] > lags["D_RTRL()"][6, 12] > 0


@pytest.mark.slow
def test_gradients_that_were_given():
    model, (xs, targets) = recurrent(), data(2)
    _, grads = etpc.bptt(model, xs, targets, squared, batch_size=2)
    grads = eqx.tree_at(lambda m: (m.out, m.rec), grads, (-grads.out, None))
    found = etpc.compare(model, xs, targets, squared, [TBPTT(1), {"mine": grads}], batch_size=2)
    _, mine = found.results
    assert (mine.name, mine.algorithm, mine.carry_bytes, mine.program) == ("mine", None, None, None)
    rows = {row.path: row for row in mine.rows}
    assert rows[".win"].cosine == pytest.approx(1.0)
    assert rows[".rec"].ratio == 0.0
    assert (mine.worst.path, mine.worst.cosine) == (".out", pytest.approx(-1.0))
    assert "(worst: .out)" in str(found)
    assert found.between["mine"]["mine"] == pytest.approx(1.0)
    assert found.between["mine"]["TBPTT(1)"] == found.between["TBPTT(1)"]["mine"] < 0.9
    assert {row.claim for row in mine.rows} == {"-"}
    assert found.ok
    only = etpc.compare(model, xs, targets, squared, {"mine": grads, "now": TBPTT(1)}, batch_size=2)
    assert [result.name for result in only.results] == ["mine", "now"]
    assert only.results[1].algorithm == TBPTT(1)
    record = only.as_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["schema"] == "etpc-comparison/1"
    assert record["results"][0]["algorithm"] is None
    with pytest.raises(etpc.InputError, match="'mine' twice"):
        etpc.compare(model, xs, targets, squared, [{"mine": grads}, {"mine": grads}], batch_size=2)
    with pytest.raises(etpc.InputError, match=r"gradient of \.rec has shape"):
        etpc.compare(model, xs, targets, squared, {"mine": {".rec": jnp.ones(3)}}, batch_size=2)


@pytest.mark.parametrize(
    ("cosine", "claim", "remarked"),
    [
        (0.1, "approximate", True),
        (-0.5, "current step", True),
        (0.3, "approximate", False),
        (float("nan"), "approximate", False),
        (0.1, "exact", False),  # then something is wrong
        (0.1, "-", False),  # so perhaps here
    ],
)
def test_a_low_cosine_of_a_rule_comes_with_a_remark(cosine, claim, remarked):
    row = Row("w", cosine, 1.0, 1.0, 1.0, claim)
    result = Result(D_RTRL(), (row,), row, None, None, {"w": np.ones(1)})
    found = Comparison((result,), (), 1e-9, 1.0)
    said = "remark: a rule with a low cosine (below 0.2) may train as well as BPTT or better"
    assert (said in str(found)) == remarked
    assert len(found.as_dict()["remarks"]) == remarked
