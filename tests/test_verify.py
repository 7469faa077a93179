"""`etpc.verify` and `etpc.bptt`: what they say, and that they can say no."""

import dataclasses
import functools
import inspect
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc._agreement import Gradient, compare_all
from etpc._compare import Report, Result
from etpc.algorithms import Algorithm, Decay, Full
from etpc.traces import Trace
from tests.helpers import changed, distance
from tests.helpers import loss as squared
from tests.zoo.layouts import Spectral

T, I, O = 24, 3, 4
"""Longer than the default window."""


class Leaky(eqx.Module):
    """Exact under D-RTRL where it has no recurrent weight."""

    win: jax.Array
    log_tau: jax.Array
    out: jax.Array
    rec: jax.Array | None = None
    spare: jax.Array | None = None

    def __call__(self, x, h):
        drive = self.win @ x
        if self.rec is not None:
            drive = drive + self.rec @ jnp.tanh(h)
        h = jax.nn.sigmoid(self.log_tau) * h + drive
        return self.out @ jnp.tanh(h), h

    def init_state(self):
        return jnp.zeros(O)


class Spiking(eqx.Module):
    """A feed-forward layer of LIF neurons and a dense readout."""

    linear: eqx.nn.Linear
    lif: etpc.nn.LIF
    out: eqx.nn.Linear

    def __init__(self, scale=1.0):
        first, second = jax.random.split(jax.random.key(0))
        self.linear = etpc.nn.init(eqx.nn.Linear(I, O, key=first), "kaiming_normal", first)
        self.linear = eqx.tree_at(
            lambda m: (m.weight, m.bias),
            self.linear,
            (scale * jnp.abs(self.linear.weight), jnp.full(O, 0.3 * scale)),
        )
        self.lif = etpc.nn.LIF(O, tau=3.0)
        self.out = etpc.nn.init(eqx.nn.Linear(O, 2, key=second), "kaiming_normal", second)

    def __call__(self, x, V):
        spike, V = self.lif(self.linear(x), V)
        return self.out(spike), V

    def init_state(self):
        return self.lif.init_state()


def leaky(**more):
    rng = np.random.default_rng(0)
    win, tau, out, rec = (jnp.asarray(rng.normal(size=s)) for s in [(O, I), (O,), (2, O), (O, O)])
    more = {k: rec if v is True else v for k, v in more.items()}
    return Leaky(win, tau, out, **more)


def data(batch=None, outputs=2):
    rng = np.random.default_rng(1)
    lead = (T,) if batch is None else (T, batch)
    return jnp.asarray(rng.normal(size=(*lead, I))), jnp.asarray(rng.normal(size=(*lead, outputs)))


def rows(report):
    return {row.path: row for row in report.rows}


# --- bptt -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "reduction"), [(None, "sum"), (2, "mean")])
def test_bptt_is_jax_grad_of_a_loop(batch, reduction):
    model, (xs, targets) = leaky(rec=True), jax.tree.map(lambda a: a[:4], data(batch))

    def one(model, xs, targets):
        h, total = model.init_state(), 0.0
        for x, target in zip(xs, targets, strict=True):
            y, h = model(x, h)
            total = total + squared(y, target)
        return total

    def total(model):
        if batch is None:
            value = one(model, xs, targets)
        else:
            value = sum(one(model, xs[:, b], targets[:, b]) for b in range(batch)) / batch
        return value / 4 if reduction == "mean" else value

    expected = jax.jit(jax.value_and_grad(total))(model)
    loss, grads = etpc.bptt(model, xs, targets, squared, batch_size=batch, reduction=reduction)
    assert float(loss) == pytest.approx(float(expected[0]), rel=1e-12)
    assert distance(grads, expected[1]) < 1e-12


def test_bptt_with_step_and_state():
    xs, targets = data()
    model, start = leaky(), jnp.linspace(-1, 1, O)
    loss, grads = etpc.bptt(
        {"cell": model},
        xs,
        targets,
        squared,
        state={"h": start},
        step=lambda m, x, s: (lambda y, h: (y, {"h": h}))(*m["cell"](x, s["h"])),
        reduction="sum",
    )
    plain, plain_grads = etpc.bptt(model, xs, targets, squared, state=start, reduction="sum")
    assert float(loss) == float(plain)
    assert distance(grads["cell"], plain_grads) == 0.0
    assert float(loss) != float(etpc.bptt(model, xs, targets, squared, reduction="sum")[0])


