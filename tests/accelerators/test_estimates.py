"""Estimates for chips that are not there, by their compilers."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import etpc
from etpc.estimating import chips, compiled
from etpc.estimating.results import size_text
from tests.helpers import ROOT

pytestmark = [pytest.mark.accelerators, pytest.mark.usefixtures("as_users_have_it")]
N, I, T, B = 128, 16, 40, 32
W = {
    "rec": jax.ShapeDtypeStruct((N, N), jnp.float32),
    "win": jax.ShapeDtypeStruct((N, I), jnp.float32),
}
WEIGHTS = 4 * N * (N + I)


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def step(w, x, h):
    h = jnp.tanh(0.9 * h + w["rec"] @ h + w["win"] @ x)  # each unit has a transition of its own
    return h, h


def estimate(on, rules="d_rtrl", model=W, units=N, **options):
    called = dict(inputs=shape(I), state=jnp.zeros(units), step=step)
    usual = dict(steps=T, batch_size=B, optimiser=optax.adam(1e-3))
    return etpc.estimate(model, rules, on=on, **called | usual | options)


@pytest.mark.parametrize("name", [n for n, chip in chips.CHIPS.items() if chip.platform == "tpu"])
def test_the_memory_of_a_tpu_is_what_xla_says(name):
    place = chips.place(name)
    assert place.devices[0].device_kind == place.chip.kind
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as error:
        compiled.compile_for(place, lambda x: jnp.cumsum(x * 2, 0) @ x.T, shape(1 << 18, 1 << 9))
    said = re.search(r"HBM \(([\d.]+)G\)|of ([\d.]+)G hbm", str(error.value))
    assert float(said[1] or said[2]) == round(place.chip.memory / 2**30, 2)


def test_what_xla_refuses_is_a_row_with_its_bytes():
    found = estimate("v5e", [], batch_size=1024, steps=100_000)
    (row,) = found.rows
    assert not row.fits
    assert row.over == row.peak - found.memory > 0
    assert row.refusal.startswith("Ran out of memory")
    assert row.temporary is None
    assert f"NO, {size_text(row.over)} over" in str(found)
    assert "take less" in row.limits


def test_the_largest_batch_that_fits_is_less_where_there_are_traces():
    bptt, rule = estimate("v5e", etpc.D_RTRL(window=1), steps=10, every=1, largest_batch=True).rows
    for row in (bptt, rule):
        fits, does_not = row.largest
        assert B < fits < does_not <= 1.05 * fits
    assert rule.largest[0] < bptt.largest[0]


@pytest.mark.parametrize(("on", "count"), [("v5e:2x2", 4), ("h100:2", 2)])
@pytest.mark.parametrize("every", [T, 10])
def test_one_all_reduce_an_update_of_exactly_the_bytes_of_the_gradient(on, count, every):
    found = estimate(on, mesh={"batch": count}, every=every)
    for row in found.rows:
        assert dict(row.collectives) == {"all-reduce": (1.0, WEIGHTS)}
        assert row.weights == WEIGHTS
        assert row.moments == 2 * WEIGHTS + 4
        assert not row.unknown_loops
    alone = estimate(on, every=every).rows
    assert not any(row.collectives for row in alone)
    assert found.rows[1].traces == alone[1].traces // count


@pytest.mark.parametrize("chip", ["v5e", "v6e", "v5p", "tpu7x", "h100", "a100"])
def test_every_chip_compiles(chip):
    found = estimate(chip)
    bptt, rule = found.rows
    assert bptt.fits
    assert rule.fits
    is_tpu = chips.CHIPS[chip].platform == "tpu"
    for row in found.rows:
        assert bool(row.cycles) == bool(row.to_bptt) == is_tpu
        assert bool(row.kernels) == (not is_tpu)
    assert ("cycles/step" in str(found), "kernels/step" in str(found)) == (is_tpu, not is_tpu)
    compiler = "libtpu" if is_tpu else "jax-cuda12-plugin"
    assert f"{compiler} {found.versions[compiler]}" in str(found)
    assert found.chip in str(found)


def recurrent(unroll, steps):
    def run(h, w):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, length=steps, unroll=unroll)[0]

    return run


def nested(unroll, steps):
    def run(h, w):
        inner = lambda h, _: (recurrent(unroll, 4)(h, w), None)
        return jax.lax.scan(inner, h, length=steps // 4, unroll=unroll)[0]

    return run


def cycles(function, size=4096):
    program = compiled.compile_for(
        chips.place("v5e"), function, shape(size // 2, size), shape(size, size)
    )
    found = compiled.cost(program)
    assert not found.unknown
    return found.cycles


@pytest.mark.parametrize("loop", [recurrent, nested])
def test_cycles_times_trips_are_those_of_the_program_without_loops(loop):
    """Where a step is long, so that what a loop does besides, and what XLA does across steps, are small."""
    in_loop = [cycles(loop(1, steps)) for steps in (8, 16)]
    written_out = [cycles(loop(True, steps)) for steps in (8, 16)]
    assert in_loop[1] == pytest.approx(written_out[1], rel=0.1)
    more = in_loop[1] - in_loop[0]
    assert more == pytest.approx(written_out[1] - written_out[0], rel=0.1)


def test_a_topology_that_there_is_not_has_those_that_there_are():
    with pytest.raises(etpc.InputError, match=r"not divisible.*Known are v5e:1x1, v5e:2x2"):
        chips.place("v5e:3x3")
    with pytest.raises(etpc.InputError, match="Known are h100:1"):
        chips.place("h100:many")
    for chip in chips.CHIPS.values():
        for layout in chip.layouts:
            assert chips.place(f"{chip.name}:{layout}").devices


HOLD = """
import sys
from jax.experimental.topologies import get_topology_desc
get_topology_desc(platform="tpu", topology_name="v5e:2x2")
print("held", flush=True)
sys.stdin.read()
"""
ASK = "from etpc.estimating.chips import place; print(len(place('v5e:2x2').devices))"


def test_a_process_that_holds_libtpu_is_named():
    environment = {**os.environ, **chips.LIBTPU, "PYTHONPATH": str(ROOT)}
    alone = environment | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "0"}
    run = dict(text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", HOLD], env=alone, **run) as holder:
        if holder.stdout.readline() != "held\n":
            pytest.skip("another process of this machine has libtpu")
        ask = lambda env: subprocess.run(
            [sys.executable, "-c", ASK], env=env, capture_output=True, text=True
        )
        assert "unset ALLOW_MULTIPLE_LIBTPU_LOAD or set it to 1" in ask(alone).stderr
        assert ask(environment).stdout == "4\n"
        holder.communicate("")
