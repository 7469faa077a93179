"""What moves between 16 and 256 TPUs that are not there, as their compiler says: gradients, or what units read of each
other, and no trace."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc import nn
from etpc.estimating import compiled, hlo
from etpc.estimating.chips import place

pytestmark = [pytest.mark.accelerators, pytest.mark.usefixtures("as_users_have_it")]
I, W, EVERY, T = 128, 10, 20, 40
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
    lif = nn.LIF(n)
    model = eqx.filter_eval_shape(lambda: eqx.nn.Linear(I + n, n, key=jax.random.key(0)))

    def step(linear, x, V):
        return lif(linear(jnp.concatenate([x, lif.spike(V)])), V)

    program = etpc.compile(
        model,
        etpc.D_RTRL(window=W),
        inputs=jnp.zeros(I),
        state=lif.init_state(),
        step=step,
        target="tpu",
        memory=2**60,
    )
    alone = etpc.online(program, lambda y, t: jnp.mean((y - t) ** 2), optax.adam(1e-3), EVERY)
    opt_state, carry = eqx.filter_eval_shape(alone.init, model, batch)
    devices = np.array(place(topology).devices).reshape([*shape.values()])
    axes = {name: name if name in shape else None for name in ("streams", "hidden")}
    spread = alone.over(jax.sharding.Mesh(devices, [*shape]), **axes)
    xs, targets = (jax.ShapeDtypeStruct((T, batch, k), jnp.float32) for k in (I, n))
    lowered = spread.lower(model, opt_state, carry, xs, targets, donate=True)
    text = lowered.compile().as_text()
    kinds = "|".join(compiled.COLLECTIVES)
    sizes = [
        hlo.bytes_of(types) for types, _ in re.findall(rf"= (\S.*?) ({kinds})(?:-start)?\(", text)
    ]
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
