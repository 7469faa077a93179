"""Drawn structures at many points, and what this finds: each feature of the grammar has a fault that it shows."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental.sparse import BCOO

import etpc
from etpc.emit import _emit
from etpc.plan import _claims, _filtered
from etpc.run._arguments import Arguments
from etpc.trace import _expand
from tests import evaluate, fast, grammar, oracle, sweep
from tests.grammar import Leaf, Op, Program

TOLERANCE = 1e-9
RECURRENT = Program(
    leaves=(
        Leaf("stacked", 2, 2, before=(Op("rows", a=1), Op("threshold"))),
        Leaf("ring", 2, 3, before=(Op("scan_gain", a=2), Op("w_x"), Op("sort"))),
    ),
    pack="nested",
)
PLAIN = Program((Leaf(n=3, rule="raw", before=(Op("w_x", a=1, n=3),)),), readout=False)
WAYS = {"call": 0, "scan": 5, "inside a scan": 10, "batch": 15, "learn": 16}
"""Numbers of structures; each has another second rule."""
RANK = 4  # the number of a structure whose second rule has a rank


def agrees(program, number=1, second=False, **options):
    result = sweep.check(program, number, second=second, **options)
    assert not result.failures, f"{result.errors}\n{program}"
    return result


def compiled_wrongly(monkeypatch, change):
    """Programs are compiled from `change(model, x, state)` in the place of `model(x, state)`."""

    def compiled(model, algo):
        x = grammar.data(model.program, 1, at=0)
        return etpc.compile(model, algo, inputs=x, step=change, weights="all")

    monkeypatch.setattr(fast, "compiled", compiled)


def is_found(program, number=1, words=("exact",), second=False, **options):
    failures = sweep.check(program, number, second=second, **options).failures
    assert failures
    assert {name.split()[-1] for name in failures} & set(words), failures


# What is drawn


@pytest.mark.slow
@given(grammar.programs(), st.integers(0, 400))
@settings(max_examples=3)
def test_drawn_structures(program, number):
    agrees(program, number, second=True)


@pytest.mark.slow
@given(grammar.programs(narrow=True, marks=True, complex=True), st.integers(0, 400))
@settings(max_examples=3)
def test_drawn_structures_with_narrow_types_and_marks(program, number):
    agrees(program, number, second=True)


@pytest.mark.long
@given(grammar.programs(narrow=True, marks=True, complex=True), st.integers(0, 4000))
@settings(max_examples=500)
def test_many_drawn_structures(program, number):
    agrees(program, number, second=True)


@pytest.mark.long
@given(grammar.programs(narrow=True))
@settings(max_examples=50)
def test_many_narrow_structures(program):
    assert not sweep.check_narrow(program).failures


@pytest.mark.slow
@pytest.mark.parametrize("number", WAYS.values(), ids=WAYS)
def test_every_way_into_a_recurrent_program_and_every_second_rule(number):
    result = agrees(RECURRENT, number, second=True)
    assert result.points >= 8
    assert len({name.split()[0] for name in result.errors}) >= 2


NARROW = {
    "sparse": Op("sparse", n=2, low="float16", store="float16"),
    "sparse of bytes": Op("sparse_of_bytes", low="float32", cast="float32"),
    "clip": Op("clip", low="float16"),
    "fft": Op("fft", low="float32"),
}


@pytest.mark.parametrize("name", NARROW)
def test_operations_in_narrow_types_agree(name):
    """Those that NumPy has not, and constants that a type has not."""
    program = Program((Leaf(n=3, before=(Op("w_x", a=1, n=3), NARROW[name])),), n_in=3)
    agrees(program, count=5)


def test_an_operation_that_reaches_a_state_at_rare_parameters_is_cut():
    """The state is the larger one of two, and only a weight far from that drawn makes the product of a branch so."""
    ops = Op("tanh", a=3), Op("cond_both", a=0, b=1, form="low_rank"), Op("decay", a=6)
    leaf = Leaf("vector", 1, rule="max", a=1, before=ops)
    program = Program((leaf,), reads=(2,), pack="nested", n_in=3, seed=7747)
    assert not agrees(program, 129, count=40).unsettled


def test_an_operation_that_reaches_a_state_at_rare_states_is_cut():
    """The sum that takes the other branch is of products, nearly all positive where states are not small."""
    ops = Op("scan_back", a=1), Op("cond_both")
    delay = Leaf("delay", rule="previous", a=3, b=3, before=(Op("winner", a=1),))
    leaves, after = (Leaf("stacked", before=ops), delay), (Op("decay", a=4, b=4),)
    program = Program(leaves, after, reads=(0, 2), pack="dict", n_in=1, seed=6399)
    assert not agrees(program, count=40).unsettled


@pytest.mark.slow
def test_what_rounding_decides_is_not_compared():
    """At one of these points a decay is 1e67, and the state is the difference of two products with it."""
    leaf = Leaf("noisy", 1, rule="tau", a=4, b=6, before=(Op("fori_weight", a=4, b=6, n=3),))
    program = Program((leaf,), reads=(1,), readout=False, seed=8554)
    result = agrees(program, 2, count=40)
    assert result.unsettled == 1
    assert result.points > 30


# The tools


@pytest.mark.parametrize("program", [RECURRENT, PLAIN], ids=["recurrent", "plain"])
def test_references_of_single_steps_are_those_of_the_oracle(program):
    structure = sweep.Structure(program)
    assert structure.find_reach(32) == fast.Case(program).structure.to_state
    point = structure.points(2)
    found = sweep.References.at(structure, point, structure.reference.cut(structure.to_state))
    for k in range(2):
        model = structure.of_model.join([a[k] for a in point.parameters])
        xs, targets = evaluate.at((point.xs, point.targets), k)
        state = jax.tree.map(lambda a, k=k: a[min(k, len(a) - 1)], point.state)
        given = model, xs, targets, grammar.loss, state
        with oracle.in_numpy():
            pieces = oracle.all_pieces(*given, structure.to_state)
            cut = oracle.pull_back(
                model, structure.x, state, oracle.combine(pieces, algo="d_rtrl", form="L")
            )
            wanted = {"bptt": oracle.bptt(*given), "d_rtrl": cut}
        for name, tree in wanted.items():
            grads = [a[k] for a in getattr(found, name).parameters]
            assert largest_difference(grads, jax.tree.leaves(tree)) < 1e-12
    apart = largest_difference(found.bptt.parameters, found.d_rtrl.parameters)
    assert (apart > 1e-4) == (program is RECURRENT)


def largest_difference(found, wanted):
    return max(np.max(np.abs(a - b)) for a, b in zip(found, wanted, strict=True))


def test_points_are_evaluated_together_as_alone():
    def function(x, i):
        y = lax.cond(x[0] > 0, lambda x: jnp.sqrt(x[0]) * x, lambda x: -x, x)
        y = lax.dynamic_update_slice(y, y[:1] * 3.0, (i,)) + x[i] + lax.top_k(x, 2)[0].sum()
        y = y * lax.while_loop(lambda n: n < i + 2, lambda n: 2 * n + 1, i)
        y = lax.scan(lambda h, x: (h + jnp.sort(h * x), h), y, jnp.stack([x, y, x]))[0]
        return y.at[jnp.array([0, 2])].add(x[1]) + jnp.arange(3.0) + (x > i)

    xs = np.random.default_rng(0).normal(size=(6, 3))
    numbers = np.array([0, 1, 2, 2, 1, 0])
    together = evaluate.at_points(jax.value_and_grad(lambda x, i: jnp.sum(jnp.sin(function(x, i)))))
    values, grads = together(xs, numbers)
    one = jax.jit(jax.value_and_grad(lambda x, i: jnp.sum(jnp.sin(function(x, i)))))
    for k, (x, i) in enumerate(zip(xs, numbers, strict=True)):
        value, grad = one(jnp.asarray(x), jnp.asarray(i))
        assert abs(values[k] - value) < 1e-12
        assert np.max(np.abs(grads[k] - grad)) < 1e-12


def sparse_product(x):
    """With JAX's own operations on sparse arrays, forwards and backwards."""
    at = jnp.array([[0, 1], [1, 0], [1, 2]])
    product = lambda values, x: BCOO((values, at), shape=(2, 3)) @ x
    return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(product(x, x))))(x[:3])[1]