@pytest.mark.slow
@pytest.mark.parametrize(("window", "batch"), [(1, None), (3, None), (3, 2), (7, 2), (8, None)])
def test_truncated_bptt_is_a_loop_over_windows(window, batch):
    """A window that leaves a remainder, one that holds all, and one that is longer."""
    steps, model = 7, leaky(rec=True)
    xs, targets = jax.tree.map(lambda a: a[:steps], data(batch))

    def one(model, h, xs, targets):
        total = 0.0
        for x, target in zip(xs, targets, strict=True):
            y, h = model(x, h)
            total = total + squared(y, target)
        return total, h

    gradient = jax.jit(jax.value_and_grad(one, has_aux=True))
    examples = [(xs, targets)] if batch is None else [(xs[:, b], targets[:, b]) for b in (0, 1)]
    loss, expected = 0.0, jax.tree.map(jnp.zeros_like, model)
    for x, target in examples:
        h = model.init_state()
        for at in range(0, steps, window):
            (value, h), grads = gradient(model, h, x[at : at + window], target[at : at + window])
            loss += float(value)
            expected = jax.tree.map(jnp.add, expected, grads)
    found, grads = etpc.bptt(
        model, xs, targets, squared, batch_size=batch, window=window, reduction="sum"
    )
    count = len(examples)
    assert float(found) == pytest.approx(loss / count, rel=1e-12)
    assert distance(grads, jax.tree.map(lambda g: g / count, expected)) < 1e-12
    whole = etpc.bptt(model, xs, targets, squared, batch_size=batch, reduction="sum")[1]
    assert (distance(grads, whole) > 1e-3) == (window < steps)


@pytest.mark.parametrize("window", [0, -1, True, 2.0])
def test_a_window_that_is_none(window):
    bptt = inspect.unwrap(etpc.bptt)
    with pytest.raises(etpc.InputError, match=r"window must be an int >= 1, not"):
        bptt(leaky(), *data(), squared, window=window)


# --- what holds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "batch"), [(leaky, None), (Spiking, 2)])
def test_exact_claims_hold(build, batch):
    report = etpc.verify(build(), *data(batch), squared, batch_size=batch)
    assert report.ok, str(report)
    assert not report.notes
    for row in report.rows:
        assert (row.claim, row.held) == ("exact", True)
        assert row.error < 1e-9
        assert row.cosine == pytest.approx(1, abs=1e-12)
        assert row.norm > 0
    assert str(report).count(" yes") == len(report.rows)
    assert "ok  (exact means a relative error of at most 1e-09)" in str(report)


@pytest.mark.slow
def test_an_approximation_claims_nothing():
    report = etpc.verify(leaky(rec=True), *data(), squared)
    row = rows(report)[".win"]
    assert (row.claim, row.held) == ("approximate", None)
    assert row.error > 1e-3
    assert report.ok  # nothing was claimed that does not hold
    assert rows(report)[".out"].claim == "exact"


@pytest.mark.slow
def test_rtrl_claims_everything():
    report = etpc.verify(leaky(rec=True), *data(), squared, algo="rtrl")
    assert {row.claim for row in report.rows} == {"exact"}
    assert report.ok, str(report)


def test_decay_is_an_approximation():
    report = etpc.verify(leaky(), *data(), squared, algo=etpc.ES_D_RTRL(decay=0.5))
    found = rows(report)
    assert found[".win"].claim == "approximate"
    assert found[".win"].error > 1e-3
    assert found[".log_tau"].claim == "exact"  # element-wise: the full trace


def test_an_untraced_weight_gets_the_current_step():
    report = etpc.verify(leaky(), *data(), squared, weights=lambda m: m.log_tau)
    row = rows(report)[".win"]
    assert (row.claim, row.held) == ("current step", None)
    assert row.error > 1e-3
    assert row.norm > 0


