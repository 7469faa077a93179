"""Passes of other authors: how they are given, what they may change, and the check of one."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import etpc
from etpc.ir import Change, Direct, Through
from etpc.plan import DEFAULT, Pass, chosen
from etpc.testing import check_pass
from tests.helpers import distance, loss
from tests.marks import few
from tests.passes.test_passes import (
    BATCH,
    NETWORKS,
    RULES,
    compiled,
    data,
    plain,
    results,
)


def in_dtype(dtype, only=""):
    """A pass that carries traces in another dtype."""

    def run(program):
        found = {
            node: dataclasses.replace(node, dtype=jnp.dtype(dtype))
            for node in program.traces
            if node.op.path.startswith(only)
        }
        changes = [
            Change("narrow", old.op.path, f"in {new.dtype}", old.bytes - new.bytes)
            for old, new in found.items()
        ]
        return program.replaced(found).noted(*changes)

    return Pass("narrow", "traces in another dtype", run)


def checked(pass_, network, rule, **options):
    model, state, step = NETWORKS[network]
    return check_pass(
        *(pass_, model, *data(), loss, RULES[rule]),
        **dict(state=state, step=step, batch_size=BATCH, **options),
    )


NARROW = [
    ("GRU", "windows"),
    ("GRU", "decay"),
    ("GRU", "full windows"),
    ("GRU", "look-back"),
    ("GRU", "rank"),
    ("adaptive", "steps"),
    ("spiking", "decay, steps"),
    ("matrix", "whole"),
]


@pytest.mark.parametrize(("network", "rule"), few(NARROW, NARROW[0], NARROW[1]))
def test_traces_in_another_dtype_change_no_more_than_its_rounding(network, rule):
    report = checked(in_dtype("float32"), network, rule, tolerance=1e-5)
    whole = compiled(network, rule, ())
    assert 2 * report.bytes == sum(node.bytes for node in whole.ir.traces)


@pytest.mark.parametrize(("network", "rule"), few(NARROW, NARROW[0]))
def test_their_carry_has_that_dtype_after_all_other_passes_too(network, rule):
    program = compiled(network, rule, (*DEFAULT, in_dtype("float32")))
    carry, run = program.init(BATCH), program.value_and_grad(loss)
    (_, after), _ = run(NETWORKS[network][0], *data(), carry)
    assert distance(results(program, network), plain(network, rule)) < 1e-5
    for array in jax.tree.leaves((carry.traces, after.traces)):
        assert array.dtype in (jnp.float32, jnp.complex64)  # two states as one number


def test_a_layer_alone_may_be_in_half_precision():
    narrow = in_dtype("float16", ".weight_hh")
    checked(narrow, "GRU", "windows", tolerance=1e-2)
    program = compiled("GRU", "windows", (narrow,))
    dtypes = {node.op.path: node.dtype.name for node in program.ir.traces}
    assert dtypes == dict.fromkeys(dtypes, "float64") | {".weight_hh": "float16"}
    assert "Full float16[18 x 1]" in str(program.ir)
    assert str(program.passes).startswith("narrow: traces in another dtype")


def of_step(program):
    """A program without traces, which is valid and has other gradients."""

    def term(_, term):
        match term:
            case Through(op):
                return Through(op, None)
            case Direct():
                return term

    return program.rewritten(dict.fromkeys(program.traces, ()), term)


def test_a_pass_that_changes_a_gradient_is_found():
    with pytest.raises(AssertionError, match="more than rounding") as info:
        checked(Pass("of step", "no traces", of_step), "GRU", "windows")
    text = str(info.value)
    assert "  the gradient of .weight_hh, in windows: by " in text
    assert "the gradient of .weight_hh, step by step: by " in text
    assert "the state" not in text
    with pytest.raises(AssertionError, match=r"\(1e-09\)"):
        checked(in_dtype("float32"), "GRU", "windows")


def test_a_pass_that_makes_no_program_is_refused():
    for run, words in [
        (lambda program: None, "The pass 'broken' returned None"),
        (
            lambda program: dataclasses.replace(program, traces=()),
            "broken' made .* that is not one",
        ),
    ]:
        with pytest.raises(etpc.AlgorithmError, match=words):
            compiled("GRU", "windows", (Pass("broken", "", run),))


def test_passes_run_in_the_order_in_which_they_are_given():
    mine = Pass("mine", "nothing", lambda program: program)
    names = lambda *passes: [p.name for p in chosen(passes)]
    default = [p.name for p in DEFAULT]
    assert names(mine) == ["mine"]
    assert names(*DEFAULT, mine) == [*default, "mine"]
    assert names(mine, *DEFAULT) == ["mine", *default]
    assert names("read_after", mine, "filtered", "read_after") == ["read_after", "mine", "filtered"]
    assert names("read_after", "filtered") == ["filtered", "read_after"]
    assert [p.name for p in chosen({"read_after", "filtered"})] == ["filtered", "read_after"]
    with pytest.raises(etpc.InputTypeError, match="run in the order given"):
        chosen({mine, "filtered"})


def test_the_pass_of_the_example_takes_half_of_the_memory():
    """Also of two states that another pass carries as one complex number."""
    from examples import narrow

    with jax.enable_x64(False):
        for model in narrow.models().values():
            passes = (*DEFAULT, narrow.narrow())
            whole, size, _ = narrow.gradients(model, etpc.D_RTRL(), None)
            rounded, fewer, _ = narrow.gradients(model, etpc.D_RTRL(), passes)
            assert 2 * fewer == size
            assert 1e-6 < narrow.error(rounded, whole) < 1e-3
