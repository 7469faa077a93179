"""`etpc.verify` and `etpc.bptt`: what they say, and that they can say no."""

import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import etpc
from etpc.algorithms import Algorithm, Full
from etpc.checking.compare import Report, Result
from etpc.forms import Trace
from etpc.gradient.agreement import KnownGradient, compare_all
from tests.helpers import by_path, distance
from tests.helpers import loss as squared
from tests.marks import few, first
from tests.test_initial_state import model as learned

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "batch"), [(None, 2), (1, None), (3, None), (3, 2), (7, 2), (8, None)]
)
def test_bptt_is_a_loop_over_windows(window, batch):
    """One that holds all, also by default, one that is longer, and ones that leave a remainder."""
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
    loss, expected, length = 0.0, jax.tree.map(jnp.zeros_like, model), window or steps
    for x, target in examples:
        h = model.init_state()
        for at in range(0, steps, length):
            (value, h), grads = gradient(model, h, x[at : at + length], target[at : at + length])
            loss += float(value)
            expected = jax.tree.map(jnp.add, expected, grads)
    options = dict(batch_size=batch, reduction="sum")
    found, grads = etpc.bptt(model, xs, targets, squared, window=window, **options)
    count = len(examples)
    assert float(found) == pytest.approx(loss / count, rel=1e-12)
    assert distance(grads, jax.tree.map(lambda g: g / count, expected)) < 1e-12
    whole = etpc.bptt(model, xs, targets, squared, **options)[1]
    assert (distance(grads, whole) > 1e-3) == (length < steps)


def test_bptt_of_a_batch_takes_a_sparse_matrix():
    at = np.stack(np.divmod(np.arange(0, I * I, 3), I), 1)
    values = jnp.linspace(0.1, 0.9, len(at))
    matrix = sparse.BCOO((values, jnp.asarray(at)), shape=(I, I))
    step = lambda m, x, h: (jnp.tanh(m["w"] @ h + x),) * 2
    xs = data(2)[0]
    options = dict(state=jnp.zeros(I), step=step, batch_size=2)
    bptt = lambda w: etpc.bptt({"w": w}, xs, 0 * xs, squared, **options)[1]["w"]
    expected = bptt(matrix.todense())[at[:, 0], at[:, 1]]
    assert jnp.abs(expected).max() > 1e-3
    assert distance(bptt(matrix).data, expected) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("learns_start", [True, False])
def test_streams_begin_inside_a_sequence(learns_start, window):
    """The gradient is that of each stream alone; a program has it too, also without passes."""
    net = learned(recurrent=True) if learns_start else leaky(rec=True)
    rng, outputs = np.random.default_rng(2), () if learns_start else (2,)
    xs = rng.normal(size=(T, 2, 2 if learns_start else I))
    targets = rng.normal(size=(T, 2, *(outputs or (4,))))
    begins = np.zeros((T, 2), bool)
    begins[[0, 3, 9], 0] = begins[18, 1] = True
    of = dict(reduction="sum", window=window)
    found = etpc.bptt(net, xs, targets, squared, batch_size=2, begins=begins, **of)
    alone = [
        etpc.bptt(net, xs[part, b], targets[part, b], squared, **of)
        for b, starts in enumerate(([0, 3, 9, T], [0, 18, T]))
        for part in itertools.starmap(slice, itertools.pairwise(starts))
    ]
    total = jax.tree.map(lambda *each: sum(each) / 2, *alone)
    assert float(found[0]) == pytest.approx(float(total[0]), rel=1e-12)
    assert distance(found[1], total[1]) < 1e-11
    if window is None:
        options = dict(batch_size=2, begins=begins, passes=())
        report = etpc.verify(net, xs, targets, squared, etpc.RTRL(window=5), **options)
        assert report.ok
        assert {row.claim for row in report.rows} == {"exact"}
        assert report.by_lag == {}
        assert not any(each.ran for each in report.program.passes)
        assert distance(found[1], etpc.bptt(net, xs, targets, squared, batch_size=2)[1]) > 1e-2


CLAIMS = {
    "all exact": (leaky, None, {}, {}),
    "spikes": (Spiking, 2, {}, {}),
    "what escapes": (
        functools.partial(leaky, rec=True),
        *(None, {}, dict.fromkeys((".win", ".log_tau", ".rec"), "approximate")),
    ),
    "RTRL": (functools.partial(leaky, rec=True), None, dict(algo="rtrl"), {}),
    "decay": (leaky, 2, dict(algo=etpc.ES_D_RTRL(decay=0.5)), {".win": "approximate"}),
    "no trace": (leaky, None, dict(weights=lambda m: m.log_tau), {".win": "current step"}),
    "unused": (functools.partial(leaky, spare=jnp.ones(2)), None, {}, {".spare": "unused"}),
}


