"""Every rule lowers for accelerators, also where there is none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etpc
from etpc import nn, tuning

RULES = [
    etpc.D_RTRL(window=2),
    etpc.D_RTRL(window=2, backprop="full"),
    etpc.ES_D_RTRL(decay=0.9, window=2),
    etpc.ES_D_RTRL(rank=2, window=2),
    etpc.CreditRTRL(2, 2, window=2),
    etpc.D_RTRL(window=2, lookback=4),
    etpc.SnAp(1, window=1),
    etpc.RTRL(window=2),
]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_program_lowers_for_an_accelerator(rule, platform, monkeypatch):
    """XLA does not compile it here: what is shown is that no operation is asked for that the platform lacks."""
    monkeypatch.setattr(tuning, "CPU", tuning.ACCELERATOR)
    cell = nn.Sequential([eqx.nn.LSTMCell(2, 3, key=jax.random.key(0))])
    program = etpc.compile(cell, rule, inputs=jnp.zeros(2))
    run = program.value_and_grad(lambda y, target: jnp.sum((y - target) ** 2))
    carry = program.init(4)
    xs, targets = jnp.zeros((5, 4, 2)), jnp.zeros((5, 4, 3))
    exported = jax.export.export(jax.jit(run), platforms=(platform,))(cell, xs, targets, carry)
    assert exported.platforms == (platform,)
    assert len(exported.out_avals) == len(
        jax.tree.leaves(jax.eval_shape(run, cell, xs, targets, carry))
    )
