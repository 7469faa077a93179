"""The window that is chosen: as long as what it keeps takes no more than the traces."""

import jax
import jax.numpy as jnp
import pytest

import etpc
from etpc import nn
from etpc.plan import AT_LEAST
from etpc.plan.passes.choose_window import AT_MOST, CACHED, SHORTEST, bytes_of_step
from tests.marks import first


def compiled(size, algo, target=None):
    cell = nn.MGU(4, size, key=jax.random.key(0))
    return etpc.compile(cell, algo, inputs=jnp.zeros(4), target=target)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "least", "most"), [(8, 16, 16), (512, 17, 63), (1024, 64, 64)])
def test_a_window_is_longer_for_larger_traces(size, least, most):
    plan = compiled(size, etpc.D_RTRL()).plan
    assert least <= plan.window <= most
    kept = bytes_of_step(plan.ir)
    traces = sum(p.trace_bytes for p in plan.ops)
    assert kept > 0
    if plan.window == AT_LEAST:
        assert not plan.ir.window.why
        assert traces < (AT_LEAST + 1) * kept
    else:
        assert "traces" in plan.ir.window.why
        assert plan.window * kept <= traces
        assert plan.window == AT_MOST or traces < (plan.window + 1) * kept


@pytest.mark.slow
@pytest.mark.parametrize(("size", "least", "most"), [(128, 16, 16), (256, 9, 15), (2048, 8, 8)])
def test_a_window_is_shorter_where_small_traces_meet_large_steps(size, least, most):
    plan = compiled(size, etpc.ES_D_RTRL(decay=0.9)).plan
    assert least <= plan.window <= most
    assert bool(plan.ir.window.why) == (plan.window < AT_LEAST)
    kept = bytes_of_step(plan.ir)
    assert plan.window == min(max(CACHED // kept, SHORTEST), AT_LEAST)
    assert compiled(size, etpc.ES_D_RTRL(decay=0.9), "tpu").plan.window == AT_LEAST


@pytest.mark.slow
def test_what_is_kept_bounds_what_is_allocated():
    """A window of any length allocates what one step does, and about so many bytes for each more step."""
    batch, loss = 2, lambda y, target: jnp.sum((y - target) ** 2)

    def temporary(window):
        program = compiled(64, etpc.D_RTRL(window=window))
        run = program.value_and_grad(loss)
        cell = nn.MGU(4, 64, key=jax.random.key(0))
        xs = jnp.zeros((4 * window, batch, 4)), jnp.zeros((4 * window, batch, 64))
        compiled_run = jax.jit(run).lower(cell, *xs, program.init(batch)).compile()
        kept = bytes_of_step(program.ir)
        return compiled_run.memory_analysis().temp_size_in_bytes, batch * kept

    (few, kept), (many, _) = temporary(32), temporary(64)
    assert 0 < many - few < 2 * 32 * kept


@pytest.mark.parametrize("algo", first([etpc.D_RTRL(backprop="full"), etpc.ES_D_RTRL(rank=4)]))
def test_a_window_that_changes_the_gradient_is_the_least(algo):
    assert compiled(1024, algo).plan.window == AT_LEAST


@pytest.mark.slow
def test_a_window_that_was_given_is_taken():
    assert compiled(1024, etpc.D_RTRL(window=3)).plan.window == 3
    assert "chosen" not in str(compiled(8, etpc.D_RTRL(window=3)))
    assert "(chosen: what its steps keep takes" in str(compiled(512, etpc.D_RTRL()))
