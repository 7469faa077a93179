"""A learner over eight simulated devices beside one device: the process of `test_mesh.py`, whose argument is a case."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import etpc
from etpc.estimating import compiled
from tests.collectives import collectives

T, I, N = 12, 8, 48
EVERY = 6


def gru():
    cell = eqx.nn.GRUCell(I, N, key=jax.random.key(0))

    def step(cell, x, h):
        h = cell(x, h)
        return h, h

    return cell, dict(state=jnp.zeros(N), step=step)


def layer():
    keys = jax.random.split(jax.random.key(0), 3)
    model = {
        "rec": 0.2 * jax.random.normal(keys[0], (N, N)),
        "win": jax.random.normal(keys[1], (I, N)),
        "tau": jnp.linspace(0.5, 0.9, N),
        "out": jax.random.normal(keys[2], (4, N)),
    }

    def step(m, x, h):
        h = jnp.tanh(m["tau"] * h + m["rec"] @ h + x @ m["win"])
        return m["out"] @ h, h

    return model, dict(state=jnp.zeros(N), step=step)


def spiking():
    keys = jax.random.split(jax.random.key(0), 2)
    first = eqx.nn.Linear(I, N, key=keys[0])
    first = eqx.tree_at(lambda m: m.weight, first, 3 * first.weight)
    last = eqx.nn.Linear(N, 4, key=keys[1])
    return etpc.nn.Sequential([first, etpc.nn.ALIF(N), last]), {}


def arrays(tree):
    return [np.asarray(a) for a in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def both(make, rule, shape, batch=16, over=None, nan=False, masked=False, begins=None, **options):
    """Two calls of `update` on one device and over a mesh: equal results. And the HLO, and what is after."""
    model, of = make()
    program = etpc.compile(model, rule, inputs=jnp.zeros(I), **of)

    def loss(y, target):
        return ((y - target) ** 2).sum(), y.sum()

    alone = etpc.online(program, loss, optax.adam(1e-2), EVERY, has_aux=True, **options)
    spread = alone.over(jax.make_mesh(tuple(shape.values()), tuple(shape)), **(over or {}))
    keys = jax.random.split(jax.random.key(1), 3)
    xs = jax.random.normal(keys[0], (2, T, batch, I))
    xs = xs.at[0, 3, 2].set(jnp.nan) if nan else xs
    outputs = jax.eval_shape(lambda: program.scan(model, xs[0], program.init(batch))[0]).shape[2:]
    targets = jax.random.normal(keys[1], (2, T, batch, *outputs))
    mask = jax.random.bernoulli(keys[2], 0.6, (T, batch)) if masked else None
    ends = None if begins is None else jax.random.bernoulli(keys[2], 0.3, (T // begins, batch))
    given = dict(mask=mask, begins=ends)
    one, many = ((model, *learner.init(model, batch)) for learner in (alone, spread))
    for n in range(2):
        one = alone.update(*one[:3], xs[n], targets[n], **given)
        if n == 1:
            text = spread.lower(*many[:3], xs[n], targets[n], **given).compile().as_text()
        many = spread.update(*many[:3], xs[n], targets[n], donate=n == 1, **given)
        rows = jax.tree.map(lambda a: a[:batch], many[2])
        ours, theirs = arrays((*one,)), arrays((*many[:2], rows, *many[3:]))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
    assert all(np.abs(a).max() > 0 for a in arrays(one[2].traces))
    assert any(
        np.abs(a - b).max() > 1e-3 for a, b in zip(arrays(model), arrays(many[0]), strict=True)
    )
    return model, many, text


def streams(make=gru, rule=None, scalars=1, **options):
    model, after, text = both(make, rule or etpc.D_RTRL(window=3), {"batch": 8}, **options)
    for array in jax.tree.leaves(after[2]):
        assert array.sharding.spec[0] == "batch"
    found = [size for kind, size in collectives(text) if kind == "all-reduce" and size > 100]
    gradient = sum(a.nbytes for a in arrays(model))
    assert found == [gradient + 8 * scalars], (found, gradient)  # one, in the loop over updates
    runs, size = compiled.read(text).collectives["all-reduce"]
    assert runs <= T // EVERY + 1
    assert size <= T // EVERY * found[0] + 100
    rest = [(kind, size) for kind, size in collectives(text) if kind != "all-reduce"]
    assert sum(size for _, size in rest) <= 16 * (8 * T + T // EVERY), (
        rest
    )  # of aux, where the batch was filled up


def units(make, rule, shape, most):
    axes = dict(streams="batch" if "batch" in shape else None, hidden="hidden")
    _, after, text = both(make, rule, shape, over=axes)
    traces = [a for a in jax.tree.leaves(after[2].traces) if a.size > 16 * N * I]
    weights = [a for a in jax.tree.leaves(eqx.filter(after[0], eqx.is_array)) if a.ndim == 2]
    for array in (*traces, *weights):
        assert "hidden" in array.sharding.spec, array.sharding
    whole = max(a.addressable_shards[0].data.nbytes for a in traces) if traces else np.inf
    largest = max(size for _, size in collectives(text))
    assert largest <= most * 16 * N * 8, largest
    assert largest < whole, (largest, whole)


def many(batch=10_000, broken=617):
    """Ten thousand streams on one set of weights, with one that is NaN, and the same without it."""
    cell = eqx.nn.GRUCell(2, 3, key=jax.random.key(0))
    step = lambda cell, x, h: (cell(x, h),) * 2
    program = etpc.compile(cell, inputs=jnp.zeros(2), state=jnp.zeros(3), step=step)
    loss = lambda y, target: jnp.sum((y - target) ** 2)
    alone = etpc.online(program, loss, optax.adam(1e-2), 2, skip_nonfinite=True)
    spread = alone.over(jax.make_mesh((8,), ("batch",)))
    xs = np.random.default_rng(0).normal(size=(4, batch, 2))
    mask = np.ones((4, batch), bool)
    xs[0, broken], mask[:, broken] = np.nan, False
    targets = np.tanh(xs[..., :1] * np.ones(3))
    found = spread.update(cell, *spread.init(cell, batch), xs, np.nan_to_num(targets))
    left_out = np.argwhere(found[-1])
    assert left_out.tolist() == [[0, broken]], left_out
    # In the second update it is there again, from a fresh state.
    xs[0, broken], mask[2:, broken] = 0, True
    begins = np.zeros((2, batch), bool)
    begins[1, broken] = True
    start = alone.init(cell, batch)
    wanted = alone.update(cell, *start, xs, np.nan_to_num(targets), mask=mask, begins=begins)
    for a, b in zip(arrays((*found[:2], found[3])), arrays((*wanted[:2], wanted[3])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
    for a, b in zip(arrays(found[2]), arrays(wanted[2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


CASES = {
    "ten thousand": many,
    "streams": lambda: streams(),
    "filled up": lambda: streams(batch=13, scalars=3, masked=True, begins=1),
    "filled up, sum": lambda: streams(
        batch=13, scalars=2, reduction="sum", rule=etpc.ES_D_RTRL(decay=0.9), begins=EVERY
    ),
    "left out": lambda: streams(batch=9, scalars=3, nan=True, skip_nonfinite=True),
    "units": lambda: units(layer, etpc.D_RTRL(window=2), {"hidden": 8}, 4),
    "units, decay": lambda: units(layer, etpc.ES_D_RTRL(decay=0.9, window=2), {"hidden": 8}, 4),
    "units, gates": lambda: units(gru, etpc.D_RTRL(window=2), {"hidden": 8}, 6),
    "units, spikes": lambda: units(spiking, etpc.D_RTRL(window=2), {"hidden": 8}, 6),
    "both, one row": lambda: units(layer, etpc.D_RTRL(window=2), {"batch": 1, "hidden": 8}, 4),
    "both": lambda: units(layer, etpc.D_RTRL(window=2), {"batch": 2, "hidden": 4}, 4),
}

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert jax.device_count() == 8
    CASES[sys.argv[1]]()
    print("the same on eight devices")
