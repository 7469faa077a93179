"""Drawn structures, and what their check finds: each feature of the grammar has a fault that it shows."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc._jax import prims
from etpc._jax.primitives import FACTS
from etpc.analyse import _analysis
from etpc.plan import _claims, _filtered
from etpc.run._arguments import Arguments
from etpc.trace.rewrites import _expand
from tests.fuzz import check, grammar, packing, run
from tests.fuzz.grammar import Leaf, Op, Program

RECURRENT = Program(
    leaves=(
        Leaf("stacked", 2, 2, before=(Op("rows", a=1), Op("threshold"))),
        Leaf("ring", 2, 3, before=(Op("scan_gain", a=2), Op("w_x"), Op("sort"))),
    ),
    pack="nested",
)
PLAIN = Program((Leaf(n=3, rule="raw", before=(Op("w_x", a=1, n=3),)),), readout=False)
NUMBERS = {entry: number for number, entry in enumerate(check.ENTRIES)}
RANK = len(check.ENTRIES)  # the number of a structure whose third rule has a rank


def agrees(program, number=0, **options):
    result = check.check(program, number, **options)
    assert not result.failures, f"{result.errors}\n{program}"
    return result


def compiled_wrongly(monkeypatch, change):
    """Programs are compiled from `change(model, x, state)` in the place of `model(x, state)`."""

    def compiled(case, rule, passes=None):
        return etpc.compile(case.model, rule, inputs=case.x, step=change, passes=passes)

    monkeypatch.setattr(check.Case, "compile", compiled)


def is_found(program, number=0, words=("exact",), **options):
    failures = check.check(program, number, **options).failures
    assert {name.split()[-1] for name in failures} & set(words), failures


# --- what is drawn --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(check.ENTRIES) * len(check.RULES)))
def test_drawn_structures(number):
    result, failure = check.outcome(check.drawn(0, number), number)
    assert not failure, result


@pytest.mark.slow
@pytest.mark.parametrize("third", range(len(check.RULES)))
def test_every_rule_and_every_entry_on_a_recurrent_program(third):
    result = agrees(RECURRENT, third * len(check.ENTRIES) + third % len(check.ENTRIES), count=3)
    assert result.points == 3
    assert len({name.split()[0] for name in result.errors}) >= 2


@pytest.mark.slow
def test_a_reference_may_be_infinite_where_nothing_reads_it():
    """The derivative of `exp(-1 / p)` at p = 0, of a state that no output reads."""
    unread = Leaf("scalar", rule="tau", before=(Op("w_x", a=1, n=3, shared=True),))
    for seed in range(3):
        program = Program((unread,), reads=(1,), readout=False, n_in=3, seed=seed)
        agrees(program, count=len(check.HOW))


@pytest.mark.slow
def test_what_no_output_depends_on_is_no_hidden_state():
    """The new value of `s0` is read at the same step alone, so a decay does not smooth it as a state."""
    at_once = Leaf("stacked", n=1, rule="replace", a=5, b=3)
    behind = Leaf("counter", n=1, rule="reverse", a=6, b=3)
    einsum, product = Op("einsum", a=3, b=1, n=1, form="signed"), Op("product_of_all")
    weighted = Leaf("stacked", 3, 3, rule="row_by_row", b=4, before=(einsum, product))
    leaves = at_once, behind, weighted
    program = Program(leaves, reads=(1, 4), readout=False, n_in=3, seed=26049)
    agrees(program, check.ENTRIES.index("batch"), count=2)
    compiled = check.Case(program).compile(etpc.ES_D_RTRL(window=2))
    assert compiled.plan.analysis.hidden.leaves == (
        1,
        3,
    )  # `s1` is two leaves, a value and a counter


@pytest.mark.slow
def test_an_operation_that_reaches_no_hidden_state_is_not_cut():
    """`s1` is read by itself alone. So an output that reads the operation into it reads the old `s2` live."""
    before = Op("tanh", a=2), Op("complex_weight", a=0, b=1, n=1)
    unread = Leaf("complex", 3, 3, rule="row_by_row", before=before)
    leaky = Leaf("vector", n=2, rule="leaky", before=(Op("switch_weights"),))
    leaves = leaky, unread, Leaf("counter", n=2, k=3, rule="replace", a=4, b=3)
    program = Program(leaves, reads=(2,), n_in=1, pack="dict", seed=40430)
    compiled = check.Case(program).compile(etpc.D_RTRL())
    assert compiled.plan.analysis.hidden.leaves == (2,)
    assert compiled.claims[".parameters['1.1:complex_weight']['w']"].uses[0].block == 0
    assert "d_rtrl reference" in agrees(program).errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cond_one", "cond_same", "switch_weights", "nested_loops"])
def test_a_decay_smooths_zeros_where_a_branch_is_not_taken(kind):
    for seed in range(3):
        leaf = Leaf("vector", 2, rule="times", before=(Op(kind, b=1),))
        program = Program((leaf,), seed=seed)
        assert "es_d_rtrl reference" in agrees(program).errors


@pytest.mark.slow
def test_what_has_no_trace_has_the_gradient_within_a_full_window():
    """Its operation reaches a state, and is not marked."""
    ops = Op("tanh", n=2), Op("sparse", n=2), Op("embedding_of_two", n=2)
    leaf = Leaf("noisy", 2, rule="masked_write", a=1, before=ops)
    program = Program((leaf,), weights="marked", marks=1)
    number = len(check.ENTRIES) * check.RULES.index(etpc.D_RTRL(window=2, backprop="full"))
    assert "d_rtrl reference" in agrees(program, number).errors


@pytest.mark.slow
def test_what_rounding_decides_is_not_compared():
    """At one of these points a decay is 1e67, and the state is the difference of two products with it."""
    leaf = Leaf("noisy", 1, rule="tau", a=4, b=6, before=(Op("fori_weight", a=4, b=6, n=3),))
    program = Program((leaf,), reads=(1,), readout=False, seed=8554)
    assert 30 < agrees(program, count=40).points < 40


# --- the tools ------------------------------------------------------------------------------------


def test_signatures_shrinking_and_text():
    rng = np.random.default_rng(0)
    drawn = [grammar.random_program(rng) for _ in range(50)]
    assert len(set(drawn)) == 50
    small = grammar.shrink(RECURRENT, lambda p: any(op.kind == "sort" for op in p.ops))
    assert small.ops == (Op("sort"),)
    assert len(small.leaves) == 1
    assert "sort[" in str(small)


def test_a_run_reports_what_failed():
    good, bad = check.Result(5, {"loss": 1e-16}, ()), check.Result(3, {"loss": 1.0}, ("loss",))
    failed, text = run.summary([(good, ""), (bad, "loss"), (None, "TypeError at emit.py:3")])
    assert failed == 2
    assert text == "3 structures, 8 models, 2 structures failed\n  loss: 1.0e-16"


@pytest.mark.slow
def test_every_operation_is_in_one_family():
    families = (grammar.ONE, grammar.TWO, grammar.BY_NUMBER, grammar.WEIGHTED)
    assert len(grammar.KINDS) == len(set(grammar.KINDS)) == sum(map(len, families))
    for kind in grammar.KINDS:
        program = Program((Leaf(before=(Op("w_x", a=1, n=3), Op(kind, b=1))),))
        case = check.Case(program)
        jax.eval_shape(case.model, case.x, case.state)


# --- faults that are to be found ------------------------------------------------------------------


@pytest.mark.slow
def test_a_pattern_that_lacks_an_entry_is_found(monkeypatch):
    """A rule that says that nothing depends on anything."""
    check.check_patterns(RECURRENT)
    lost = lambda interpreter, eqn, patterns, known: [None] * len(eqn.outputs)
    facts = dataclasses.replace(FACTS[prims.dot_general_p], pattern=lost)
    monkeypatch.setitem(FACTS, prims.dot_general_p, facts)
    with pytest.raises(etpc.InputError, match="lacks"):
        check.check_patterns(RECURRENT)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["scan", "inside a scan"])
def test_a_wrong_gradient_by_inputs_is_found(entry, monkeypatch):
    stopped = lambda model, x, state: model(jax.tree.map(lax.stop_gradient, x), state)
    compiled_wrongly(monkeypatch, stopped)
    is_found(PLAIN, NUMBERS[entry], ["inputs"], count=1)


@pytest.mark.slow
def test_a_claim_that_holds_where_it_was_compiled_alone_is_found(monkeypatch):
    def change(model, x, state):
        """Passes on no gradient to parameters of another sign than they had."""
        same = lambda p, q: jnp.where(p * q >= 0, p, lax.stop_gradient(p))
        return jax.tree.map(same, model, made)(x, state)

    made = grammar.DrawnModel(PLAIN)
    compiled_wrongly(monkeypatch, change)
    agrees(PLAIN, count=1)
    is_found(PLAIN, count=5)


GUARDS = ("guarded_sqrt", "guarded_loop", "guarded_gain", "guarded_twice")


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUARDS)
def test_a_branch_that_is_computed_where_it_is_not_taken_is_found(kind, monkeypatch):
    """A weight inside of it, or one before it, opens the branch."""
    program = Program((Leaf(n=3, before=(Op("w_x", a=1, n=3), Op(kind), Op("guarded_gain"))),))
    agrees(program, count=10)
    monkeypatch.setattr(_expand, "_or_zero", lambda taken, value: value)
    monkeypatch.setattr(_expand, "merge_products", lambda branch, held: branch)
    is_found(program, words=["exact"], count=10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_trace_that_is_missing_without_a_word_is_found(seed, monkeypatch):
    """Of a parameter with two uses, one of them marked."""
    ops = Op("w_x", a=1, n=3), Op("w_x", a=2, n=3, shared=True), Op("add", b=1)
    program = Program((Leaf("vector", 3, rule="raw", before=ops),), n_in=3, weights="marked")
    uses = {"0.0:w_x", "0.1:w_x"}
    marks = [
        m for m in range(1, 60) if len(dataclasses.replace(program, marks=m).marked & uses) == 1
    ]
    program = dataclasses.replace(program, marks=marks[seed])
    agrees(program, count=2)
    reasons = _claims.reasons_of
    silent = lambda plan, p: [] if p.form is None else reasons(plan, p)
    monkeypatch.setattr(_claims, "reasons_of", silent)
    is_found(program, count=2)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["decay_minimum", "decay_where", "decay_exp", "decay_steps"])
def test_outputs_that_are_said_to_share_transitions_are_found(rule, monkeypatch):
    program = Program((Leaf(n=3, rule=rule, before=(Op("w_x", a=1, n=3),)),), n_in=3)
    agrees(program, RANK)
    of_one = lambda tables, groups: ((0,) * (tables[0].shape[1] // groups),) * groups
    monkeypatch.setattr(_filtered, "_classes", of_one)
    is_found(program, RANK)


@pytest.mark.slow
def test_credit_that_depends_on_how_states_are_stored_is_found(monkeypatch):
    first = Leaf(n=3, before=(Op("w_x", a=1, n=3),))
    second = Leaf(n=3, before=(Op("w_x", a=0, n=3),))
    program, clipped = Program((first, second), n_in=3), [*packing.WAYS].index("clipped")
    assert "d_rtrl packed" in agrees(program, clipped).errors
    monkeypatch.setattr(_analysis, "in_full", lambda *args: {})
    is_found(program, clipped, words=["packed", "reference"], count=2)


@pytest.mark.slow
def test_connections_that_change_without_a_word_are_found(monkeypatch):
    program = Program((Leaf(n=3, before=(Op("w_x", a=1, n=3), Op("wired"))),), n_in=3)
    assert check.check_rewired(program) < check.TOLERANCE
    unseen = lambda self, i, given, problems: self.step.fixed[self.step.parameters[i]]
    monkeypatch.setattr(Arguments, "_connections", unseen)
    assert check.check_rewired(program) > 1e-3


@pytest.mark.slow
def test_the_definition_knows_the_connections_too():
    """Where it does not, a sparse product is no operation that mixes, and nothing is cut."""
    ops = (Op("tanh", n=2), Op("sparse_of_bytes", n=2))
    agrees(Program((Leaf(n=2, rule="leaky", a=4, b=6, before=ops),), seed=40292), count=2)


@pytest.mark.slow
def test_indices_that_wrap_are_found(monkeypatch):
    program = Program((Leaf(n=3, before=(Op("embedding_of_bytes", n=3),)),))
    agrees(program, count=2)
    compiled_wrongly(monkeypatch, lambda model, x, state: model(x | {"i": x["i"] & 1}, state))
    is_found(program, words=["exact", "loss"], count=2)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [["low"], ["store"], ["cast"], ["low", "cast"]])
def test_influence_that_a_narrow_type_loses_is_found(fields, monkeypatch):
    ops = (Op("w_x", a=1, n=3, **dict.fromkeys(fields, "float16")),)
    program = Program((Leaf(n=3, before=ops, low="float16"),), n_in=3)
    agrees(program)
    half = lambda a: 0.5 * a + 0.5 * lax.stop_gradient(a)
    compiled_wrongly(monkeypatch, lambda model, x, state: model(x, jax.tree.map(half, state)))
    is_found(program)


@pytest.mark.slow
def test_an_output_that_is_computed_of_a_rounded_state_is_found(monkeypatch):
    """The broken program is that of a model which rounds what it reads."""
    read = Op("sin_gain"), Op("sin")
    program = Program((Leaf(n=3, rule="raw", low="float32"),), after=read, n_in=3)
    agrees(program)
    rounded = dataclasses.replace(
        program, after=(dataclasses.replace(read[0], low="bfloat16"), read[1])
    )

    def change(model, x, state):
        other = copy.copy(model)
        object.__setattr__(other, "program", rounded)
        return other(x, state)

    compiled_wrongly(monkeypatch, change)
    is_found(program, words=["loss"])
