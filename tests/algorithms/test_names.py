"""Rules by the names of the literature."""

import jax.numpy as jnp
import pytest

import etpc
from etpc.algorithms import resolve
from tests.algorithms.test_uoro import MODEL, XS, N, step

NAMES = {
    "e-prop": etpc.EProp(),
    "E_Prop": etpc.EProp(),
    "eprop": etpc.EProp(),
    "RFLO": etpc.RFLO(),
    "OSTL": etpc.OSTL(),
    "ottt": etpc.OTTT(),
    "OTPE": etpc.OTPE(),
    "kf-rtrl": etpc.KFRTRL(),
    "KF RTRL": etpc.KFRTRL(),
    "OK": etpc.OK(),
    "uoro": etpc.UORO(),
    "D-RTRL": etpc.D_RTRL(),
    "ES-D-RTRL": etpc.ES_D_RTRL(),
    "pp-prop": etpc.ES_D_RTRL(),
    "pp_prop": etpc.ES_D_RTRL(),
    "SnAp-1": etpc.SnAp(1),
}
NO_RULES = {
    "BPTT": r"no online rule.*`etpc\.bptt\(model.*etpc\.TBPTT\(K\)",
    "t-bptt": r"Write etpc\.TBPTT\(20\)",
    "SnAp-0": r"etpc\.TBPTT\(1\)",
    "three-factor": r"etpc\.D_RTRL\(\).*Three factors",
    "DNI": "Synthetic gradients",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_any_spelling(name):
    rule = resolve(name)
    assert (rule, str(rule), hash(rule)) == (NAMES[name], str(NAMES[name]), hash(NAMES[name]))


@pytest.mark.parametrize("name", NO_RULES)
def test_a_name_of_what_is_no_rule_says_what_to_write(name):
    with pytest.raises(etpc.AlgorithmError, match=NO_RULES[name]):
        resolve(name)


def test_another_name_is_printed_and_changes_nothing():
    compiled = lambda algo: etpc.compile(MODEL, algo, inputs=XS[0], state=jnp.zeros(N), step=step)
    named, plain = compiled("pp-prop"), compiled(etpc.ES_D_RTRL())
    first, *rest = str(named).splitlines()
    assert [first.removesuffix("  (pp-prop)"), *rest] == str(plain).splitlines()
    assert first.endswith("(pp-prop)")
    assert named.arguments.id == plain.arguments.id


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: etpc.EProp("other"), 'feedback must be "symmetric" or "random"'),
        (lambda: etpc.EProp(kappa=1.5), r"A kappa must lie in \(0, 1\]"),
        (lambda: etpc.RFLO(0), r"A kept must lie in \(0, 1\]"),
        (lambda: etpc.UORO(seed=-1), "seed must be an int >= 0"),
        (lambda: etpc.OTTT(backprop="full"), "OTTT has the credit of single steps"),
        (lambda: etpc.ES_D_RTRL(decay=(0.9, 0.8, 0.7)), r"Write decay=\(0\.9, 0\.99\)"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_out_of_range(make, words):
    with pytest.raises(etpc.EtpcError, match=words):
        make()
