"""What is asked of a trace program, and how one is printed."""

import dataclasses
import importlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.forms import Trace
from etpc.ir import After, Feed, Past, Through, check
from etpc.plan import DEFAULT
from tests.helpers import cell
from tests.pages import ROOT
from tests.passes.networks import INPUTS
from tests.passes.test_passes import NETWORKS, RULES


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


DIRECT, THROUGH, PAST = PROGRAM.grads[OP]
AT_END = replace(step_grads={**PROGRAM.step_grads, OP: (After(BIAS),)})
STATES = np.arange(PROGRAM.analysis.hidden.size)[None]
BREAKAGES = {
    "nothing past the new states": (graded(OP, THROUGH, PAST), "'direct' is missing, so the grad"),
    "nothing through them": (graded(OP, DIRECT, PAST), "'through TraceNode.*' is missing, so"),
    "a part that counts twice": (
        graded(OP, DIRECT, THROUGH, THROUGH, PAST),
        "its through counts tw",
    ),
    "terms in another order": (graded(OP, THROUGH, DIRECT, PAST), "in another order than direct, "),
    "read at the end of a long window": (
        graded(OP, After(BIAS)),
        "'after .*' does not belong to it",
    ),
    "credited states left out, read at the end": (
        traced(BIAS, AT_END, blocks=BIAS.blocks.multiply(STATES < 16).tocsr()),
        "some are left out of its blocks. Let the .* run before `read_after`",
    ),
    "credited states left out, past joined": (
        traced(JOINED, blocks=JOINED.blocks.multiply(STATES < 16).tocsr()),
        "some are left out of its blocks. Let the .* run before `join_past`",
    ),
    "no traces": (replace(traces=()), "it has no trace, and a past"),
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
    "the past counts twice": (graded(OP, DIRECT, THROUGH, PAST, PAST), "past counts twice"),
    "twice, once in the first step": (
        graded(OP, DIRECT, THROUGH._replace(past=PAST), PAST),
        "past counts twice",
    ),
    "the place of another": (graded(IH, *PROGRAM.grads[HH]), f"`grads` of {IH.path}: 'direct'"),
    "a past of another": (
        graded(HH, PROGRAM.grads[HH][0], Through(HH, JOINED, Past(JOINED, 0))),
        "is joined with is not its own",
    ),
    "credit by way of another trace": (
        graded(OP, DIRECT, Through(OP, JOINED), PAST),
        "does not belong to it",
    ),
    "all at the end, and more": (
        graded(OP, DIRECT, After(BIAS)),
        "'after TraceNode.*' does not belong to it",
    ),
    "credit through the window": (
        replace(window=dataclasses.replace(PROGRAM.window, credit="window")),
        "has the gradient within it",
    ),
    "blocks of fewer outputs": (traced(BIAS, blocks=BIAS.blocks[:3]), "its blocks have the shape"),
    "a real operation, complex": (traced(BIAS, dtype=jnp.dtype("complex64")), "its dtype is"),
    "no form that reads the end": (
        traced(BIAS, AT_END, form=Plain()),
        "and Plain has no `read_end`. Let the .* before `read_after`, as in `passes=.mine, .*, or ",
    ),
    "no form that adds to the first": (
        traced(JOINED, form=Plain()),
        "Plain has no `first_data`. Let the pass that puts Plain there run before `join_past`",
    ),
    "no form that joins": (
        traced(JOINED, form=Plain()),
        "`joins` of its form is not True. .* before `join_products`, .* or say `joins = True`",
    ),
    "credit of states that are left out": (
        traced(BIAS, form=Plain()),
        "a `read` of its own, .* before `drop_unlasting`",
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


def test_a_feed_has_outputs_of_one_shape():
    two = {"a": jnp.ones((3, 2)), "b": jnp.ones((4, 2))}
    step = lambda w, x, h: (h, (0.5 * h[0] + w["a"] @ x, 0.5 * h[1] + w["b"] @ x))
    state = (jnp.zeros(3), jnp.zeros(4))
    program = etpc.compile(two, inputs=jnp.zeros(2), state=state, step=step, passes=()).ir
    first, second = program.traces
    joined = dataclasses.replace(first, feeds=(Feed((first.op, second.op)),))
    with pytest.raises(etpc.AlgorithmError, match="outputs of several shapes"):
        check(program.rewritten({first: (joined,), second: ()}, lambda _, term: term))


@pytest.mark.parametrize("network", NETWORKS)
def test_each_pass_makes_a_program(network):
    model, state, step = NETWORKS[network]
    for rule in RULES.values():
        options = dict(inputs=jnp.zeros(INPUTS), state=state, step=step, passes=())
        program = etpc.compile(model, rule, **options).ir
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
    assert record["grads"][".bias"] == ["direct", "through t1", "past t1"]
    assert record["window"]["steps"] == 4
