"""Each pass of the compiler, and some at once, give the gradients and the states of the program without passes."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etpc
from etpc.ir import end_of
from etpc.plan import PASSES
from tests.helpers import alive, distance, loss, normal
from tests.marks import few
from tests.passes.networks import INPUTS, networks

T, BATCH, TOLERANCE = 7, 3, 1e-11
RULES = {
    "steps": etpc.D_RTRL(window=1),
    "windows": etpc.D_RTRL(window=3),
    "whole": etpc.RTRL(window=2),
    "decay": etpc.ES_D_RTRL(decay=0.8, window=3),
    "decay, steps": etpc.ES_D_RTRL(decay=0.8, window=1),
    "rank": etpc.ES_D_RTRL(rank=2, window=3),
    "full windows": etpc.D_RTRL(window=3, backprop="full"),
    "decay, full windows": etpc.ES_D_RTRL(decay=0.8, window=3, backprop="full"),
    "look-back": etpc.D_RTRL(window=1, lookback=3),
    "chosen": etpc.D_RTRL(),
    "steps, tpu": etpc.D_RTRL(window=1),
    "windows, tpu": etpc.D_RTRL(window=6),
    "decay, tpu": etpc.ES_D_RTRL(decay=0.8, window=6),
    "windows, cuda": etpc.D_RTRL(window=6),
    "decay, cuda": etpc.ES_D_RTRL(decay=0.8, window=6),
}
"""By name, after which the target may stand; it is the CPU otherwise."""
DEFINED = ("steps", "windows", "whole", "full windows")
NETWORKS = networks()
COMMUTED = "readout", "complex cascade"
OFTEN = (
    ("spiking", "steps"),
    ("gated", "steps"),
    ("gated", "decay"),
    ("tied", "windows"),
    ("shared", "chosen"),
    ("shared", "rank"),
    ("shared", "decay, full windows"),
    ("adaptive", "steps"),
    ("adaptive", "decay, steps"),
    ("complex", "steps"),
    ("GRU", "full windows"),
    ("LSTM", "windows"),
    ("matrix", "windows"),
    ("readout", "whole"),
    ("readout", "look-back"),
    ("adaptive", "steps, tpu"),
    ("LSTM", "windows, tpu"),
    ("spiking", "decay, tpu"),
    ("layers", "windows, cuda"),
    ("LSTM", "decay, cuda"),
)
"""Each pass changes one of these, and each rule is in one."""


def often(rules):
    """All networks under all rules, of which those of `OFTEN` run often."""
    return few(itertools.product(NETWORKS, rules), *(case for case in OFTEN if case[1] in rules))


def compiled(network, rule, passes):
    model, state, step = NETWORKS[network]
    target = next((name for name in ("tpu", "cuda") if name in rule), None)
    options = dict(inputs=jnp.zeros(INPUTS), state=state, step=step, target=target)
    return etpc.compile(model, RULES[rule], passes=passes, **options)


def data(batch=BATCH):
    return normal(T, batch, INPUTS), normal(T, batch, 1, seed=1)


def results(program, network, batch=BATCH):
    """The gradients of two sequences, one after the other, with other parameters, and the state at the end."""
    model, xs, targets = NETWORKS[network][0], *data(batch)
    # After an update `commute` reads what was summed before with the new weights (`tests/test_through.py`).
    scale = 1.0 if network in COMMUTED else 0.9
    moved = jax.tree.map(lambda p: scale * p if eqx.is_inexact_array(p) else p, model)
    run = program.value_and_grad(loss, reduction="sum")
    carry, grads = program.init(batch), []
    for parameters, inputs in ((model, xs), (moved, xs[::-1])):
        (_, carry), of_part = run(parameters, inputs, targets, carry)
        grads.append(of_part)
    return *grads, carry.state


@functools.cache
def plain(network, rule):
    return results(compiled(network, rule, ()), network)


@functools.cache
def fired(network, rule, name):
    """A program with one pass; `None` where it changes nothing."""
    program = compiled(network, rule, (name,))
    assert set(program.passes.fired) <= {name}
    return program if program.passes.fired else None


@pytest.mark.parametrize("name", PASSES)
def test_each_pass_changes_some_network(name):
    assert any(fired(network, rule, name) for network, rule in OFTEN)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_each_pass_alone_changes_no_gradient(network, rule):
    assert alive(plain(network, rule))
    for name in PASSES:
        program = fired(network, rule, name)
        if program is not None:
            error = distance(results(program, network), plain(network, rule))
            assert error < TOLERANCE, name


@pytest.mark.parametrize(("network", "rule"), often(RULES))
def test_all_passes_change_no_gradient(network, rule):
    program = compiled(network, rule, None)
    assert alive(plain(network, rule))
    assert distance(results(program, network), plain(network, rule)) < TOLERANCE


@pytest.mark.parametrize("network", few(NETWORKS, "adaptive", "complex"))
def test_all_passes_change_no_gradient_of_one_example(network):
    """A form may be read at the end of a step of several examples alone, as one of pairs of states is here."""
    wanted = results(compiled(network, "steps", ()), network, 1)
    program = compiled(network, "steps", None)
    assert distance(results(program, network, 1), wanted) < TOLERANCE
    paired = [node for node in program.ir.traces if getattr(node.form, "as_complex", False)]
    at_end = lambda node, batch: program.ir.terms(1, batch)[node.op] == (end_of(node),)
    assert not any(at_end(node, 1) for node in paired)
    of_several = str(program.ir).count("* signal  # of several examples")
    assert of_several == sum(at_end(node, 2) for node in paired)


@pytest.mark.parametrize(("network", "rule"), often(DEFINED))
def test_without_passes_a_program_is_the_definition(network, rule):
    model, state, step = NETWORKS[network]
    wanted = etpc.reference(
        *(model, *data(), loss, RULES[rule]),
        **dict(state=state, step=step, batch_size=BATCH, reduction="sum"),
    )[1]
    assert distance(plain(network, rule)[0], wanted) < TOLERANCE


@pytest.mark.parametrize(("network", "rule"), often(RULES))
def test_the_bytes_of_the_reports_are_those_that_are_saved(network, rule):
    program, alone = compiled(network, rule, None), compiled(network, rule, ())
    traces = [sum(size for _, size in p.memory(1).traces) for p in (alone, program)]
    assert traces[0] - traces[1] == sum(report.bytes for report in program.passes)


def test_what_is_printed():
    report = str(compiled("LSTM", "steps", PASSES.keys() - {"schedule"}).passes)
    assert "drop_unlasting: states that" in report
    assert ": 1 of 2 states are left" in report
    assert "nothing to do: commute, drop_ended, " in report
    assert report.endswith("left out: schedule")
    assert str(compiled("LSTM", "steps", ()).passes) == f"left out: {', '.join(PASSES)}"


@pytest.mark.parametrize(
    ("passes", "error", "words"),
    [
        ("filtered", etpc.InputTypeError, "takes the names of passes"),
        (("filterd",), etpc.InputError, "no pass 'filterd'. Did you mean filtered?"),
    ],
)
def test_names_that_are_none(passes, error, words):
    with pytest.raises(error, match=words):
        compiled("GRU", "steps", passes)