@pytest.mark.parametrize("name", few(CLAIMS, "spikes", "no trace"))
def test_claims(name):
    """Each row is what its two gradients are, and only a claim that says so has to hold."""
    build, batch, options, claims = CLAIMS[name]
    model, given = build(), (*data(batch), squared)
    report = etpc.verify(model, *given, batch_size=batch, **options)
    assert report.ok, str(report)
    assert not report.notes
    program = report.program
    (value, _), online = program.value_and_grad(squared)(model, *given[:2], program.init(batch))
    loss, whole = etpc.bptt(model, *given, batch_size=batch)
    assert report.loss == pytest.approx(float(loss), rel=1e-12)
    assert float(value) == pytest.approx(report.loss, rel=1e-9)
    online, whole = by_path(online), by_path(whole)
    assert [row.path for row in report.rows] == list(whole)
    for row in report.rows:
        assert row.claim == claims.get(row.path, "exact")
        assert row.held is {"exact": True, "unused": True}.get(row.claim)
        got, want = online[row.path], whole[row.path]
        assert row.norm == pytest.approx(np.linalg.norm(want), rel=1e-12)
        if row.claim == "unused":
            assert row.norm == 0.0
            assert np.isnan(row.cosine)
            continue
        assert row.norm > 0
        assert row.ratio == pytest.approx(np.linalg.norm(got) / row.norm, rel=1e-12)
        assert row.error == pytest.approx(np.linalg.norm(got - want) / row.norm, abs=1e-12)
        assert row.cosine == pytest.approx(np.sum(got * want) / row.norm**2 / row.ratio, rel=1e-12)
        assert (row.error < 1e-9) == (row.claim == "exact")
        assert (row.error > 1e-3) == (row.claim != "exact")
    assert str(report).count(" yes") == sum(row.held is True for row in report.rows)
    assert "ok  (exact means a relative error of at most 1e-09)" in str(report)


def test_weights_behind_a_spike_without_a_surrogate_are_named():
    """Their gradient is zero by claim, which holds: so it is said that they learn nothing."""

    def step(w, x, v):
        v = 0.9 * v + w["win"] @ x + w["rec"] @ (v > 1).astype(v.dtype)
        return w["out"] @ (v > 1).astype(v.dtype), v

    w = {"out": jnp.ones((2, 4)), "rec": jnp.eye(4), "spare": jnp.ones(2), "win": jnp.ones((4, I))}
    report = etpc.verify(w, *data(), squared, step=step, state=jnp.zeros(4))
    assert report.ok
    (remark,) = report.remarks
    assert remark.startswith("['rec'], ['win']: unused")


# --- negative controls ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scaled(Trace):
    """A trace that is scaled after each window, and says it is exact; or only as it is moved by one more."""

    factor: float = 0.5
    when_moved: bool = False
    inner: Full = Full()
    exact = True

    def init(self, site, batch):
        return self.inner.init(site, batch)

    def past(self, site, start, carry):
        return self.inner.past(site, start, carry)

    def move(self, site, passage, path, carry, start):
        move = self.inner.move
        if self.when_moved:
            return move(site, passage, path, tuple(self.factor * a for a in carry), None)
        return tuple(self.factor * a for a in move(site, passage, path, carry, start))


@dataclasses.dataclass(frozen=True)
class Wrong(Algorithm):
    """Carries `Scaled` traces; where `mixing` is false, of element-wise weights alone."""

    factor: float = 0.5
    when_moved: bool = False
    mixing: bool = True

    def trace_form(self, kind):
        wrong = Scaled(factor=self.factor, when_moved=self.when_moved)
        return wrong if self.mixing or kind.data is None else Full()


class Estimate(KnownGradient):
    """A gradient of a parameter `w`, beside one of norm one, that moves by `noise` with the last digits."""

    def __init__(self, value, noise):
        super().__init__({"w": np.full(1, value), "other": np.ones(1)})
        self._noise = noise

    def noise(self, path, unit):
        return self._noise


@pytest.mark.parametrize(
    ("got", "want", "noise", "held"),
    [
        (1.0, 1.0, 0, True),
        (1.0 + 1e-12, 1.0, 0, True),
        (1.0 + 1e-6, 1.0, 0, False),
        (0.0, 1.0, 0, False),
        (-1.0, 1.0, 0, False),
        (2.0, 1.0, 0, False),
        (1.0, 0.0, 0, False),
        (0.0, 0.0, 0, None),
        (np.nan, 1.0, 0, False),
        (np.inf, 1.0, 0, False),
        (1.0, np.nan, 0, None),
        (np.nan, np.nan, 0, None),
        (np.inf, np.inf, 0, None),
        (1e-3 * (1 + 1e-12), 1e-3, 0, True),
        (1e-3 * (1 + 1e-6), 1e-3, 0, False),
        (1e-8 * (1 + 1e-6), 1e-8, 1e-14, True),  # 1e-14 of the whole, and its terms cancel
        (1e-8 * (1 + 1e-6), 1e-8, 1e-16, False),  # they do not cancel so far
        (1e-8 * (1 + 1e-6), 1e-8, 0, False),
        (1e-8 * (1 + 1e-4), 1e-8, 1e-8, False),  # more than rounding makes of the whole
        (2e-15, 1e-15, 1e-15, True),
        (2e-15, 1e-15, 0, False),  # small, and wrong
        (1e-15, 0.0, 1e-15, None),
        (1e-15, 0.0, 0, False),
    ],
)
def test_what_holds_but_for_rounding(got, want, noise, held):
    claims = {"w": "exact", "other": "exact"}
    found = compare_all(Estimate(got, noise), Estimate(want, noise), claims, 1e-9, jnp.float64)
    row, other = found
    assert row.held is held
    assert other.held
    report = Report((Result(etpc.D_RTRL(), found, row, 0, compiled_once()),), (), 1e-9, 1.0)
    assert report.ok is (held is not False)
    assert ("NO" in str(report).splitlines()[4]) is (held is False)


