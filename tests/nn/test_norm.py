"""Norms of Equinox between weights and states."""

import equinox as eqx
import pytest

from etpc import nn
from tests.nn.online import KEY, Leaky, exact, normal, shuffled, verify

NORMS = [(eqx.nn.LayerNorm, 4), (eqx.nn.RMSNorm, 4), (eqx.nn.GroupNorm, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "block"), NORMS)
def test_d_rtrl_is_exact_in_front_of_a_state(kind, block) -> None:
    norm = shuffled(kind(2, 4) if kind is eqx.nn.GroupNorm else kind(4))
    model = nn.Sequential([eqx.nn.Linear(3, 4, key=KEY), norm, Leaky((4,))])
    report = verify(model, normal(9, 3))
    assert len(exact(report)) == len(report.rows) == 4
    blocks = {op.path: op.block for op in report.program.ops}
    assert blocks[".layers[0].weight"] == block
    assert blocks[".layers[1].weight"] == 1