OF_JAX = {
    "sparse product": sparse_product,
    "fft": lambda x: jnp.fft.fft(x).imag,
    "solve": lambda x: jnp.linalg.solve(jnp.outer(x, x) + 2 * jnp.eye(len(x), dtype=x.dtype), x),
    "product": lambda x: x * 3 + x @ x,
}


@pytest.mark.parametrize("name", OF_JAX)
def test_wide_evaluation_rounds_nothing(name):
    narrow = lambda x: OF_JAX[name](x.astype(jnp.float32)).astype(float)
    x = np.random.default_rng(0).normal(size=5)
    wanted, rounded = evaluate.run(OF_JAX[name])(x), evaluate.run(narrow)(x)
    with evaluate.wide():
        found = evaluate.run(narrow)(x)
    assert np.max(np.abs(found - wanted)) < 1e-14
    assert 1e-9 < np.max(np.abs(rounded - wanted)) < 1e-6


def test_constants_are_rounded_in_wide_evaluation_too():
    """Here the constant is converted in one program, and in the other it was before."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=5))
    half, table = jnp.float16(0.61), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    as_half = jnp.asarray(table, jnp.float16)
    with evaluate.wide():
        one = evaluate.run(lambda x: jnp.clip(x.astype(jnp.float16), -0.61, 0.61) * as_half)(x)
        other = evaluate.run(
            lambda x: jnp.clip(x.astype(jnp.float16), -half, half) * table.astype(jnp.float16)
        )(x)
        late = evaluate.run(
            lambda x: (
                jnp.clip(x.astype(jnp.float16), -0.61, 0.61)
                * lax.convert_element_type(jnp.asarray(table), jnp.float16)
            )
        )(x)
    assert one.dtype == float
    assert np.array_equal(one, other)
    assert np.array_equal(one, late)


def test_rounding_at_random_is_of_the_size_of_rounding():
    x = jnp.asarray(np.random.default_rng(0).normal(size=50))
    functions = {
        1e-15: lambda x: jnp.exp(jnp.sin(x)) * 3.0,
        1e-3: lambda x: (x + 1e12) - 1e12,
        1e-2: lambda x: jnp.stack([x, jnp.full_like(x, 1e13), jnp.full_like(x, -1e13)]).sum(0),
        0: lambda x: jnp.sort(-jnp.maximum(x, 0.3))[::2],
    }
    for size, function in functions.items():
        exact = evaluate.run(function)(x)
        with evaluate.rounding_at_random(np.random.default_rng(1)):
            found = evaluate.run(function)(x)
        assert size / 10 <= np.max(np.abs(found - exact)) <= 10 * size
        assert np.array_equal(evaluate.run(function)(x), exact)


# Faults that are to be found


@pytest.mark.parametrize("number", [0, 5, 10], ids=["call", "scan", "inside a scan"])
def test_a_wrong_gradient_by_inputs_is_found(number, monkeypatch):
    agrees(PLAIN, number)
    stopped = lambda model, x, state: model(jax.tree.map(lax.stop_gradient, x), state)
    compiled_wrongly(monkeypatch, stopped)
    is_found(PLAIN, number, ["inputs"])


def test_a_claim_that_holds_where_it_was_compiled_alone_is_found(monkeypatch):
    def change(model, x, state):
        """Passes on no gradient to parameters of another sign than they had."""
        same = lambda p, q: jnp.where(p * q >= 0, p, lax.stop_gradient(p))
        return jax.tree.map(same, model, made[0])(x, state)

    made = [grammar.DrawnModel(PLAIN, fast.treatment())]
    compiled_wrongly(monkeypatch, change)
    agrees(PLAIN, count=1)
    is_found(PLAIN, count=5)


GUARDS = ("guarded_sqrt", "guarded_loop", "guarded_gain", "guarded_twice")


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUARDS)
def test_a_branch_that_is_computed_where_it_is_not_taken_is_found(kind, monkeypatch):
    """A weight inside of it, or one before it, opens the branch."""
    program = Program((Leaf(n=3, before=(Op("w_x", a=1, n=3), Op(kind), Op("guarded_gain"))),))
    agrees(program)
    monkeypatch.setattr(_expand, "_or_zero", lambda taken, value: value)
    monkeypatch.setattr(_expand, "merge_products", lambda branch, held: branch)
    is_found(program, words=["exact", "reference"])


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
    agrees(program)
    reasons = _claims.reasons_of
    silent = lambda plan, p: [] if p.form is None else reasons(plan, p)
    monkeypatch.setattr(_claims, "reasons_of", silent)
    is_found(program)


DECAYS = ("decay_minimum", "decay_where", "decay_exp", "decay_steps")


@pytest.mark.parametrize("rule", DECAYS)
def test_outputs_that_are_said_to_share_transitions_are_found(rule, monkeypatch):
    program = Program((Leaf(n=3, rule=rule, before=(Op("w_x", a=1, n=3),)),), n_in=3)
    agrees(program, RANK, second=True)
    of_one = lambda tables, groups: ((0,) * (tables[0].shape[1] // groups),) * groups
    monkeypatch.setattr(_filtered, "_classes", of_one)
    is_found(program, RANK, second=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "wired"])
def test_other_connections_are_found(kind, monkeypatch):
    program = Program((Leaf(n=3, before=(Op("w_x", a=1, n=3), Op(kind, n=3, b=1))),), n_in=3)
    agrees(program)
    assert sweep.check_rewired(program) < TOLERANCE
    whole = lambda a: jnp.issubdtype(a.dtype, jnp.integer)

    def change(model, x, state):
        other = jax.tree.map(lambda a: jnp.roll(a, 1, axis=0) if whole(a) else a, model)
        return other(x, state)

    compiled_wrongly(monkeypatch, change)
    is_found(program, words=["exact", "loss"])


def test_indices_that_wrap_are_found(monkeypatch):
    program = Program((Leaf(n=3, before=(Op("embedding_of_bytes", n=3),)),))
    agrees(program)
    compiled_wrongly(monkeypatch, lambda model, x, state: model(x | {"i": x["i"] & 1}, state))
    is_found(program, words=["exact", "loss"])


def test_connections_that_change_without_a_word_are_found(monkeypatch):
    program = Program((Leaf(n=3, before=(Op("w_x", a=1, n=3), Op("wired"))),), n_in=3)
    unseen = lambda self, i, given, problems: self.step.fixed[self.step.parameters[i]]
    monkeypatch.setattr(Arguments, "_connections", unseen)
    assert sweep.check_rewired(program) > 1e-3


@pytest.mark.parametrize("fields", [["low"], ["store"], ["cast"], ["low", "cast"]])
def test_influence_that_a_narrow_type_loses_is_found(fields, monkeypatch):
    ops = (Op("w_x", a=1, n=3, **dict.fromkeys(fields, "bfloat16")),)
    program = Program((Leaf(n=3, before=ops, low="float16"),), n_in=3)
    agrees(program)
    half = lambda a: 0.5 * a + 0.5 * lax.stop_gradient(a)
    compiled_wrongly(monkeypatch, lambda model, x, state: model(x, jax.tree.map(half, state)))
    is_found(program)


def test_an_output_that_is_computed_of_a_rounded_state_is_found(monkeypatch):
    """The broken program is that of a model which rounds what it reads."""
    read = Op("sin_gain", low=""), Op("sin")
    program = Program((Leaf(n=3, rule="raw", low="bfloat16"),), after=read, n_in=3)
    assert not sweep.check_narrow(program).failures
    rounded = dataclasses.replace(
        program, after=(dataclasses.replace(read[0], low="bfloat16"), read[1])
    )

    def change(model, x, state):
        other = copy.copy(model)
        object.__setattr__(other, "program", rounded)
        return other(x, state)

    compiled_wrongly(monkeypatch, change)
    assert "narrow loss" in sweep.check_narrow(program).failures


def test_a_sum_in_a_narrow_type_is_found(monkeypatch):
    bias = Op("bias", low="bfloat16", cast="bfloat16")
    program = Program(after=(bias,), readout=False)
    assert not sweep.check_narrow(program).failures
    monkeypatch.setattr(_emit, "sum_dtype", lambda weight: weight.dtype)
    assert "long sum" in sweep.check_narrow(program).failures
