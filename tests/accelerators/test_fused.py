"""The kernel that moves and reads a trace, as it is compiled for two TPUs."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etpc
from benchmarks import accelerators, cells
from benchmarks.network import N_IN
from etpc.estimating import compiled
from etpc.estimating.chips import place
from etpc.kernels import FUSED
from etpc.plan import DEFAULT

pytestmark = [pytest.mark.accelerators, pytest.mark.usefixtures("as_users_have_it")]
SIZE, T, B = 512, 20, 32


@functools.cache
def compiled_for(chip, cell, *passes):
    """The text of a program and its traces' bytes, with the passes beside those that leave a trace in the order of its
    weight."""
    model = cells.example(cell, SIZE, 2, 1).model
    arrays, static = eqx.partition(model, eqx.is_array)
    shape = lambda *axes, dtype=jnp.float32: jax.ShapeDtypeStruct(axes, dtype)
    program = etpc.compile(
        *(model, etpc.D_RTRL(window=1)),
        inputs=shape(N_IN),
        weights="all",
        target="tpu",
        passes=(*(p for p in DEFAULT if p.name != "outputs_last"), *passes),
    )
    run = program.value_and_grad(accelerators.loss, "sum")
    grads = lambda arrays, xs, ts: run(eqx.combine(arrays, static), xs, ts, program.init(B))[1]
    data = shape(T, B, N_IN), shape(T, B, dtype=jnp.int32)
    result = compiled.compile_for(place(chip), grads, arrays, *data)
    kernels = sum("fused" in of for of in program.passes.fired)
    return compiled.cost(result), result.as_text().count("tpu_custom_call"), kernels


@pytest.mark.parametrize("chip", ["v5e:2x2", "v6e:2x2"])
def test_a_trace_is_read_and_written_by_the_kernel_alone(chip):
    """XLA has no cost of a kernel, so that what is left are the cycles of all else."""
    cost, calls, fired = compiled_for(chip, "LIF", FUSED)
    plain, *none = compiled_for(chip, "LIF")
    assert (calls >= 2, fired) == (True, 1)
    assert none == [0, 0]
    assert cost.cycles < 0.5 * plain.cycles
    assert cost.temporary <= 1.1 * plain.temporary + (1 << 20)
    large = 4 * B * SIZE * N_IN
    assert sum(times for size, times in cost.copies.items() if size >= large) < T