@pytest.mark.slow
def test_an_unused_parameter_is_no_reason_for_doubt():
    report = etpc.verify(leaky(spare=jnp.ones(2)), *data(), squared)
    row = rows(report)[".spare"]
    assert (row.claim, row.held, row.norm) == ("unused", True, 0.0)
    assert np.isnan(row.cosine)
    assert report.ok, str(report)


@pytest.mark.slow
def test_the_loss_is_that_of_bptt():
    model, (xs, targets) = leaky(), data()
    report = etpc.verify(model, xs, targets, squared)
    assert report.loss == pytest.approx(float(etpc.bptt(model, xs, targets, squared)[0]), rel=1e-12)


@pytest.mark.slow
def test_the_ratio_is_that_of_the_norms():
    model, (xs, targets) = leaky(rec=True), data()
    report = etpc.verify(model, xs, targets, squared)
    program = report.program
    (_, _), online = program.value_and_grad(squared)(model, xs, targets, program.init())
    _, whole = etpc.bptt(model, xs, targets, squared)
    for row, name in zip(report.rows, ("win", "log_tau", "out", "rec"), strict=True):
        expected = jnp.linalg.norm(getattr(online, name)) / jnp.linalg.norm(getattr(whole, name))
        assert row.ratio == pytest.approx(float(expected), rel=1e-12)
    assert rows(report)[".rec"].ratio != pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_both_parts_of_a_complex_gradient_are_compared():
    def step(w, x, h):
        h = w * h + x
        return jnp.real(h) ** 2, h

    w, start = jnp.asarray([0.5 + 0.6j, -0.2 + 0.3j]), jnp.ones(2, complex)
    xs, targets = jnp.ones((T, 2), complex), jnp.zeros((T, 2))
    report = etpc.verify(w, xs, targets, squared, state=start, step=step)
    _, whole = etpc.bptt(w, xs, targets, squared, state=start, step=step)
    assert report.ok
    assert float(jnp.linalg.norm(jnp.imag(whole))) > 0.1
    assert report.rows[0].norm == pytest.approx(float(jnp.linalg.norm(whole)), rel=1e-12)


def test_table():
    report = etpc.verify(leaky(rec=True), *data(), squared)
    text = str(report)
    head, _, columns, rule, *body = text.splitlines()
    assert head.startswith("D_RTRL(")
    assert "against BPTT (loss" in head
    assert columns.split() == [
        *("parameter", "cosine", "rel.", "error", "ratio", "norm", "claim", "held")
    ]
    assert set(rule) == {"-", " "}
    assert [line.split()[0] for line in body[:4]] == [".win", ".log_tau", ".out", ".rec"]
    assert repr(report) == text


# --- what is empty --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_silent_network_is_noted():
    report = etpc.verify(Spiking(scale=1e-3), *data(), squared)
    assert report.vacuous
    assert not report.ok
    assert any("no spike on this sequence: the layer is silent" in note for note in report.notes)
    assert "NOT ok: the comparison is vacuous in part" in str(report)
    # Its readout has no gradient, which shows nothing about it.
    row = rows(report)[".out.weight"]
    assert row.norm == 0
    assert row.held is None
    assert any("gradient of .out.weight is zero" in note for note in report.notes)


