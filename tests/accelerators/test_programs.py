"""Programs compiled for a TPU and a GPU that are not there: their cost is deterministic, and bounded in `bounds.json`.

`python -m tests.accelerators.test_programs`, with the packages of `make test-accelerators`, writes the bounds anew from
what the compilers say: a change that makes a program worse is seen in its diff.
"""

import functools
import json
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etpc
from benchmarks import accelerators, cells
from benchmarks.network import N_IN
from etpc.estimating import compiled
from etpc.estimating.chips import place

pytestmark = [pytest.mark.accelerators, pytest.mark.usefixtures("as_users_have_it")]
BOUNDS = Path(__file__).parent / "bounds.json"
SIZE, T, B = 128, 100, 32
RULES = {
    "D-RTRL": etpc.D_RTRL(),
    "each step": etpc.D_RTRL(window=1),
    "decay": etpc.ES_D_RTRL(decay=0.9),
}
CHIPS = {"v5e": "v5e:2x2", "h100": "h100"}
CASES = [
    (chip, cell, rule)
    for chip in CHIPS
    for cell, rule in (
        ("LIF", "D-RTRL"),
        ("LIF", "each step"),
        ("LIF", "decay"),
        ("ALIF", "each step"),
        ("GIF", "D-RTRL"),
        ("GIF", "each step"),
        ("GRU", "D-RTRL"),
        ("GRU", "each step"),
        ("LSTM", "decay"),
        ("LRU", "D-RTRL"),
    )
]


@functools.cache
def program(chip, cell, rule):
    model = cells.example(cell, SIZE, 2, 1).model
    x = jax.ShapeDtypeStruct((N_IN,), jnp.float32)
    return model, etpc.compile(
        model, RULES[rule], inputs=x, weights="all", target=place(CHIPS[chip]).chip.platform
    )


@functools.cache
def cost(chip, cell, rule):
    """That of a gradient from the carry of a stream, and of the carry with which the stream goes on."""
    with jax.enable_x64(False):
        model, of_rule = program(chip, cell, rule)
        arrays, static = eqx.partition(model, eqx.is_array)
        carry = jax.eval_shape(lambda: of_rule.init(B))
        gradient = of_rule.value_and_grad(accelerators.loss, "sum")
        xs = jax.ShapeDtypeStruct((T, B, N_IN), jnp.float32)
        targets = jax.ShapeDtypeStruct((T, B), jnp.int32)

        def run(arrays, carry, xs, targets):
            (_, carry), grads = gradient(eqx.combine(arrays, static), xs, targets, carry)
            return carry, grads

        function = compiled.compile_for(
            place(CHIPS[chip]), run, arrays, carry, xs, targets, donate_argnums=1
        )
        return compiled.cost(function)


def figures(case):
    """What is bounded: cycles or kernels of a step, and temporary bytes."""
    found = cost(*case)
    unit = {"cycles": found.cycles / T} if found.cycles else {"kernels": found.kernels / T}
    return {name: round(value, 1) for name, value in unit.items()} | {"temporary": found.temporary}


def copies_of_traces(case):
    """Each array of a trace may be copied once on the way in and once on the way out, and a step writes it once at
    most, moved and read in one loop over its entries."""
    arrays = [a.nbytes for carry in program(*case)[1].init(B).traces for a in carry]
    large, found = [size for size in arrays if size >= 1 << 19], cost(*case)
    assert large
    for size in set(large):
        assert found.copies[size] <= 2 * large.count(size)
        assert found.written[size] <= 1.2 * T * large.count(size)


def weights_in_fast_memory(case):
    model, _ = program(*case)
    weights = max(a.nbytes for a in jax.tree.leaves(eqx.filter(model, eqx.is_array)))
    assert cost(*case).fast >= weights / 2  # which may be in bfloat16 there


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_program_costs_no_more_than_it_did(case):
    """One test for each program, so that no two processes compile it."""
    chip, _, rule = case
    bounds = json.loads(BOUNDS.read_text())[" ".join(case)]
    assert not cost(*case).unknown
    for name, value in figures(case).items():
        assert value <= bounds[name], name
    if rule == "each step":
        copies_of_traces(case)
    if chip == "v5e":
        weights_in_fast_memory(case)


if __name__ == "__main__":
    found = {" ".join(case): figures(case) for case in CASES}
    bounds = {
        case: {
            name: math.ceil(1.02 * value) if value > 100 else value for name, value in of.items()
        }
        for case, of in found.items()
    }
    BOUNDS.write_text(json.dumps(bounds, indent=1) + "\n")
