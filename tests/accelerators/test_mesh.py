"""What moves between 16 and 256 TPUs that are not there, as their compiler says: gradients, or what units read of each
other, and no trace."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
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


def gated(n):
    """A GRU of n units, with a layer for each gate."""
    linear = functools.partial(eqx.nn.Linear, out_features=n, key=jax.random.key(0))
    new = lambda: [(linear(I), linear(n, use_bias=False)) for _ in range(3)]

    def step(gates, x, h):
        (r, z, new), (r_h, z_h, new_h) = zip(*gates, strict=True)
        opened = jax.nn.sigmoid(r(x) + r_h(h))
        kept = jax.nn.sigmoid(z(x) + z_h(h))
        fresh = jnp.tanh(new(x) + opened * new_h(h))
        h = fresh + kept * (h - fresh)
        return h, h

    return eqx.filter_eval_shape(new), step, jnp.zeros(n)


def over(topology, shape, n, batch, layer=scale.lif):
    """An update of a layer, compiled for a mesh of chips."""
    rule = etpc.D_RTRL(window=W)
    lowered, model, carry = scale.lowered(topology, shape, n, batch, rule, T, EVERY, layer)
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


@pytest.mark.parametrize(
    ("topology", "layer", "most"),
    [("v5e:4x4", scale.lif, 5.3e6), ("v5e:4x4", gated, 10.6e6), ("v5e:16x16", scale.lif, 35e6)],
)
def test_no_trace_of_units_moves(topology, layer, most):
    """What units read of each other is gathered at each step, and nothing for the gates of a unit; on 256 chips the
    values of a window are gathered too."""
    n, batch = 4096, 32
    found = over(topology, {"hidden": CHIPS[topology]}, n, batch, layer)
    operations, moved = (sum(each) for each in zip(*found.collectives.values(), strict=True))
    assert found.largest <= 4 * W * batch * n
    assert found.largest < found.trace
    assert operations <= T + 2 * T // EVERY
    assert moved <= most


def test_units_that_read_each_other_wait_for_no_ring_of_products():
    """16,384 of them on 16 chips: what is gathered is small beside what a ring of partial products would store."""
    found = scale.update("hidden", 16, scale.UNITS, scale.BATCH)
    assert "collective-permute" not in found.collectives
    assert found.temporary <= 70 << 20


@pytest.mark.parametrize(("topology", "most"), [("v5e:4x4", 15e6), ("v5e:16x16", 15e6)])
def test_no_trace_moves_over_both(topology, most):
    chips = CHIPS[topology]
    found = over(topology, {"streams": chips // 4, "hidden": 4}, 2048, 8 * chips)
    assert found.largest == found.gradient / 4
    assert found.largest < found.trace
    assert sum(size for _, size in found.collectives.values()) <= most