def test_a_zero_gradient_is_noted():
    model = eqx.tree_at(lambda m: m.out, leaky(), jnp.zeros((2, O)))
    report = etpc.verify(model, *data(), squared)
    assert not report.ok
    assert any("BPTT gradient of .win is zero" in note for note in report.notes)
    assert rows(report)[".win"].held is None
    assert rows(report)[".out"].held is True


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("model", "NaN or infinity is in .win[1, 2]"),
        ("state", "NaN or infinity is in state[0, 3]"),
        ("xs", "NaN or infinity is in xs[5, 1, 2]"),
        ("targets", "NaN or infinity is in targets[0, 1, 1]"),
        ("loss", "it comes from the step or the loss; `jax.config.update('jax_debug_nans', True)`"),
    ],
)
def test_what_is_not_finite_is_noted_and_no_claim_is_blamed(at, said):
    """Data that the mask leaves out may be what it is."""
    parts = dict(
        zip(("model", "xs", "targets", "state"), (leaky(), *data(2), jnp.zeros(O)), strict=True)
    )
    places = {"model": (1, 2), "state": (3,), "xs": (5, 1, 2), "targets": (0, 1, 1)}
    parts["xs"], parts["targets"] = (parts[n].at[2, 0].set(jnp.nan) for n in ("xs", "targets"))
    if at in places:
        where = lambda m: m.win if at == "model" else m
        broken = where(parts[at]).at[places[at]].set(jnp.nan)
        parts[at] = eqx.tree_at(where, parts[at], broken)
    loss_fn = (lambda y, t: squared(y, t) * jnp.inf) if at == "loss" else squared
    mask = jnp.ones((T, 2)).at[2, 0].set(0)
    report = etpc.verify(**parts, loss_fn=loss_fn, batch_size=2, mask=mask)
    (note,) = report.notes
    assert note.startswith("the BPTT gradient of ")
    assert ".win" in note
    assert said in note
    assert rows(report)[".win"].held is None
    assert report.results[0].total.held is None
    assert not report.ok
    assert " NO" not in str(report)


# --- negative controls ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Boastful(Algorithm):
    """Claims exactness for an approximation."""

    name: ClassVar[str] = "boastful"

    def trace_form(self, kind):
        return Full() if kind.data is None else changed(Decay(0.5), exact=True)


@dataclasses.dataclass(frozen=True)
class Scaled(Trace):
    """A trace that is scaled after each window, and says it is exact; or only as it is moved by one more."""

    factor: float = 0.5
    when_moved: bool = False
    inner: Full = Full()
    exact = True

    def init(self, site, batch):
        return self.inner.init(site, batch)

    def entries(self, site, start, carry):
        return self.inner.entries(site, start, carry)

    def gathered(self, site, entries):
        return self.inner.gathered(site, entries)

    def advance(self, site, passage, carry, followed, start):
        move = self.inner.advance
        if self.when_moved:
            carry = tuple(self.factor * a for a in carry)
            return move(site, passage, carry, followed, None)
        return tuple(self.factor * a for a in move(site, passage, carry, followed, start))


@dataclasses.dataclass(frozen=True)
class Wrong(Algorithm):
    """Carries `Scaled` traces; where `mixing` is false, of element-wise weights alone."""

    factor: float = 0.5
    when_moved: bool = False
    mixing: bool = True

    def trace_form(self, kind):
        wrong = Scaled(factor=self.factor, when_moved=self.when_moved)
        return wrong if self.mixing or kind.data is None else Full()


def test_a_wrong_claim_of_an_algorithm_is_caught():
    report = etpc.verify(leaky(), *data(), squared, algo=Boastful())
    row = rows(report)[".win"]
    assert (row.claim, row.held) == ("exact", False)
    assert not report.ok
    (line,) = [line for line in str(report).splitlines() if line.startswith(".win")]
    assert line.endswith("NO")
    assert "\nNOT ok  (" in str(report)


@functools.cache
def compiled_once():
    return etpc.compile(leaky(), inputs=jnp.zeros(I))


def fixed(program, tree, moved=None):
    """A gradient that is `tree`, and `moved` where the last digits of the parameters are others."""
    run = lambda model, mask: (1.0, tree if mask is None or moved is None else moved)
    return Gradient(run, program.plan.analysis.step.model_leaves, leaky(), None, (T,))


@pytest.mark.parametrize(
    ("got", "want", "held"),
    [
        (1.0, 1.0, True),
        (1.0 + 1e-12, 1.0, True),
        (1.0 + 1e-6, 1.0, False),
        (0.0, 1.0, False),
        (-1.0, 1.0, False),
        (2.0, 1.0, False),
        (1.0, 0.0, False),
        (0.0, 0.0, None),
        (np.nan, 1.0, False),
        (np.inf, 1.0, False),
        (1.0, np.nan, None),
        (np.nan, np.nan, None),
        (np.inf, np.inf, None),
    ],
)
def test_compare(got, want, held):
    program = compiled_once()
    got, want = (
        fixed(program, jax.tree.map(lambda a, v=v: jnp.full_like(a, v), leaky()))
        for v in (got, want)
    )
    rows = compare_all(got, want, {".win": "exact"}, 1e-9, jnp.float64)
    assert rows[0].held is held
    result = Result(program.algorithm, rows, rows[0], 0, program)
    report = Report((result,), (), 1e-9, 1.0)
    assert report.ok is (held is not False)
    assert ("NO" in str(report).splitlines()[4]) is (held is False)