@functools.cache
def compiled_once():
    return etpc.compile(leaky(), inputs=jnp.zeros(I))


def test_a_tolerance_of_zero():
    strict = etpc.verify(leaky(), *data(), squared, tolerance=0.0)
    assert any(row.held is False for row in strict.rows)


# --- rounding -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("batch", [None, 3])
def test_a_gradient_that_is_zero_but_for_rounding(dtype, batch):
    """What is added to all logits of a softmax changes nothing."""
    step = lambda w, x, h: (0.8 * h + w["in"] @ x + jax.nn.softmax(h * h[::-1] + w["bias"]),) * 2
    rng = np.random.default_rng(0)
    w = {"in": jnp.asarray(rng.normal(size=(O, I)), dtype), "bias": jnp.ones((), dtype)}
    xs, targets = (a.astype(dtype) for a in data(batch, outputs=O))
    given = dict(state=jnp.full(O, 0.1, dtype), step=step, batch_size=batch)
    report = etpc.verify(w, xs, targets, squared, "rtrl", **given)
    row = rows(report)["['bias']"]
    assert row.claim == "exact"
    assert row.error > report.tolerance  # noise against noise
    assert 0 < row.norm < jnp.finfo(dtype).eps * max(r.norm for r in report.rows)
    assert row.held
    assert "NO" not in str(report)
    found = etpc.compare(w, xs, targets, squared, ["rtrl"], **given)
    assert found.results[0].rows == report.rows


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_a_small_gradient_that_is_wrong_is_not_excused(dtype):
    """A time constant with hardly any effect, beside a weight: as small as rounding of the weight's."""
    scale = 1e3 * float(jnp.finfo(dtype).eps)
    step = lambda w, x, h: (0.5 * h + scale * w["leak"] * jnp.tanh(h) + w["in"] @ x,) * 2
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
        given = w, xs.astype(own), targets, squared, rule
        report = etpc.verify(*given, state=jnp.zeros(O, own), step=step, batch_size=2)
        assert report.tolerance == pytest.approx(tolerance, rel=1e-6)
        assert report.ok is ok, str(report)
        assert max(row.error for row in report.rows) > 1e-12  # it was not float64


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
    why = "no loss counts after them" if kept else f"there are {steps}"
    assert any("no trace was read" in n and why in n for n in report.notes) is not read
    assert bool(report.notes) is not read
    assert report.ok is (isinstance(algo, etpc.TBPTT))
    if read and isinstance(algo, Wrong):
        assert {row.held for row in report.rows} == {True, False}
    if not read:
        assert all(row.held is not False for row in report.rows)


# --- a reference that is not the model ------------------------------------------------------------


@pytest.mark.slow
def test_bptt_goes_back_through_feedback_unless_a_reference_is_given():
    back = jnp.asarray(np.random.default_rng(5).normal(size=(2, O)))
    model = leaky(rec=True)

    def step(model, x, h):
        """The error goes back through other weights than those of the readout."""
        _, h = model(x, h)
        return etpc.nn.broadcast_readout(model.out, back, jnp.tanh(h)), h

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


@pytest.mark.parametrize("rule", first([etpc.EProp("random"), etpc.RFLO(0.5)]), ids=str)
def test_feedback_that_the_rule_puts_in_place_is_nothing_that_bptt_goes_back_through(rule):
    model, straight = leaky(rec=True), lambda a: jnp.sign(a) + (a - jax.lax.stop_gradient(a))
    own = etpc.verify(model, *data(), squared, rule)
    assert own.ok
    assert not any("BPTT goes back" in remark for remark in own.remarks)
    assert any(r.code == "other-feedback" for r in own.program.claims[".rec"].reasons)
    _, true = etpc.bptt(model, *data(), squared)
    want = np.asarray(true.rec).reshape(-1)
    np.testing.assert_allclose(own.trial.reference.values[".rec"], want, rtol=1e-12)

    def step(model, x, h):
        y, h = model(x, h)
        return straight(y), h

    remark = etpc.verify(model, *data(), squared, rule, step=step).remarks[0]
    assert "`a - stop_gradient(a)`" in remark  # that of the model is still told of
    assert remark.startswith(f"at {__file__}:{straight.__code__.co_firstlineno}")


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
