"""What is asked of a trace program, and how one is printed."""

import dataclasses
import importlib
import json
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.forms import Trace
from etpc.ir import (
    AtStart,
    Carried,
    Compression,
    Direct,
    Feed,
    OutputPaths,
    Product,
    Signal,
    Steps,
    Through,
    TraceNode,
    TraceProgram,
    WindowSpec,
    check,
    end_of,
    past_of,
)
from etpc.plan import DEFAULT, Pass
from etpc.schedule import Schedule, Target
from tests.helpers import cell, distance
from tests.marks import few, first
from tests.pages import ROOT
from tests.passes.networks import INPUTS
from tests.passes.test_passes import NETWORKS, RULES, compiled, often, plain, results


class Plain(Trace):
    """A form that can do nothing that only some forms can, and reads credit in its own way."""

    exact = False

    def read(self, site, signals, path, carry):
        return signals.through()


class Reduced(Trace):
    exact = False
    reduces = True


LSTM = eqx.nn.LSTMCell(8, 16, key=jax.random.key(0))
OPTIONS = dict(inputs=jnp.zeros(8), state=(jnp.zeros(16),) * 2, step=cell)
PROGRAM = etpc.compile(LSTM, etpc.ES_D_RTRL(decay=0.9, window=4), **OPTIONS).ir
(JOINED, BIAS), (IH, HH, _) = PROGRAM.traces, PROGRAM.grads
OP = BIAS.op


def graded(op, *terms):
    """The program with other terms for the gradient of one operation."""
    return dataclasses.replace(PROGRAM, grads={**PROGRAM.grads, op: terms})


def traced(node, program=PROGRAM, **changes):
    """The program with another trace in the place of one."""
    return program.replaced({node: dataclasses.replace(node, **changes)})


def replace(**changes):
    return dataclasses.replace(PROGRAM, **changes)


def only(node, states):
    """The blocks of a trace, with some states alone."""
    blocks = node.blocks.multiply(states).tocsr()
    blocks.eliminate_zeros()
    return blocks