@pytest.mark.slow
def test_tolerance():
    model, (xs, targets) = leaky(), data()
    strict = etpc.verify(model, xs, targets, squared, tolerance=0.0)
    assert any(row.held is False for row in strict.rows)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (model, xs, targets))
    report = etpc.verify(*single, squared, state=jnp.zeros(O, jnp.float32))
    assert report.tolerance == 1e-3
    assert report.ok, str(report)
    assert max(row.error for row in report.rows) > 1e-12  # it was float32


# --- rounding -------------------------------------------------------------------------------------


class Attention(eqx.Module):
    """A recurrent query over slots; the bias of the keys changes no weight of the softmax."""

    query: jax.Array
    key: jax.Array
    key_bias: jax.Array
    value: jax.Array
    out: jax.Array

    def __call__(self, x, h):
        slots = h.reshape(4, 4)
        keys = slots @ self.key.T + self.key_bias[None]
        scores = keys @ (self.query @ x)
        read = self.value @ (jax.nn.softmax(scores / 2) @ slots)
        places = jnp.cos(jnp.arange(4.0)).astype(h.dtype)
        h = (
            jnp.asarray(0.8, h.dtype) * h
            + jnp.tanh(jnp.outer(places, read + self.query @ x)).ravel()
        )
        return self.out @ h, h


