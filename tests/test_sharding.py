"""A batch, or connections, spread over eight devices: the same gradients, and no trace is gathered.

In a process of its own, because the number of devices is fixed when JAX starts.
"""

import os

import pytest

from tests.helpers import in_a_process

pytestmark = pytest.mark.slow

HEAD = """
import contextlib
import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import etpc

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 8
"""
END = 'print("the same on eight devices")\n'
BATCH = """
explicit = "explicit" in sys.argv
target = etpc.Target("cpu", 8, cache=1 << 10) if "pieces" in sys.argv else None
axis_type = AxisType.Explicit if explicit else AxisType.Auto
few = jax.devices()[: 4 if "few" in sys.argv else 8]
mesh = jax.make_mesh((len(few),), ("batch",), axis_types=(axis_type,), devices=few)
on = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
keys = jax.random.split(jax.random.key(0), 4)
model = {
    "rec": 0.2 * jax.random.normal(keys[0], (20, 20)),
    "win": jax.random.normal(keys[1], (20, 5)),
    "tau": jnp.linspace(0.5, 0.9, 20),
    "gain": jnp.array([0.7, 1.3]),
}
xs, targets = jax.random.normal(keys[2], (6, 16, 5)), jnp.zeros((6, 16))


def step(m, x, h):
    fed = m["gain"][:, None] * (m["win"] @ x).reshape(2, 10)  # ten units share a gain
    h = jnp.tanh(m["tau"] * h + m["rec"] @ h + fed.reshape(20))
    return h, h


whole = [etpc.D_RTRL(window=2), etpc.D_RTRL(window=3, backprop="full")]
others = [etpc.ES_D_RTRL(decay=0.9, window=2), etpc.ES_D_RTRL(rank=2, window=2), etpc.SnAp(1, window=1)]
others += [etpc.CreditRTRL(2, 2, window=2), etpc.D_RTRL(window=2, backprop="full", lookback=4)]
for algo in whole if "pieces" in sys.argv else whole + others:
    program = etpc.compile(model, algo, inputs=xs[0, 0], state=jnp.zeros(20), step=step, target=target)
    run = program.value_and_grad(lambda y, t: ((y - t) ** 2).sum(), "sum")
    fresh = program.init(16)
    (alone, after), grads_alone = run(model, xs, targets, fresh)
    (_, _), later_alone = run(model, xs, targets, after)
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        arguments = (
            jax.device_put(model, on()),
            jax.device_put(xs, on(None, "batch")),
            jax.device_put(targets, on(None, "batch")),
        )
        shared, each = jax.device_put(fresh.shared, on()), dataclasses.replace(fresh, shared=())
        start = dataclasses.replace(jax.device_put(each, on("batch")), shared=shared)
        spread = jax.jit(run).lower(*arguments, start).compile()
        (loss, carry), grads = spread(*arguments, start)
        np.testing.assert_allclose(alone, np.asarray(loss), rtol=1e-9)
        _, later = spread(*arguments, carry)  # which takes its own carry, not another sharding
        compiled = spread.as_text()
    for one, other in zip(
        jax.tree.leaves((grads_alone, later_alone)), jax.tree.leaves((grads, later)), strict=True
    ):
        np.testing.assert_allclose(one, np.asarray(other), rtol=1e-9)
        assert other.sharding.is_fully_replicated
    assert len(jax.tree.leaves(carry.traces)) >= 3
    start, carry = (dataclasses.replace(c, shared=()) for c in (start, carry))
    for old, new in zip(jax.tree.leaves(start), jax.tree.leaves(carry), strict=True):
        assert new.sharding.is_equivalent_to(on("batch"), new.ndim), algo
        assert old.sharding.is_equivalent_to(new.sharding, new.ndim), algo
    moves = re.findall("all-gather|all-to-all|collective-permute|all-reduce", compiled)
    assert set(moves) == {"all-reduce"}, (algo, set(moves))
"""


CONNECTIONS = """
mesh = Mesh(np.array(jax.devices()), ("connection",))
rng = np.random.default_rng(0)
N, U = 12, 64
indices = np.stack(np.divmod(np.sort(rng.choice(N * N, U, replace=False)), N), 1)
model = sparse.BCOO((jnp.asarray(0.3 * rng.normal(size=U)), jnp.asarray(indices)), shape=(N, N))
xs, targets = jnp.asarray(rng.normal(size=(6, 2, N))), jnp.zeros((6, 2, N))


def spread(a):
    axes = ["connection" if size == U else None for size in a.shape]
    return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))


def step(m, x, h):
    h = 0.5 * h + jnp.tanh(m @ h + x)
    return h, h


program = etpc.compile(
    model, etpc.D_RTRL(window=2), inputs=xs[0, 0], state=jnp.zeros(N), step=step
)
run = program.value_and_grad(lambda y, t: ((y - t) ** 2).sum(), "sum")
_, alone = run(model, xs, targets, program.init(2))
arguments = (jax.tree.map(spread, (model, xs, targets, program.init(2))))
(_, carry), grads = run(*arguments)
np.testing.assert_allclose(alone.data, grads.data, rtol=1e-9)
assert np.abs(grads.data).min() > 0
((trace,),) = carry.traces
for array in (trace, grads.data):
    assert array.sharding.is_equivalent_to(spread(array).sharding, array.ndim)
step_by_step = jax.jit(lambda data, *rest: run(sparse.BCOO((data, model.indices), shape=(N, N)), *rest))
compiled = step_by_step.lower(arguments[0].data, *arguments[1:]).compile().as_text()
moves = re.findall("(all-gather|all-to-all|collective-permute|all-reduce).*", compiled)
assert set(moves) == {"all-reduce"}, moves
"""


