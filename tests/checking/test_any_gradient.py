"""`etpc.check`: gradients from anywhere, and what is wrong with them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import D_RTRL, ES_D_RTRL, TBPTT, SnAp
from etpc.gradient.agreement import default_tolerance
from tests import by_hand
from tests.helpers import loss, normal
from tests.marks import few

T, B = 20, 3


def check(gradient, model, **options):
    xs, targets = by_hand.sequence(T, B)
    return etpc.check(gradient, model, xs, targets, loss, batch_size=B, **options)


def bptt(model, **options):
    return etpc.bptt(model, *by_hand.sequence(T, B), loss, batch_size=B, **options)[1]


@pytest.fixture
def few_rules(monkeypatch):
    """A mistake is looked for in fewer rules, which compiles less."""
    monkeypatch.setattr("etpc.checking.check.RULES", (D_RTRL(),))


# --- rules that are written by hand ---


RATE, SPIKING, CASCADE = by_hand.rate(), by_hand.spiking(), by_hand.cascade()
BY_HAND = {
    "e-prop of LIF": (SPIKING, by_hand.eprop, D_RTRL(), ".w_rec ->"),
    "e-prop of ALIF": (by_hand.spiking(by_hand.BETA), by_hand.eprop, D_RTRL(), ".w_rec ->"),
    "RFLO": (by_hand.rate(feedback=True), by_hand.rflo, D_RTRL(), ".w_rec ->"),
    "OTTT": (by_hand.layers(), by_hand.ottt, D_RTRL(), ".second ->"),
    "TBPTT": (
        *(RATE, functools.partial(by_hand.tbptt, steps=7), TBPTT(7)),
        "influence from before its block of 7 steps",
    ),
    "BPTT": (RATE, functools.partial(by_hand.tbptt, steps=T), TBPTT(T), ""),
    "RTRL": (CASCADE, functools.partial(by_hand.of_a_cascade, twice=False), TBPTT(T), ""),
}


@pytest.mark.parametrize("name", few(BY_HAND, "RFLO", "RTRL"))
def test_rules_that_are_written_by_hand(name):
    model, gradient, rule, left_out = BY_HAND[name]
    report = check(gradient, model)
    assert report.equals == rule, str(report)
    assert report.exact == (rule == TBPTT(T)) == (report.total.error < 1e-9)
    assert not report.notes
    assert max(row.distance for row in report.rows) < 1e-12
    assert bool(report.missing) == bool(left_out)
    assert left_out in str([*report.missing.values()])
    assert ".w_out" not in report.missing
    assert len(report.remarks) == (name == "RFLO")  # its feedback
    assert all("(Rate.__call__)" in r and "stop_gradient" in r for r in report.remarks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", [D_RTRL(backprop="full"), SnAp(1), ES_D_RTRL(decay=0.95), ES_D_RTRL(decay=0.5)], ids=str
)
def test_rules_of_programs(rule):
    model, (xs, targets) = by_hand.spiking(), by_hand.sequence(T, B)
    program = etpc.compile(model, rule, inputs=xs[0, 0])
    _, grads = program.value_and_grad(loss)(model, xs, targets, program.init(B))
    report = check(grads, model, rules=[ES_D_RTRL(decay=0.5)])
    assert report.equals is not None, str(report)
    assert report.is_of(rule), str(report)  # no decay matters where the traces are filtered inputs
    assert list(report.by_lag) == [(0, 2), (2, 4), (4, 8), (8, 16), (16, 20)]
    assert report.by_lag[0, 2] > report.by_lag[4, 8]


# --- mistakes ---

WRONG_SIGN = ", and with the wrong sign"
SUM = "a sum over the outputs in the place of the mean"
MEAN = "a mean over the outputs in the place of the sum"
OUTPUTS = "(another number of outputs tells which)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (T, "20 times as large: a sum over the steps in the place of the mean"),
        (B, "3 times as large: a sum over the examples in the place of the mean"),
        (T * B, "60 times as large: a sum over steps and examples in the place of the mean"),
        (1 / B, "3 times too small: divided by the number of the examples twice"),
        (-1, "with the wrong sign"),
        (-T, f"20 times as large: a sum over the steps in the place of the mean{WRONG_SIGN}"),
        (
            2,
            f"twice as large: the factor of a square, or each path counted twice, or {SUM} {OUTPUTS}",
        ),
        (-0.5, f"half as large: that of half a squared error, or {MEAN} {OUTPUTS}{WRONG_SIGN}"),
    ],
)
def test_a_factor(factor, text):
    model = by_hand.rate()
    report = check(jax.tree.map(lambda g: factor * g, bptt(model)), model)
    assert report.equals is None
    assert not report.exact
    for row in report.rows:
        assert row.equals is None
        assert (row.fault.kind, row.fault.rule, row.fault.text) == ("factor", TBPTT(T), text)
        assert row.fault.factor == pytest.approx(factor)
    assert f"  BPTT, {text}  (of .w_in, .w_rec, .w_out)" in str(report).splitlines()


@pytest.mark.parametrize(
    ("steps", "batch", "tells"),
    [(4, 4, "another T or B"), (6, 2, "another B or number of outputs")],
)
def test_mistakes_with_one_factor_are_all_named(steps, batch, tells):
    model, data = by_hand.rate(), by_hand.sequence(steps, batch)
    _, grads = etpc.bptt(model, *data, loss, batch_size=batch)
    wrong = jax.tree.map(lambda g: batch * g, grads)
    for row in etpc.check(wrong, model, *data, loss, batch_size=batch).rows:
        assert "a sum over the examples" in row.fault.text
        assert ("a sum over the steps" in row.fault.text) == (steps == batch)
        assert ("the factor of a square" in row.fault.text) == (batch == 2)
        assert f"({tells} tells which)" in row.fault.text


def in_float32():
    """A model with a parameter of one number, its data, the options of a check, and the gradient of BPTT.

    Influence fades within some steps, so that a block of BPTT is nearer to it than low precision was once allowed.
    """
    rate = by_hand.rate()
    rate = dataclasses.replace(rate, w_rec=0.1 * rate.w_rec, leak=0.2)
    model = {"rate": rate, "leak": -3.0}
    model, data = jax.tree.map(jnp.float32, (model, by_hand.sequence(T, B)))

    def step(model, x, h):
        y, new = model["rate"](x, h)
        return y, new + jax.nn.sigmoid(model["leak"]) * h

    options = dict(state=jnp.zeros(5, jnp.float32), step=step, batch_size=B)
    return model, data, options, etpc.bptt(model, *data, loss, **options)[1]


@pytest.mark.slow
def test_one_number_is_no_evidence():
    """A factor that is drawn has no cause; one that other parameters share has; alone it is possible."""
    model, data, options, grads = in_float32()
    checked = lambda g: etpc.check(g, model, *data, loss, **options).rows[0]
    scaled = lambda factor: {"leak": np.float32(factor * grads["leak"])}
    search = etpc.check(grads | scaled(1.37), model, *data, loss, **options).search
    rng, found = np.random.default_rng(1), []
    for factor in np.exp(rng.uniform(-3, 3, 200)) * rng.choice([-1, 1], 200):
        search.values["['leak']"] = np.asarray([factor * grads["leak"]], float)
        fault = search.row("['leak']", None).fault
        assert fault is None or fault.text.startswith("possibly"), (factor, fault.text)
        found.append(fault)
    assert sum(fault is not None for fault in found) <= 2
    alone, shared = checked(grads | scaled(-1)), checked(jax.tree.map(lambda g: -g, grads))
    assert alone.fault.text.startswith("possibly with the wrong sign (of too few numbers")
    assert shared.fault.text == "with the wrong sign"
    odd = checked(jax.tree.map(lambda g: 0.37 * g, grads))
    assert (odd.fault.rule, odd.fault.text) == (TBPTT(T), "0.37 times as large")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_gradient_that_is_stored_in_low_precision(dtype, few_rules):
    """Rounded values of a model in float32: a rule that differs by more than the rounding is another one."""
    model, data, options, grads = in_float32()

    def checked(grads, factor=1.0):
        stored = jax.tree.map(lambda g: np.asarray(factor * g, dtype), grads)
        return etpc.check(stored, model, *data, loss, **options)

    right, cut = checked(grads), checked(etpc.bptt(model, *data, loss, **options, window=7)[1])
    assert right.exact, str(right)
    assert (cut.equals, cut.exact) == (TBPTT(7), False)
    assert 1e-2 < cut.total.error < default_tolerance(dtype)
    assert f"stored in {jnp.dtype(dtype).name}" in right.remarks[-1]
    for factor, said in ((1.5, "1.5"), (B, "a sum over the examples"), (B + 0.1, "3.1")):
        for row in checked(grads, factor).rows:
            assert said in row.fault.text
            assert ("a sum" in row.fault.text) == (factor == B)


@pytest.mark.slow
def test_the_factor_of_a_mask():
    model, mask = by_hand.rate(), np.zeros((T, B))
    mask[::2] = 1
    grads = bptt(model, mask=mask, reduction="sum")
    report = check(grads, model, mask=mask)
    assert report.rows[0].fault.text.startswith("10 times as large: a sum over the steps")


def test_a_low_cosine_of_a_rule_comes_with_a_remark():
    model, mask = by_hand.rate(), np.zeros((T, B))
    mask[-1] = 1  # so that most of the gradient is from the steps before
    report = check(bptt(model, mask=mask, window=1), model, mask=mask)
    assert report.equals == TBPTT(1)
    assert min(row.cosine for row in report.rows) < 0.2
    assert "a low cosine (below 0.2) may train" in report.remarks[-1]


BOTH = ".w_in .w_rec"


def of_rate(change):
    """Of the recurrent weights: of their gradient by BPTT, and that of the current step, what is made of them."""
    return lambda *_: {".w_rec": change(bptt(RATE).w_rec, bptt(RATE, window=1).w_rec)}


def eprop(fault):
    return functools.partial(by_hand.eprop, fault=fault)


MISTAKES = [
    (RATE, of_rate(lambda g, now: -g.T), "transpose", "as its transpose, and with the wrong", ""),
    (RATE, of_rate(lambda g, now: g - now), "shift", "as if traces were read before they", ""),
    (RATE, of_rate(lambda g, now: g + now), "twice", "the part of the current step, which", ""),
    (
        *(CASCADE, functools.partial(by_hand.of_a_cascade, twice=True), "twice"),
        *("goes through other states of the same step", ".w"),
    ),
    (SPIKING, eprop("early"), "shift", "with the data of the step before", BOTH),
    (SPIKING, eprop("presynaptic"), "shift", "with the data of the step after", ".w_rec"),
    (SPIKING, eprop("before"), "spike", "taken at the potential before the step", BOTH),
    (SPIKING, eprop("reset"), "spike", "taken at the potential after the reset", BOTH),
    (SPIKING, eprop("uncentred"), "spike", "without its threshold", BOTH),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "gradient", "kind", "text", "of_d_rtrl"), MISTAKES)
def test_mistakes(few_rules, model, gradient, kind, text, of_d_rtrl):
    """Of parameters whose gradient should be that of D-RTRL, or of BPTT; others are what they are."""
    report = check(gradient, model)
    rule, wrong = (D_RTRL(), of_d_rtrl.split()) if of_d_rtrl else (TBPTT(T), [".w_rec"])
    for row in report.rows:
        assert (row.equals is None) == (row.fault is not None) == (row.path in wrong), str(report)
        if row.fault is not None:
            assert (row.fault.kind, row.fault.rule) == (kind, rule), str(report)
            assert text in row.fault.text


ADAPTIVE = by_hand.spiking(by_hand.BETA)
TERMS = {
    "decay": ["without the path from the old [1] to `z`, in `z = spike("],
    "signal": [
        "without the path from the old [0] to `z`",
        ", or without the path from the new [1] to ",
    ],
    "decay, leak": [
        "the path from the old [0] to the new [0]",
        "the path from the old [1] to `z`",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", TERMS)
def test_terms_that_are_missing_are_found(few_rules, fault):
    """E-prop of adaptive neurons in NumPy, without a term of the trace of the adaptation or of what reads it. The
    latter is the same as no term that leads to the adaptation."""
    report = check(eprop(fault), ADAPTIVE)
    for row in report.rows:
        if row.path == ".w_out":
            assert row.equals == TBPTT(T)
            continue
        assert (row.fault.kind, row.fault.rule) == ("path", D_RTRL()), str(report)
        assert all(text in row.fault.text for text in TERMS[fault]), row.fault.text
        assert "by_hand.py:" in row.fault.text
        assert "it is yours to 1e-1" in row.fault.text  # -15, or nearly


@pytest.mark.slow
def test_noise_is_no_mistake(few_rules):
    model = by_hand.spiking()
    right = by_hand.eprop(model, *by_hand.sequence(T, B))
    report = check(right | {".w_rec": right[".w_rec"] + 1e-5}, model)
    row = report.rows[1]
    assert row.fault is None
    assert row.equals is None
    assert row.nearest == D_RTRL()
    assert 1e-7 < row.distance < 1e-2
    assert report.rows[0].equals == D_RTRL()
    assert "It is the gradient of no rule that was tried." in str(report)


# --- forms, and what does not fit ---


class Tensor:
    """Like a tensor of PyTorch: an array for NumPy alone."""

    def __init__(self, values, requires_grad=False):
        self.values, self.requires_grad = values, requires_grad

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return np.asarray(self.values, dtype)


@pytest.mark.parametrize("form", ["tree", "numpy", "tensors", "paths", "function", "float32"])
def test_forms_of_gradients(form):
    model = by_hand.rate()
    grads = bptt(model)
    as_numpy = jax.tree.map(np.asarray, grads)
    given = {
        "tree": grads,
        "numpy": as_numpy,
        "tensors": jax.tree.map(Tensor, as_numpy),
        "paths": {".w_rec": Tensor(as_numpy.w_rec), ".w_in": None},
        "function": lambda model, xs, targets: as_numpy,
        "float32": jax.tree.map(np.float32, as_numpy),
    }[form]
    report = check(given, model)
    assert report.exact, str(report)
    assert len(report.rows) == (1 if form == "paths" else 3)
    assert report.tolerance == (1e-3 if form == "float32" else 1e-9)


WRONG = {
    "shape": ({".w_rec": np.ones((5, 3))}, r"gradient of \.w_rec has shape \[5, 3\].*Sum it over"),
    "transposed": ({".w_in": np.ones((3, 5))}, r"\.w_in has shape \[3, 5\].*pass its `\.T`"),
    "path": ({".w_rec": np.ones((5, 5)), ".w_on": 1}, r"'\.w_on'.*Did you mean \.w_in"),
    "text": ({".w_rec": "high"}, r"gradient of \.w_rec is <U4, and should be numbers"),
    "tensor": ({".w_rec": Tensor(np.ones(1), True)}, r"\.w_rec is a Tensor that NumPy.*detach"),
    "none": (lambda *_: {".w_rec": None}, r"no array for any parameter.*\.w_in, \.w_rec, \.w_out"),
    "complex": ({".w_rec": np.ones((5, 5), complex)}, r"\.w_rec is complex128.*float64.*`\.real`"),
    "other": ([np.ones((5, 5))], r"is a list and no tree like the model"),
    "pair": ((0.5, {".w_rec": np.ones((5, 5))}), r"Of a pair \(value, gradient\), pass the second"),
}


def test_a_dict_may_have_fewer_keys():
    model, data, options, grads = in_float32()
    fewer = {"rate": grads["rate"]}
    paths = ["['rate'].w_in", "['rate'].w_rec", "['rate'].w_out"]
    report = etpc.check(fewer, model, *data, loss, **options)
    assert report.exact
    assert [row.path for row in report.rows] == paths
    with pytest.raises(etpc.InputError, match=r"\['leek'\].*Did you mean \['leak'\]"):
        etpc.check(fewer | {"leek": 1.0}, model, *data, loss, **options)


def test_rules_by_name():
    model = by_hand.rate()
    with pytest.raises(etpc.InputTypeError, match=r"rules must be a list.*'d_rtrl'"):
        check(bptt(model), model, rules="d_rtrl")
    with pytest.raises(etpc.AlgorithmError, match="'d_rtl'"):
        check(bptt(model), model, rules=["d_rtl"])
    report = check(bptt(model), model)
    assert report.is_of("rtrl")
    assert not report.is_of("d_rtrl")


def complex_units(model, x, h):
    h = model["decay"] * h + model["drive"] * x[0]
    return jnp.real(model["read"] * h).sum()[None], h


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "text"), [(1, ""), (-B, "a sum over the examples")])
def test_the_conjugate_of_a_complex_gradient(few_rules, factor, text):
    """PyTorch's gradient. What is neither a rule's nor a conjugate has no explanation; real numbers are refused."""
    model = {"decay": 0.5, "drive": 1.0, "read": 1.0}
    model = {
        name: a * jax.lax.complex(normal(4, seed=n), normal(4, seed=n + 3))
        for n, (name, a) in enumerate(model.items())
    }
    xs, targets = by_hand.sequence(T, B, 1)
    options = dict(state=jnp.zeros(4, complex), step=complex_units, batch_size=B)
    grads = etpc.bptt(model, xs, targets, loss, **options)[1]
    checked = lambda grads: etpc.check(grads, model, xs, targets, loss, **options)
    for row in checked({name: factor * g.conj() for name, g in grads.items()}).rows:
        assert (row.fault.kind, row.fault.rule) == ("conjugate", TBPTT(T))
        assert "complex conjugate (the convention of PyTorch" in row.fault.text
        assert text in row.fault.text
    (row,) = checked({"decay": 1j * grads["decay"]}).rows
    assert (row.equals, row.fault) == (None, None)
    with pytest.raises(etpc.InputError, match=r"\['read'\] is float64.*complex128"):
        checked(grads | {"read": grads["read"].real})


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name):
    gradient, message = WRONG[name]
    with pytest.raises(etpc.EtpcError, match=message):
        check(gradient, by_hand.rate())


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", [(), (2, 3)], ids=["all of it", "one number"])
def test_what_is_not_finite_is_noted(few_rules, value, where):
    """And it is explained by nothing, and near to nothing; the other parameters are what they are."""
    model = by_hand.rate()
    grads = bptt(model)
    report = check({".w_rec": grads.w_rec.at[where].set(value), ".w_in": grads.w_in}, model)
    first = list(where) or [0, 0]
    assert report.notes == (f"the gradient of .w_rec is not finite, first at {first}",)
    right, row = report.rows
    assert (row.path, row.equals, row.fault) == (".w_rec", None, None)
    assert right.equals == TBPTT(T)
    assert not report.exact
    (line,) = [line for line in str(report).splitlines() if line.startswith(".w_rec")]
    assert line.endswith("-")
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["rows"][1]["cosine"] is None


@pytest.mark.slow
def test_lags_of_a_gradient_that_is_no_rule_s(few_rules):
    """What reaches back further than four steps is left out: it has no part there, and all of the part before."""
    model = by_hand.rate()
    xs, targets = by_hand.sequence(T, B)
    program = etpc.compile(model, TBPTT(4, every=2), inputs=xs[0, 0])
    _, grads = program.value_and_grad(loss)(model, xs, targets, program.init(B))
    report = check(grads, model)
    assert report.equals is None
    assert report.by_lag[0, 2] == pytest.approx(1.0)
    assert report.by_lag[2, 4] == pytest.approx(1.0)
    assert np.isnan(report.by_lag[8, 16])


@pytest.mark.slow
def test_a_gradient_that_is_nearly_right_is_no_mistake(few_rules):
    """In float32 a factor of 1.002 is more than rounding, and has no name."""
    model = jax.tree.map(jnp.float32, by_hand.rate())
    xs, targets = jax.tree.map(jnp.float32, by_hand.sequence(T, B))
    _, grads = etpc.bptt(model, xs, targets, loss, batch_size=B)
    near = {".w_rec": 1.002 * grads.w_rec}
    (row,) = etpc.check(near, model, xs, targets, loss, batch_size=B).rows
    assert row.equals is None
    assert row.nearest == TBPTT(T)
    assert row.fault is None or row.fault.text == "1.002 times as large"