def attention(dtype=jnp.float64):
    rng = np.random.default_rng(0)
    shapes = [(4, I), (4, 4), (4,), (4, 4), (2, 16)]
    model = Attention(*(jnp.asarray(rng.normal(size=s), dtype) for s in shapes))
    return model, jnp.full(16, 0.1, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("batch", [None, 3])
def test_a_gradient_that_is_zero_but_for_rounding(dtype, batch):
    model, state = attention(dtype)
    xs, targets = (a.astype(dtype) for a in data(batch))
    report = etpc.verify(model, xs, targets, squared, "rtrl", state=state, batch_size=batch)
    row = rows(report)[".key_bias"]
    assert row.claim == "exact"
    assert row.error > report.tolerance  # noise against noise
    assert 0 < row.norm < jnp.finfo(dtype).eps * max(r.norm for r in report.rows)
    assert row.held
    assert "NO" not in str(report)
    found = etpc.compare(model, xs, targets, squared, ["rtrl"], state=state, batch_size=batch)
    assert found.results[0].rows == report.rows


@pytest.mark.parametrize(
    ("size", "error", "noise", "held"),
    [
        (1e-3, 1e-12, 0, True),
        (1e-3, 1e-6, 0, False),
        (1e-8, 1e-6, 1e-14, True),  # 1e-14 of the whole, and its terms cancel
        (1e-8, 1e-6, 1e-16, False),  # they do not cancel so far
        (1e-8, 1e-6, 0, False),
        (1e-8, 1e-4, 1e-8, False),  # more than rounding makes of the whole
        (1e-15, 1.0, 1e-15, True),
        (1e-15, 1.0, 0, False),  # small, and wrong
        (0.0, 1e-15, 1e-15, None),
        (0.0, 1e-15, 0, False),
    ],
)
def test_rounding_excuses_what_it_explains(size, error, noise, held):
    """Beside a parameter whose gradient has norm one, one that is small and off by a relative error, and
    that `noise` is added to where the last digits of the parameters are others."""
    program = compiled_once()

    def gradient(value):
        tree = jax.tree.map(jnp.zeros_like, leaky())
        tree = eqx.tree_at(lambda m: m.out, tree, tree.out.at[0, 0].set(1.0))
        small = lambda v: eqx.tree_at(lambda m: m.log_tau, tree, tree.log_tau.at[0].set(v))
        return fixed(program, small(value), small(value + noise))

    claims = {path: claim.claim for path, claim in program.claims.items()}
    got, want = gradient(size * (1 + error) if size else error), gradient(size)
    found = {row.path: row for row in compare_all(got, want, claims, 1e-9, jnp.float64)}
    assert found[".out"].held
    assert found[".log_tau"].held is held
    assert found[".log_tau"].claim == "exact"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_a_small_gradient_that_is_wrong_is_not_excused(dtype):
    """A time constant with hardly any effect, beside a weight: as small as rounding of the weight's."""
    scale = 1e3 * float(jnp.finfo(dtype).eps)

    def step(w, x, h):
        h = 0.5 * h + scale * w["leak"] * jnp.tanh(h) + w["in"] @ x
        return h, h

    rng = np.random.default_rng(0)
    w = {"in": jnp.asarray(rng.normal(size=(O, I)), dtype), "leak": jnp.ones(O, dtype)}
    xs, targets = (a.astype(dtype) for a in data(outputs=O))
    for rule, held in ((Wrong(-5.0, mixing=False), False), (etpc.D_RTRL(), True)):
        report = etpc.verify(w, xs, targets, squared, rule, state=jnp.zeros(O, dtype), step=step)
        leak, weight = (rows(report)[f"['{name}']"] for name in ("leak", "in"))
        assert 0 < leak.norm < scale * weight.norm
        assert (leak.error > 0.05) is not held
        assert (weight.held, leak.held, report.ok) == (True, held, held)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance", "inside"),
    [
        (jnp.float32, 1e-3, False),
        (jnp.float16, 2**-5, True),
        (jnp.bfloat16, 2**-3.5, False),
        (jnp.bfloat16, 2**-3.5, True),
    ],
)
def test_the_tolerance_is_that_of_the_least_precise_dtype(dtype, tolerance, inside):
    """Of the parameters and states, or of what is computed from them."""
    own = jnp.float32 if inside else dtype

    def step(w, x, h):
        h = 0.8 * h + (w.astype(dtype) @ x.astype(dtype)).astype(own)
        return h.astype(jnp.float32), h

    xs, targets = (a.astype(jnp.float32) for a in data(2, outputs=O))
    w = leaky().win.astype(own)
    for rule, ok in ((etpc.D_RTRL(), True), (Wrong(-1.0, window=4), False)):
        report = etpc.verify(
            w,
            xs.astype(own),
            targets,
            squared,
            rule,
            state=jnp.zeros(O, own),
            step=step,
            batch_size=2,
        )
        assert report.tolerance == pytest.approx(tolerance, rel=1e-6)
        assert report.ok is ok, str(report)


# --- traces that are not read ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "steps", "kept", "read"),
    [
        (Wrong(window=8), 9, None, True),
        (Wrong(window=8), 24, slice(0, 8), False),
        (Wrong(window=8), 24, slice(8, 9), True),
        (Wrong(), 20, None, False),  # in one window, though one of 16 was chosen
        (Wrong(window=4, lookback=8), 12, slice(0, 8), False),
        (Wrong(window=4, lookback=8), 12, None, True),
        (etpc.D_RTRL(backprop="full"), 16, None, False),
        (etpc.TBPTT(24), 20, None, True),  # it has no traces
    ],
)
def test_a_trace_that_was_not_read_is_noted(algo, steps, kept, read):
    model, (xs, targets) = leaky(), jax.tree.map(lambda a: a[:steps], data())
    mask = None if kept is None else jnp.zeros(steps).at[kept].set(1.0)
    report = etpc.verify(model, xs, targets, squared, algo, mask=mask)
    assert any("no trace was read" in note for note in report.notes) is not read
    assert report.ok is (isinstance(algo, etpc.TBPTT))
    if read and isinstance(algo, Wrong):
        assert {row.held for row in report.rows} == {True, False}
    if not read:
        assert all(row.held is not False for row in report.rows)


# --- models with `eqx.nn.State` -------------------------------------------------------------------


class Normalised(eqx.Module):
    """Batch normalisation by the statistics that it holds; in training it needs the whole batch."""

    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __call__(self, x, state):
        h, state = state
        current, state = self.norm(self.linear(x), state)
        h = 0.7 * h + current
        return h, (h, state)