X, STEP = Steps(OP), Through(OP, BIAS)
DIRECT, THROUGH, PAST = PROGRAM.grads[OP]
(OF_IH,), (OF_HH,) = PROGRAM.grads[IH], PROGRAM.grads[HH]
AT_END = replace(step_grads={**PROGRAM.step_grads, OP: (end_of(BIAS),)})
STATES = np.arange(PROGRAM.analysis.hidden.size)[None]
NOT_OWN = "`grads` of .bias: '{}' does not belong to it"
BREAKAGES = {
    "nothing past the new states": (
        graded(OP, THROUGH, PAST),
        r"`grads` of .bias: 'x \* direct' is missing, so the gradient would lack a part.*`program.without`",
    ),
    "nothing through them": (
        graded(OP, DIRECT, PAST),
        r"`grads` of .bias: 'x \* through TraceNode\(Full, .bias\)' is missing, so",
    ),
    "nothing of before the window": (
        graded(OP, DIRECT, THROUGH),
        r"`grads` of .bias: 'past TraceNode\(Full, .bias\) \* its credit' is missing, so",
    ),
    "nothing at the end": (
        dataclasses.replace(AT_END, step_grads={**PROGRAM.step_grads, OP: ()}),
        r"`step_grads` of .bias: 'x \* direct' is missing, so",
    ),
    "nothing of before, which was added to the first step": (
        graded(IH, Product(Steps(IH), OF_IH.credit)),
        r"`grads` of .weight_ih: 'past .*\.0 \* its credit' is missing, so",
    ),
    "no terms": (graded(OP), r"(?s)'x \* direct' is missing.*'x \* through .*'past .* is missing"),
    "nothing past the new states, twice": (
        graded(OP, DIRECT, DIRECT, THROUGH, PAST),
        r"'x \* direct' counts twice",
    ),
    "a part that counts twice": (
        graded(OP, DIRECT, THROUGH, THROUGH, PAST),
        r"'x \* through TraceNode\(Full, .bias\)' counts twice",
    ),
    "the past counts twice": (
        graded(OP, DIRECT, THROUGH, PAST, PAST),
        r"'past TraceNode.* \* its credit' counts twice",
    ),
    "twice, once in the first step": (
        graded(OP, DIRECT, Product(Steps(OP, Carried(BIAS)), STEP), PAST),
        r"'past TraceNode.* \* its credit' counts twice",
    ),
    "the past times credit of another": (
        graded(
            IH, Product(Steps(IH, Carried(JOINED, 0)), Direct(IH)), Product(Steps(IH), OF_IH.credit)
        ),
        r"'\(x \+ past .*\) \* direct' has the past times credit that is not its own",
    ),
    "the end counts twice": (
        replace(step_grads={**PROGRAM.step_grads, OP: (end_of(BIAS), end_of(BIAS))}),
        "`step_grads` of .bias: 'end .* signal' does not belong to it",
    ),
    "read at the end of a long window": (
        graded(OP, end_of(BIAS)),
        NOT_OWN.format(r"end TraceNode.* \* signal"),
    ),
    "all at the end, and more": (
        replace(step_grads={**PROGRAM.step_grads, OP: (DIRECT, end_of(BIAS))}),
        "'end TraceNode.* signal' does not belong to it",
    ),
    "a past of another trace": (
        graded(OP, DIRECT, THROUGH, PAST, past_of(JOINED)),
        NOT_OWN.format(r"past TraceNode\(Decay.*\.0 \* its credit"),
    ),
    "a past of another, in the first step": (
        graded(HH, Product(Steps(HH, Carried(JOINED, 0)), OF_HH.credit)),
        r"(?s)'past .*\.0 .* does not belong to it.*'past .*\.1 \* its credit' is missing",
    ),
    "the credit of another trace": (
        graded(OP, DIRECT, THROUGH, Product(Carried(BIAS), AtStart(JOINED))),
        r"'past TraceNode\(Full, .*' does not belong to it, as it has the credit of TraceNode\(Decay",
    ),
    "the signal of another trace": (
        replace(
            step_grads={**PROGRAM.step_grads, OP: (Product(end_of(BIAS).data, Signal(JOINED)),)}
        ),
        r"'end TraceNode\(Full, .*' does not belong to it, as it has the credit of TraceNode\(Decay",
    ),
    "credit by way of another trace": (
        graded(OP, DIRECT, Product(X, Through(OP, JOINED)), PAST),
        NOT_OWN.format(r"x \* through TraceNode\(Decay.*\)"),
    ),
    "credit by way of no trace": (
        graded(OP, DIRECT, Product(X, Through(OP, None)), PAST),
        NOT_OWN.format(r"x \* through the step"),
    ),
    "the credit of another operation": (
        graded(OP, Product(X, Direct(IH)), THROUGH, PAST),
        NOT_OWN.format(r"x \* direct") + ", as it has the credit of .weight_ih",
    ),
    "the credit of another operation, through the new states": (
        graded(OP, DIRECT, Product(X, Through(IH, BIAS)), PAST),
        NOT_OWN.format(r"x \* through .*") + ", as it has the credit of .weight_ih",
    ),
    "the data of another operation": (
        graded(OP, Product(Steps(IH), Direct(OP)), THROUGH, PAST),
        NOT_OWN.format(r"x \* direct") + ", as it has the data of .weight_ih",
    ),
    "the place of another": (
        graded(IH, *PROGRAM.grads[HH]),
        r"`grads` of .weight_ih: 'x .* does not belong to it, as it has the data of .weight_hh and",
    ),
    "credited states left out, read at the end": (
        traced(BIAS, AT_END, blocks=only(BIAS, STATES < 16)),
        "some are left out of its blocks. Let the .* before the one that reads it",
    ),
    "credited states left out, past joined": (
        traced(JOINED, blocks=only(JOINED, STATES < 16)),
        "some are left out of its blocks. Let the .* before the one that adds its past",
    ),
    "no traces": (replace(traces=()), NOT_OWN.format(r"past TraceNode.* \* its credit")),
    "two traces for one": (
        replace(traces=(*PROGRAM.traces, dataclasses.replace(BIAS))),
        f"{OP.path} enters more than one trace",
    ),
    "an operation is left out": (replace(grads={IH: PROGRAM.grads[IH]}), "`grads` does not have"),
    "in another order": (
        replace(step_grads=dict(reversed(PROGRAM.step_grads.items()))),
        "`step_grads` does not have the operations that reach a state, in their order",
    ),
    "nothing reads a trace": (graded(OP, DIRECT, THROUGH), "`grads` reads nothing of TraceNode"),
    "credit through the window": (
        replace(window=dataclasses.replace(PROGRAM.window, credit="window")),
        NOT_OWN.format(r"x \* direct"),
    ),
    "blocks of fewer outputs": (traced(BIAS, blocks=BIAS.blocks[:3]), "its blocks have the shape"),
    "a real operation, complex": (traced(BIAS, dtype=jnp.dtype("complex64")), "its dtype is"),
    "no form that reads the end": (
        traced(BIAS, AT_END, form=Plain()),
        "and Plain has no `read_end`. Let the .* before the one that reads .*, as in `passes=.mine, .*, or ",
    ),
    "no form that adds to the first": (
        traced(JOINED, form=Plain()),
        "Plain has no `first_data`. Let the pass that puts Plain there run before the one that adds",
    ),
    "no form that joins": (
        traced(JOINED, form=Plain()),
        "`joins` of its form is not True. .* before the one that joins products, .* or say `joins = True`",
    ),
    "credit of states that are left out": (
        traced(BIAS, form=Plain()),
        "a `read` of its own, .* before the one that leaves states out",
    ),
    "a trace that is reduced": (traced(BIAS, form=Reduced()), "window says that no gradient dep"),
    "integers": (traced(BIAS, dtype=jnp.dtype("int32")), "its dtype is int32, and that of its op"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_program_that_is_not_one_is_refused_with_what_is_wrong(name):
    check(PROGRAM)
    broken, words = BREAKAGES[name]
    with pytest.raises(etpc.AlgorithmError, match=words) as info:
        check(broken, "The pass 'mine'")
    assert str(info.value).startswith("The pass 'mine' made a trace program that is not one:")


def test_a_path_past_the_new_states_is_read_at_the_start():
    """The output reads the old state, whose credit meets the trace of the step before."""
    step = lambda w, x, h: (h + (h := 0.5 * h + w @ x), h)
    given = dict(inputs=jnp.zeros(2), state=jnp.zeros(3), step=step, passes=())
    program = etpc.compile(jnp.ones((3, 2)), etpc.D_RTRL(window=1), **given).ir
    (node,) = program.traces
    check(program)
    with pytest.raises(etpc.AlgorithmError, match=r"no path leads from an old state .* one does"):
        check(dataclasses.replace(program, step_grads={node.op: (end_of(node),)}))


def test_a_use_whose_trace_is_read_at_the_end_has_no_terms_of_its_own():
    """The first use of a shared weight has the whole gradient."""
    model, state, step = NETWORKS["tied"]
    options = dict(inputs=jnp.zeros(INPUTS), state=state, step=step)
    program = etpc.compile(model, etpc.D_RTRL(window=1), **options).ir
    node = next(n for n in program.traces if len(n.ops) > 1)
    assert program.step_grads[node.op] == (end_of(node),)
    other = node.ops[1]
    twice = {**program.step_grads, other: program.grads[other]}
    with pytest.raises(etpc.AlgorithmError, match=r"`step_grads` of .* does not belong to it"):
        check(dataclasses.replace(program, step_grads=twice))


def test_a_feed_has_outputs_of_one_shape():
    two = {"a": jnp.ones((3, 2)), "b": jnp.ones((4, 2))}
    step = lambda w, x, h: (h, (0.5 * h[0] + w["a"] @ x, 0.5 * h[1] + w["b"] @ x))
    state = (jnp.zeros(3), jnp.zeros(4))
    program = etpc.compile(two, inputs=jnp.zeros(2), state=state, step=step, passes=()).ir
    first, second = program.traces
    joined = dataclasses.replace(first, feeds=(Feed((first.op, second.op)),))
    with pytest.raises(etpc.AlgorithmError, match="outputs of several shapes"):
        check(program.regrouped({first: (joined,), second: ()}))


@pytest.mark.parametrize(("network", "rule"), often(RULES))
def test_each_pass_makes_a_program(network, rule):
    program = compiled(network, rule, ()).ir
    for each in DEFAULT:
        program = each.run(program)
        check(program, each.name)


def test_the_map_of_the_source_names_what_is_there():
    page = (ROOT / "docs/compiler.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.MULTILINE))
    assert {"_jax", "analyse", "ir", "plan", "emit", "run"} <= rows.keys()
    for package, text in rows.items():
        for module, name in re.findall(r"`(_\w+)(?:\.(\w+))?[.`]", text):
            found = importlib.import_module(f"etpc.{package}.{module}")
            assert hasattr(found, name or "__doc__"), f"{package}/{module}.{name}"


def test_what_is_printed_is_in_the_documentation():
    program = etpc.compile(LSTM, etpc.ES_D_RTRL(decay=0.9), **OPTIONS).ir
    text = str(program)
    assert text.replace("float64", "float32") in (ROOT / "docs/compiler.md").read_text()
    assert re.search(r"^t1 = Full .* # drop_unlasting$", text, re.MULTILINE)


def test_as_a_record():
    record = PROGRAM.as_dict()
    joined, bias = record["traces"]
    assert joined["feeds"] == [[".weight_ih", ".weight_hh"]]
    shown = [joined[key] for key in ("form", "dtype", "outputs")]
    assert shown == ["Decay(decay=0.9)", "float64", 64]
    assert bias["bytes"] == BIAS.bytes
    assert record["grads"][".bias"] == ["x * direct", "x * through t1", "past t1 * its credit"]
    assert record["grads"][".weight_hh"] == ["(x + past t0.1) * through t0"]
    assert record["zeros"][".weight_ih"].keys() == {"x * direct"}
    assert record["window"]["steps"] == 4


def test_terms_have_no_order():
    """A gradient is their sum."""
    check(graded(OP, PAST, DIRECT, THROUGH))


# --- terms that are proved to be zero ---


def zeros_of(program):
    """The terms past the new states that no path from their operation leads to."""
    direct = {op: Product(Steps(op), Direct(op)) for op in program.grads}
    return {
        op: term
        for op, term in direct.items()
        if op.number not in program.paths.from_operations and term in program.grads[op]
    }


DROP = Pass("drop", "no zeros", lambda program: program.without(zeros_of(program), "no path is"))
SMALL = ("spiking", "GRU", "LSTM")


@pytest.mark.parametrize("rule", few(["steps", "windows", "decay"], "windows"))
@pytest.mark.parametrize("network", first(SMALL))
def test_a_term_that_is_noted_as_zero_may_be_left_out(network, rule):
    program = compiled(network, rule, (DROP,))
    record = program.ir.as_dict()
    (zeros,) = re.findall(r"^zero, as no path is: (.*)$", str(program.ir), re.MULTILINE)
    whole = compiled(network, rule, ()).ir
    for op in zeros_of(whole):
        name = whole.names()[op]
        assert record["zeros"][name] == {"x * direct": "no path is"}
        assert "x * direct" not in record["grads"][name]
        assert f"x * direct of {name}" in zeros
    assert distance(results(program, network), plain(network, rule)) < 1e-11


@pytest.mark.parametrize("rule", few(["steps", "windows", "decay"], "steps"))
@pytest.mark.parametrize("network", first(SMALL))
def test_what_is_noted_holds_after_other_passes(network, rule):
    """`read_after` passes on the credit of states that no trace holds, which reaches the output past the others."""
    for passes in ((DROP, *DEFAULT), (*DEFAULT, DROP)):
        assert (
            distance(results(compiled(network, rule, passes), network), plain(network, rule))
            < 1e-11
        )


def test_a_zero_that_is_left_out_without_a_note_is_refused():
    def drop(program):
        zeros = zeros_of(program)
        return program.rewritten(lambda op, term: None if zeros.get(op) == term else term)

    with pytest.raises(etpc.AlgorithmError, match=r"direct' is missing.*`program.without`") as info:
        compiled("GRU", "windows", (Pass("drop", "no zeros", drop),))
    assert info.value.code == etpc.Code.ALGORITHM


# --- what is printed and recorded ---


EXTENDED = etpc.compile(LSTM, etpc.CreditRTRL(rank=None, window=4), **OPTIONS, passes=()).ir
FIRST = EXTENDED.traces[0]


def replaced(part, **changes):
    """The program with a part that has other fields."""
    return replace(**{part: dataclasses.replace(getattr(PROGRAM, part), **changes)})


CHANGED = {
    TraceProgram: {
        "traces": replace(traces=PROGRAM.traces[::-1]),
        "grads": graded(OP, DIRECT),
        "step_grads": replace(step_grads={**PROGRAM.step_grads, OP: (DIRECT,)}),
        "compression": replace(compression=Compression(PROGRAM.analysis, [OP.number])),
        "window": replace(window=WindowSpec(5, "step")),
        "paths": replace(paths=OutputPaths(PROGRAM.analysis, [1])),
        "target": replace(target=etpc.Target("cuda")),
        "schedule": replace(schedule=Schedule()),
        "extension": dataclasses.replace(
            EXTENDED, extension=dataclasses.replace(EXTENDED.extension, count=3)
        ),
        "zeros": replace(zeros={}),
    },
    WindowSpec: {
        "steps": replaced("window", steps=5),
        "credit": replaced("window", credit="window"),
        "behind": replaced("window", behind=2),
        "length": replaced("window", length="open"),
        "why": replaced("window", why="it is measured"),
    },
    Target: {
        "platform": replaced("target", platform="tpu"),
        "devices": replaced("target", devices=2),
        "precision": replaced("target", precision="high"),
        "cache": replaced("target", cache=1 << 20),
    },
    TraceNode: {
        "form": traced(JOINED, form=etpc.algorithms.Decay(0.5)),
        "blocks": traced(JOINED, blocks=only(JOINED, STATES < 16)),
        "feeds": traced(BIAS, feeds=JOINED.feeds),
        "dtype": traced(BIAS, dtype=jnp.dtype("float32")),
        "virtual": traced(FIRST, EXTENDED, virtual=FIRST.virtual + 1),
    },
}
NOT_EMITTED = {"analysis", "algorithm", "changes", "no_smaller"}
"""What a program is of, and what was done to it."""


@pytest.mark.parametrize("part", CHANGED)
def test_each_field_that_changes_what_is_emitted_is_shown(part):
    """In what is printed, and in the record, which are also taken to tell programs apart."""
    names = {f.name for f in dataclasses.fields(part)} - NOT_EMITTED
    assert CHANGED[part].keys() == names
    for name, other in CHANGED[part].items():
        own = EXTENDED if name in ("extension", "virtual") else PROGRAM
        assert str(other) != str(own), name
        assert json.dumps(other.as_dict()) != json.dumps(own.as_dict()), name


def test_which_states_and_operations_are_shown():
    """Not how many alone."""
    first, second = (
        traced(JOINED, blocks=only(JOINED, states)) for states in (STATES < 16, STATES >= 16)
    )
    by_columns = [
        replace(compression=Compression(PROGRAM.analysis, [op.number])) for op in (IH, HH)
    ]
    for one, other in ((first, second), by_columns):
        assert str(one) != str(other)
        assert one.as_dict() != other.as_dict()
