"""Helpers for steps with an axis too many or a key, and the names of `etpc.interop`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import interop
from tests.zoo.check import normal

w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
xs = normal(3)


def plain(w, x, h):
    h = jnp.tanh(0.9 * h + x @ w)
    return 2 * h, h


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
def test_batched(axis):
    def call(w, xs, hs):
        return jax.vmap(plain, (None, axis, axis), (axis, axis))(w, xs, hs)

    check(interop.batched(call, axis))


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
def test_stepwise(axis):
    def call(w, xs, h):
        def body(h, x):
            y, h = plain(w, x, h)
            return h, y

        h, ys = jax.lax.scan(body, h, jnp.moveaxis(xs, axis, 0))
        return jnp.moveaxis(ys, 0, axis), h

    check(interop.stepwise(call, axis))


def check(step):
    loss = lambda y, t: jnp.sum((y - t) ** 2)
    found = {}
    for name, one in (("plain", plain), ("other", step)):
        options = {"state": jnp.zeros(2), "step": one}
        program = etpc.compile(w, etpc.D_RTRL(window=2), inputs=xs[0], weights="all", **options)
        found[name] = program.value_and_grad(loss)(w, xs, jnp.ones(len(xs)), program.init())[1]
    np.testing.assert_allclose(found["plain"], found["other"], rtol=1e-12)
    assert np.abs(found["plain"]).max() > 0.1


def test_keyed():
    def call(w, x, h, key):
        h = 0.9 * h + x @ w + jax.random.normal(key, h.shape)
        return h, h

    step = interop.keyed(call)
    state = (jnp.zeros(2), jax.random.key(0))
    program = etpc.compile(w, inputs=xs[0], state=state, step=step, weights="all")
    y, carry = program(w, jnp.zeros((4, 3)), program.init(4))
    z, _ = program(w, jnp.zeros((4, 3)), carry)
    noise = np.concatenate([y, z - 0.9 * y])
    assert len(np.unique(noise.round(9))) == noise.size  # others in each step and example


def test_names():
    assert {"from_brainstate", "from_nir", "batched"} <= {*dir(interop)}
    with pytest.raises(AttributeError, match="no attribute 'from_torch'"):
        _ = interop.from_torch  # pyright: ignore[reportAttributeAccessIssue]


def test_named_values():
    tree = interop.Named.of({("layers", 0, "w"): 1.0, ("layers", 1, "w"): 2.0, ("a b",): 3.0})
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    assert [(jax.tree_util.keystr(p), v) for p, v in leaves] == [
        (".layers[0].w", 1.0),
        (".layers[1].w", 2.0),
        ("['a b']", 3.0),
    ]
    assert tree.layers[1].w == 2.0
    with pytest.raises(AttributeError, match="no 'w' here, but: layers, a b"):
        _ = tree.w
    assert (
        repr(jax.tree.map(lambda a: 2 * a, tree))
        == "Named(layers=Named(0=Named(w=2.0), 1=Named(w=4.0)), a b=6.0)"
    )