class RunningMean(eqx.Module):
    """Subtracts a running mean of its own outputs, through which influence lasts."""

    weight: jax.Array
    mean: eqx.nn.StateIndex
    count: eqx.nn.StateIndex

    def __init__(self, weight):
        self.weight = weight
        self.mean = eqx.nn.StateIndex(jnp.zeros(len(weight)))
        self.count = eqx.nn.StateIndex(jnp.zeros((), jnp.int32))

    def __call__(self, x, state):
        current = self.weight @ x
        mean = 0.9 * state.get(self.mean) + 0.1 * current
        state = state.set(self.mean, mean)
        state = state.set(self.count, state.get(self.count) + 1)
        return jnp.tanh(current - mean), state


def with_state(name):
    linear = eqx.nn.Linear(I, 2, key=jax.random.key(0))
    if name == "RunningMean":
        return eqx.nn.make_with_state(RunningMean)(jnp.asarray(linear.weight))
    if name == "SpectralNorm":
        make = eqx.nn.make_with_state(eqx.nn.SpectralNorm)
        layer, state = make(linear, "weight", key=jax.random.key(1))
        return Spectral(layer), (jnp.zeros(2), state)
    make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
    norm, state = make(2, "batch", mode="ema", inference=True)
    return Normalised(linear, norm), (jnp.zeros(2), state)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RunningMean", "SpectralNorm", "BatchNorm"])
@pytest.mark.parametrize("batch", [None, 2])
def test_models_with_an_equinox_state(name, batch):
    model, state = with_state(name)
    xs, targets = data(batch)
    given = {"state": state, "batch_size": batch}
    report = etpc.verify(model, xs, targets, squared, "rtrl", **given)
    assert report.ok, str(report)
    assert all(row.norm > 1e-3 for row in report.rows)
    value, grads = etpc.bptt(model, xs, targets, squared, **given)
    assert float(value) == pytest.approx(report.loss, rel=1e-12)

    def by_hand(model):
        total, examples = 0.0, [()] if batch is None else [(b,) for b in range(batch)]
        for b in examples:
            leaves, treedef = jax.tree.flatten(state)
            now = treedef.unflatten(leaves)
            for t in range(len(xs)):
                y, now = model(xs[(t, *b)], now)
                total = total + squared(y, targets[(t, *b)])
        return total / (len(xs) * len(examples))

    assert distance(grads, eqx.filter_jit(eqx.filter_grad(by_hand))(model)) < 1e-12
    found = etpc.compare(model, xs, targets, squared, ["rtrl", etpc.TBPTT(5)], **given)
    assert found.ok, str(found)
    leaves = jax.tree.leaves(state)  # it was not used up
    assert all(not a.is_deleted() for a in leaves if eqx.is_array(a))


# --- models with numbers of NumPy ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3)])
def test_a_model_with_a_number_of_numpy(number):
    """A size that is NumPy's integer is part of the program, as Python's is."""

    class Sized(eqx.Module):
        w: jax.Array
        size: Any

        def init_state(self):
            return jnp.zeros(3)

        def __call__(self, x, h):
            h = 0.5 * h + self.w * jnp.ones(self.size) * x
            return h, h

    xs = jnp.ones((40, 3))
    report = etpc.verify(Sized(jnp.ones(3), number), xs, 2 * xs, lambda y, t: jnp.sum((y - t) ** 2))
    assert report.ok
    assert [row.claim for row in report.rows] == ["exact"]


# --- what the reference refuses -------------------------------------------------------------------


