"""What moves between 16 and 256 TPUs that are not there, as their compiler says: gradients, or what units read of each
other, and no trace."""

import dataclasses

import jax
import pytest

import etpc
from benchmarks import scale
from etpc.estimating import compiled
from tests.collectives import collectives

pytestmark = [pytest.mark.accelerators, pytest.mark.usefixtures("as_users_have_it")]
I, W, EVERY, T = scale.INPUTS, 10, 20, 40
CHIPS = {"v5e:4x4": 16, "v5e:16x16": 256}


@dataclasses.dataclass
class Found:
    gradient: int
    """Bytes of the gradient."""
    trace: int
    """Bytes of the largest trace on one chip."""
    largest: int
    """Bytes of the largest array that a collective operation gives."""
    collectives: dict
    """By kind, how many run in a call, and the bytes of their results."""


def over(topology, shape, n, batch):
    """An update of LIF neurons that read each other, compiled for a mesh of chips."""
    rule = etpc.D_RTRL(window=W)
    lowered, model, carry = scale.lowered(topology, shape, n, batch, rule, T, EVERY)
    text = lowered.compile().as_text()
    sizes = [size for _, size in collectives(text)]
    trace = max(4 * a.size for a in jax.tree.leaves(carry.traces))
    gradient = sum(4 * a.size for a in jax.tree.leaves(model) if hasattr(a, "size"))
    found = compiled.read(text)
    assert not found.unknown
    return Found(gradient, trace // CHIPS[topology], max(sizes), found.collectives)


@pytest.mark.parametrize("topology", CHIPS)
def test_streams_add_up_one_gradient_an_update(topology):
    """And the losses of the call after its last update."""
    found = over(topology, {"streams": CHIPS[topology]}, 512, 8 * CHIPS[topology])
    assert {*found.collectives} == {"all-reduce"}
    runs, size = found.collectives["all-reduce"]
    updates = T // EVERY
    assert found.largest == found.gradient
    assert updates <= runs <= updates + 1
    assert size <= updates * (found.gradient + 4)


@pytest.mark.parametrize(("topology", "most"), [("v5e:4x4", 15e6), ("v5e:16x16", 34e6)])
def test_no_trace_of_units_moves(topology, most):
    """The largest array is what all units read in the steps of a window."""
    n, batch = 4096, 32
    found = over(topology, {"hidden": CHIPS[topology]}, n, batch)
    assert found.largest <= 1.04 * 4 * W * batch * (n + I)
    assert found.largest < found.trace
    assert sum(size for _, size in found.collectives.values()) <= most


@pytest.mark.parametrize(("topology", "most"), [("v5e:4x4", 23e6), ("v5e:16x16", 23e6)])
def test_no_trace_moves_over_both(topology, most):
    chips = CHIPS[topology]
    found = over(topology, {"streams": chips // 4, "hidden": 4}, 2048, 8 * chips)
    assert found.largest == found.gradient / 4
    assert found.largest < found.trace
    assert sum(size for _, size in found.collectives.values()) <= most
