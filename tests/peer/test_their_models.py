"""The models of braintrace's own tests under the rules of `etpc`, and the numbers that these tests freeze."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("braintrace")

import brainstate
import braintrace

import etpc
from etpc import interop
from tests.interop.brainstate_zoo import in_64_bits
from tests.interop.tables import DOCS, read
from tests.peer import their_models as theirs

if reason := theirs.why_not():
    pytest.skip(reason, allow_module_level=True)

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

ROWS = {row[:2]: row for row in read(theirs.PAGE, theirs.MODULE)}


@pytest.fixture(autouse=True, scope="module")
def _in_64_bits() -> Iterator[None]:
    with in_64_bits(), jax.numpy_rank_promotion("allow"):
        yield


@contextlib.contextmanager
def in_32_bits() -> Iterator[None]:
    """As theirs run: their random numbers are others in float64."""
    brainstate.environ.set(precision=32)
    yield
    brainstate.environ.set(precision=64)


@pytest.mark.parametrize("model", [pytest.param(m, id=m.id) for m in theirs.found_models()])
def test_rtrl_is_bptt_and_so_is_what_is_said_to_be_exact(model: theirs.Found) -> None:
    assert ROWS[model.module, model.name] == theirs.row(model)


def test_the_lists_name_models_that_are_there() -> None:
    found = theirs.found_models()
    text, refused = (DOCS / theirs.PAGE).read_text(), len(theirs.REFUSED)
    assert f"{len(ROWS)} models." in text
    assert f"{len(ROWS) - refused} are equal; {refused} are refused" in text
    assert {(m.module, m.name) for m in found} == set(ROWS)
    assert {m.id for m in found} >= set(theirs.REFUSED)
    assert {m.name for m in found} >= set(theirs.INPUTS)


# --- gradients that their tests freeze --------------------------------------------------------------


def squares(y, _):
    return jnp.sum(y**2)


def gradient(model, xs, rule, weights="all"):
    program = etpc.compile(model, rule, inputs=xs[0], weights=weights)
    return program.value_and_grad(squares, "sum")(model, xs, None, program.init())[1].params


def off(found, wanted) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def golden(name):
    """A model of `axis_golden_test`, its inputs and the window; in two rules of ours `w` alone has a trace."""
    module = theirs.their_module("_algorithm.tests.axis_golden_test")
    made, xs = module.MODELS[name][0]().factory(), module._inputs(name)
    brainstate.nn.init_all_states(made, batch_size=1)
    model = interop.from_brainstate(made, xs[0])
    of_case = lambda case: {k.strip("|"): v for k, v in module.compute_case(name, case).items()}
    return model, xs, module.MODELS[name][2], of_case


def windowed(rule, window, **options):
    return rule(**options, window=window, backprop="full")


SAME = {
    "d_rtrl": lambda window: windowed(etpc.D_RTRL, window),
    "d_rtrl_unchunked": lambda window: windowed(etpc.D_RTRL, window),
    "d_rtrl_singlestep": lambda window: etpc.D_RTRL(),
    "ostl_feedforward": lambda window: windowed(
        etpc.ES_D_RTRL, window, decay=1e-6, everywhere=True
    ),
}
"""Cases of `axis_golden_test`, whose frozen arrays the source distribution lacks: it computes them anew."""


@pytest.mark.parametrize("case", [*SAME, "ostl_recurrent"])
@pytest.mark.parametrize("name", ["tanh_rnn", "two_state_rnn"])
def test_the_same_rule_gives_their_golden_gradients(name, case):
    """Those of a weight that an operation of theirs takes; of the plain one, what flows inside of a window, or zero.

    "ostl_recurrent" takes the states of a neuron together, SnAp(1) each for itself: with two of them it is another
    rule there, and here, where no weight is among them, D-RTRL.
    """
    model, xs, window, of_case = golden(name)
    if case == "ostl_recurrent":
        together = name == "two_state_rnn"
        rule = windowed(etpc.D_RTRL, window) if together else windowed(etpc.SnAp, window, n=1)
    else:
        rule = SAME[case](window)
    ours, their = gradient(model, xs, rule, lambda m: m.params.w), of_case(case)
    assert off(ours.w, their["w"]) < 1e-12
    if "win" in their:
        if case == "d_rtrl_singlestep":
            assert not np.any(their["win"])
            assert np.any(ours.win)
        else:
            assert off(ours.win, their["win"]) < 1e-12


@pytest.mark.parametrize("name", ["tanh_rnn", "two_state_rnn"])
def test_pp_prop_corrects_its_decay_by_the_number_of_calls(name):
    """ES-D-RTRL here divides by 1 - decay^n after n steps, theirs in windows by 1 - decay^(n + 1) in the n-th call."""
    model, xs, window, of_case = golden(name)
    decay, theirs_w = 0.9, of_case("pp_prop")["w"]
    published = windowed(etpc.ES_D_RTRL, window, decay=decay, everywhere=True)
    rules = {"whole": published, "inside": etpc.TBPTT(window)}
    programs = {
        of: etpc.compile(model, rule, inputs=xs[0], weights=lambda m: m.params.w)
        for of, rule in rules.items()
    }
    carries = {of: program.init() for of, program in programs.items()}
    ours = corrected = 0.0
    for call, start in enumerate(range(0, len(xs), window)):
        grads = {}
        for of, program in programs.items():
            part = model, xs[start : start + window], None, carries[of]
            (_, carries[of]), grads[of] = program.value_and_grad(squares, "sum")(*part)
        whole, inside = grads["whole"].params.w, grads["inside"].params.w
        ours = ours + whole
        factor = (1 - decay ** (call * window)) / (1 - decay ** (call + 1))
        corrected = corrected + inside + factor * (whole - inside)
    assert off(corrected, theirs_w) < 1e-12
    assert off(ours, theirs_w) > 0.01


@pytest.mark.parametrize("case", ["eprop_kappa", "eprop_random"])
@pytest.mark.parametrize("name", ["tanh_rnn", "two_state_rnn"])
def test_what_has_no_counterpart_differs(name, case):
    """A filter of the trace in the place of a readout with memory, and random feedback, are no rules here."""
    model, xs, window, of_case = golden(name)
    ours = gradient(model, xs, windowed(etpc.D_RTRL, window), lambda m: m.params.w)
    assert off(ours.w, of_case(case)["w"]) > 0.05


# --- issues that their tests name ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_LatchModel", "_DelayLineModel"])
def test_states_that_are_copied_are_exact(name):
    """Issue 184: a hidden state that is written without an operation. Both are BPTT."""
    module = theirs.their_module("_algorithm.d_rtrl_test")
    oracle = theirs.their_module("_testing.oracle")
    made, xs = getattr(module, name)(), module.TestEquationFreeHiddenEdges.xs
    exact = oracle.bptt_param_gradients(getattr(module, name), xs)["w",]
    found = oracle.chunked_online_param_gradients(
        getattr(module, name),
        xs,
        chunk_size=3,
        algo_factory=lambda m: braintrace.D_RTRL(m, vjp_method="multi-step"),
    )["w",]
    brainstate.nn.init_all_states(made)
    model = interop.from_brainstate(made, xs[0, 0])
    ours = gradient(model, xs[:, 0], etpc.D_RTRL(window=3)).w
    assert off(found, exact) < 1e-12
    assert off(ours, exact) < 1e-12


def test_the_values_of_an_issue():
    """Issue 185: an output that reads the membrane before its reset, in float32; the sums of both are those there."""
    module = theirs.their_module("_algorithm.tests.output_bypass_test")
    with in_32_bits():
        for name, wanted in {"pre_reset": 1.079097, "hidden": 1.861094}.items():
            brainstate.random.seed(0)
            net = module._MODELS[name]()
            brainstate.nn.init_all_states(net)
            xs, ys = module._data(module.N)
            model = interop.from_brainstate(net, xs[0])
            program = etpc.compile(model, "d_rtrl", inputs=xs[0])
            mean = lambda y, target: jnp.mean((y - target) ** 2)
            _, grads = program.value_and_grad(mean)(model, xs, ys, program.init())
            found, _ = module._online(name, "d_rtrl")
            for one in (grads.params.w, found["w",]):
                assert float(jnp.abs(one).sum()) == pytest.approx(wanted, rel=2e-6)


def test_a_rolled_tail_does_not_spoil_snap():
    """F-31: theirs takes a state for that at the same place before; off by 130 %, and more neighbours do not help.

    Here the pattern of the transition says who reads whom, so that SnAp(2) has all states of a dense recurrence.
    """
    module = theirs.their_module("_algorithm.snap_n_test")
    models = theirs.their_module("_testing.oracle_models")
    oracle = theirs.their_module("_testing.oracle")
    with in_32_bits():
        spec = models.rolled_tail_rnn(n_in=module.N_IN, n_rec=5, roll=1, seed=0)
        xs = spec.make_inputs(module.T, module.N_IN, seed=1)
        exact = oracle.bptt_param_gradients(spec.factory, xs)["w",]
        for n in (2, 4):
            found = module._grads(spec, module._snap(n), xs, 2)["w",]
            assert off(found, exact) == pytest.approx(1.3031, abs=1e-4)
        made = spec.factory()
        model = interop.from_brainstate(made, xs[0])
        assert off(gradient(model, xs, etpc.SnAp(2)).w, exact) < 2e-6