REFUSED = {
    "a loss that is an array": ({"loss_fn": lambda y, t: (y - t) ** 2}, etpc.InputError, "one float"),
    "a loss that is an int": ({"loss_fn": lambda y, t: 1}, etpc.InputError, "one float"),
    "a state of another dtype": (
        {"step": lambda w, x, h: (w * x, h.astype(jnp.float32))},
        etpc.ModelError,
        "changes the state from float64.* to float32",
    ),
    "a state of another structure": (
        {"step": lambda w, x, h: (w * x, (h, h))}, etpc.ModelError, "changes the structure",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bptt_refuses(name):
    change, error, words = REFUSED[name]
    arguments = {
        "xs": jnp.ones((4, 2, 3)),
        "loss_fn": lambda y, t: jnp.sum((y - t) ** 2),
        "step": lambda w, x, h: (w * x + h, w * x + h),
        **change,
    }
    with pytest.raises(error, match=words):
        etpc.bptt(
            jnp.ones(3), targets=arguments["xs"], state=jnp.zeros(3), batch_size=2, **arguments
        )


# --- a reference that is not the model ------------------------------------------------------------


def through_feedback(back):
    """A recurrent net whose error goes back through other weights than those of its readout."""
    model = leaky(rec=True)

    def step(model, x, h):
        _, h = model(x, h)
        return etpc.nn.broadcast_readout(model.out, back, jnp.tanh(h)), h

    return model, step


@pytest.mark.slow
def test_bptt_goes_back_through_feedback_unless_a_reference_is_given():
    back = jnp.asarray(np.random.default_rng(5).normal(size=(2, O)))
    model, step = through_feedback(back)
    options = dict(algo="rtrl", step=step)
    report = etpc.verify(model, *data(), squared, **options)
    assert report.ok
    (remark,) = report.remarks
    assert "reference=" in remark
    assert remark in str(report)
    assert remark in report.as_dict()["remarks"]
    _, true = etpc.bptt(model, *data(), squared)
    for reference in (lambda model, x, h: model(x, h), model):
        if reference is model:  # called as the model is, so by a step that leaves the feedback out
            options["step"] = None
        against = etpc.verify(model, *data(), squared, **(options | dict(reference=reference)))
        assert not against.remarks
        assert "against BPTT of the reference" in str(against)
        assert [row.held for row in against.rows] == [None] * 4
        for path, value in against.trial.reference.values.items():
            want = np.asarray(getattr(true, path[1:])).reshape(-1)
            np.testing.assert_allclose(value, want, rtol=1e-12)
        assert (rows(against)[".rec"].error > 0.1) is (reference is not model)
        assert rows(against)[".out"].error < 1e-12
    plain = etpc.verify(model, *data(), squared, "rtrl")
    assert not plain.remarks


@pytest.mark.slow
@pytest.mark.parametrize("in_value", [False, True])
def test_feedback_by_a_backward_rule_of_its_own_is_told(in_value):
    """An array that a `custom_vjp` needs for its value as well is nothing to tell of."""

    @jax.custom_vjp
    def readout(out, back, h):
        return out @ h + (jnp.sum(back) if in_value else 0)

    readout.defvjp(
        lambda out, back, h: (readout(out, back, h), (out, back, h)),
        lambda kept, bar: (jnp.outer(bar, kept[2]), jnp.zeros_like(kept[1]), kept[1].T @ bar),
    )
    model, back = leaky(rec=True), jnp.asarray(np.random.default_rng(5).normal(size=(2, O)))

    def step(model, x, h):
        _, h = model(x, h)
        return readout(model.out, back, jnp.tanh(h)), h

    report = etpc.verify(model, *data(), squared, algo="rtrl", step=step)
    told = [
        "`custom_vjp` with an array that only its backward rule reads" in r for r in report.remarks
    ]
    assert told == ([] if in_value else [True])


@pytest.mark.slow
def test_a_reference_with_some_of_the_parameters():
    model, fewer = {"net": leaky(), "feedback": jnp.ones(3)}, {"net": leaky()}
    options = dict(step=lambda m, x, h: m["net"](x, h), state=jnp.zeros(O))
    report = etpc.verify(model, *data(), squared, reference=fewer, **options)
    assert [row.path for row in report.rows] == ["['net'].win", "['net'].log_tau", "['net'].out"]
    assert all(row.error < 1e-12 for row in report.rows)
    with pytest.raises(etpc.InputTypeError, match="without a parameter of the model"):
        etpc.verify(model, *data(), squared, reference={"other": jnp.ones(3)}, **options)
    other = {"net": eqx.tree_at(lambda m: m.out, leaky(), jnp.ones((3, O)))}
    with pytest.raises(etpc.InputError, match=r"out of shape \[3, 4\], and the model of \[2, 4\]"):
        etpc.verify(model, *data(), squared, reference=other, **options)
