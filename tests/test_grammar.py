"""Models from a grammar against dense references, and the tools that make this fast against what they stand in for."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings

import etpc
from etpc._jax import prims
from etpc._primitives import FACTS
from tests import evaluate, fast, grammar
from tests.grammar import Leaf, Op, Program

TOLERANCE = 1e-9
RECURRENT = Program(
    leaves=(
        Leaf("stacked", 2, 2, before=(Op("rows", a=1), Op("threshold"))),
        Leaf("ring", 2, 3, before=(Op("scan_weight", a=2), Op("sort"))),
        Leaf("counter", 3, before=(Op("cond_both", a=1, b=3), Op("conv"))),
    ),
    pack="nested",
)


def agrees(program, **options):
    try:
        found = fast.check(program, **options)
    except fast.Dead:
        return
    assert all(error < TOLERANCE for error in found.values()), f"{found}\n{program}"


@pytest.mark.slow
@given(grammar.programs(kinds=grammar.FIXED_BRANCHES))
@settings(max_examples=4)
def test_drawn_programs(program):
    agrees(program)


@pytest.mark.slow
@given(grammar.programs(kinds=("w_x", "scan_weight", "bias", "roll"), complex=True))
@settings(max_examples=2)
def test_complex_states(program):
    agrees(program)


@pytest.mark.long
@given(grammar.programs(kinds=grammar.FIXED_BRANCHES, complex=True))
@settings(max_examples=500)
def test_many_drawn_programs(program):
    agrees(program, thorough=True)


@pytest.mark.slow
def test_every_property_on_a_recurrent_program():
    agrees(RECURRENT, thorough=True)


@pytest.mark.slow
def test_an_evaluation_equals_a_compiled_one():
    case = fast.Case(RECURRENT)
    program = case.program_of(etpc.D_RTRL(window=2))
    run = program.value_and_grad(grammar.loss, "sum")
    given = case.model, case.xs, case.targets, program.init()
    (loss, _), grads = evaluate.run(run)(*given)
    (compiled_loss, _), compiled = run(*given)
    assert abs(loss - compiled_loss) < 1e-12
    assert fast.distance(grads, compiled) < 1e-12


@pytest.mark.slow
def test_approximations_differ():
    """Negative control: the references of this program are far apart, so a wrong trace is seen."""
    case = fast.Case(RECURRENT)
    rules = [case.reference(algo) for algo in ("rtrl", "d_rtrl", "es_d_rtrl")]
    for i, one in enumerate(rules):
        for other in rules[:i]:
            assert fast.distance(one, other) > 1e-4


def test_signatures():
    rng = np.random.default_rng(0)
    drawn = [grammar.random_program(rng) for _ in range(50)]
    assert len({program.signature for program in drawn}) == 50
    again = Program(seed=1), Program(seed=2), Program(n_in=3)
    assert [p.signature == again[0].signature for p in again] == [True, True, False]


def test_shrinking_keeps_what_fails():
    small = grammar.shrink(RECURRENT, lambda p: any(op.kind == "sort" for op in p.ops))
    assert small.ops == (Op("sort"),)
    assert len(small.leaves) == 1
    assert "sort(" in str(small)


@pytest.mark.slow
def test_every_operation_is_in_one_family():
    families = (grammar.ONE, grammar.TWO, grammar.BY_NUMBER, grammar.WEIGHTED)
    assert len(grammar.KINDS) == len(set(grammar.KINDS)) == sum(map(len, families))
    for kind in grammar.KINDS:
        program = Program((Leaf(before=(Op("w_x", a=1, n=3), Op(kind, b=1))),))
        model = grammar.DrawnModel(program)
        jax.eval_shape(model, grammar.data(program, 1, at=0), model.init_state())


@pytest.mark.slow
def test_patterns_of_drawn_programs():
    rng = np.random.default_rng(3)
    for _ in range(25):
        program = grammar.random_program(rng, complex=True)
        assert fast.check_patterns(program) == {"cut": 0.0, "uncut": 0.0}, str(program)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["concatenate", "reduce_sum", "dot_general"])
def test_a_rule_that_loses_influence_is_found(name, monkeypatch):
    """Negative control: a rule that says that nothing depends on anything."""
    lost = lambda interpreter, eqn, patterns, known: [None] * len(eqn.outputs)
    primitive = getattr(prims, name + "_p")
    monkeypatch.setitem(FACTS, primitive, dataclasses.replace(FACTS[primitive], pattern=lost))
    rng = np.random.default_rng(4)
    found = [fast.check_patterns(grammar.random_program(rng)) for _ in range(12)]
    assert any(sum(each.values()) > 0 for each in found)