NEURONS = """
target = etpc.Target("cpu", 8, cache=1 << 10)
mesh = jax.make_mesh((8,), ("neuron",), axis_types=(AxisType.Auto,))
T, B, I, N = 6, 3, 20, 48
keys = jax.random.split(jax.random.key(0), 3)
model = {
    "rec": 0.3 * jax.random.normal(keys[0], (N, N)),
    "win": jax.random.normal(keys[1], (N, I)),
    "tau": jnp.linspace(0.5, 0.9, N),
}
xs, targets = jax.random.normal(keys[2], (T, B, I)), jnp.zeros((T, B, N))


def by_neuron(array, axis):
    axes = ["neuron" if n == axis % array.ndim else None for n in range(array.ndim)]
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))


def step(m, x, h):
    h = m["tau"] * h + jnp.tanh(m["rec"] @ h + m["win"] @ x)
    return h, h


for algo in etpc.D_RTRL(window=2), etpc.ES_D_RTRL(decay=0.9, window=2):
    program = etpc.compile(model, algo, inputs=xs[0, 0], state=jnp.zeros(N), step=step, target=target)
    run = program.value_and_grad(lambda y, t: ((y - t) ** 2).sum(), "sum")
    fresh = program.init(B)
    _, alone = run(model, xs, targets, fresh)
    weights = jax.tree.map(lambda a: by_neuron(a, 0), model)
    start = jax.tree.map(
        lambda a: by_neuron(a, 1) if a.ndim > 1 and a.shape[1] == N else a, fresh
    )
    everywhere = jax.device_put(xs, NamedSharding(mesh, PartitionSpec()))
    arguments = weights, everywhere, by_neuron(targets, 2), start
    spread = jax.jit(run, out_shardings=(None, jax.tree.map(lambda a: a.sharding, weights)))
    spread = spread.lower(*arguments).compile()
    (_, carry), grads = spread(*arguments)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    for old, new in zip(jax.tree.leaves(start.traces), jax.tree.leaves(carry.traces), strict=True):
        if old.ndim > 2 and old.shape[1] == N:
            assert new.sharding.is_equivalent_to(old.sharding, new.ndim), (algo, new.sharding)
    compiled = spread.as_text()
    found = re.findall(r"= \\w+\\[([\\d,]*)\\]\\S* (all-gather|all-to-all|collective-permute)\\(", compiled)
    sizes = {tuple(map(int, shape.split(","))) for shape, _ in found}
    # Under a decay the data of both products are side by side: neighbours hand on what the split of 68 numbers moves.
    few = set() if algo == etpc.D_RTRL(window=2) else {"collective-permute"}
    assert {kind for _, kind in found} == {"all-gather", *few}
    # What neurons read and hear of, in a window and before; a device's part of the trace is larger.
    assert max(map(np.prod, sizes)) <= 3 * B * N < B * N * N // 8, sizes
"""


UPDATES = """
import equinox as eqx
import optax

mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
B, I, N = 16, 20, 40
cell = eqx.nn.GRUCell(I, N, key=jax.random.key(0))


def step(cell, x, h):
    h = cell(x, h)
    return h, h


def placed(tree, *axes):
    on = NamedSharding(mesh, PartitionSpec(*axes))
    place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on)
    return jax.tree.map(lambda a: place(a) if hasattr(a, "shape") else a, tree)


def reduced(text):
    # The bytes of the results of each all-reduce operation.
    sizes = {"f64": 8, "f32": 4, "pred": 1, "s32": 4}
    for results in re.findall(r"= (.*?) all-reduce(?:-start)?\\(", text):
        shapes = re.findall(r"(\\w+)\\[([\\d,]*)\\]", results)
        yield sum(sizes[t] * int(np.prod([int(n) for n in s.split(",") if n])) for t, s in shapes)


for rule, most in ((etpc.D_RTRL(window=5), 2.1), (etpc.ES_D_RTRL(decay=0.9, window=5), 1.1)):
    program = etpc.compile(cell, rule, inputs=jnp.zeros(I), state=jnp.zeros(N), step=step)
    learner = etpc.online(program, lambda y, t: ((y - t) ** 2).sum(), optax.adam(1e-3), every=10)
    opt_state, carry = eqx.filter_eval_shape(learner.init, cell, B)
    data = [jax.ShapeDtypeStruct((20, B, n), float) for n in (I, N)]
    start = placed(cell), placed(opt_state), placed(carry, "batch")
    lowered = learner.lower(*start, *placed(data, None, "batch"), donate=True)
    text = lowered.compile().as_text()
    assert not re.findall("all-gather|all-to-all|collective-permute", text)
    sizes = [*reduced(text)]
    weights = sum(a.nbytes for a in jax.tree.leaves(eqx.filter(cell, eqx.is_array)))
    assert 0.9 < sum(sizes) / weights < most, (rule, sizes, weights)  # in the loop over windows
"""


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (BATCH, []),
        (BATCH, ["explicit"]),
        (BATCH, ["pieces"]),
        (BATCH, ["pieces", "explicit"]),
        (BATCH, ["pieces", "explicit", "few"]),
        (CONNECTIONS, []),
        (NEURONS, []),
        (UPDATES, []),
    ],
    ids=[
        "batch",
        "explicit",
        "pieces",
        "explicit pieces",
        "few",
        "connections",
        "neurons",
        "updates",
    ],
)
def test_spread_over_devices(program, options):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    said = in_a_process("-c", HEAD + program + END, *options, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
    assert said == "the same on eight devices"
