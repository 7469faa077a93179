"""What the tests of layers share: each layer by its name, and small networks against backpropagation through time."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etpc
from etpc import nn
from etpc.checking.compare import Report

KEY = jax.random.key(0)
N = 4
SIZES = ("size", "input_size", "hidden_size", "in_features", "out_features", "state_size", "rank")
VALID = dict.fromkeys(SIZES, N) | dict(excitatory=2, delays=2, steps=np.arange(1, N + 1), key=KEY)
VALID |= dict(connections=(np.array([0, 1, 2, 3]), np.array([1, 0, 2, 3])))
"""What layers need, by the name of the argument."""
KINDS = {
    name: kind
    for name in nn.__all__
    if inspect.isclass(kind := getattr(nn, name)) and issubclass(kind, eqx.Module)
}


def made(kind, **changes):
    """A layer of some kind: what it needs is `VALID`, but for what is changed."""
    needed = {name: VALID[name] for name in inspect.signature(kind).parameters if name in VALID}
    return kind(**needed | changes)


def run(layer, xs):
    """The outputs and the states of a sequence."""

    def step(state, x):
        y, state = layer(x, state)
        return state, (y, state)

    _, found = jax.lax.scan(step, layer.init_state(), jnp.asarray(xs))
    return jax.tree.map(np.asarray, found)


def outputs(layer, xs):
    return run(layer, xs)[0]


class Leaky(eqx.Module):
    """A leak after a nonlinearity, for layers that have no state of their own."""

    shape: tuple[int, ...] = eqx.field(static=True)

    def init_state(self) -> jax.Array:
        return jnp.zeros(self.shape)

    def __call__(self, x: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = 0.8 * h + jnp.tanh(x)
        return h, h


def normal(*shape: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def marks(function, *args) -> int:
    """How many marks a function places."""
    return str(jax.make_jaxpr(function)(*args)).count("= etp ")


def parameters(layer) -> int:
    """How many arrays of weights a layer has."""
    return len(jax.tree.leaves(eqx.filter(layer, eqx.is_inexact_array)))


def shuffled(layer):
    """The layer with parameters that are not those it starts with: no gain is one, no bias zero."""
    weights, rest = eqx.partition(layer, eqx.is_inexact_array)
    moved = jax.tree.map(lambda w: w + 0.3 * normal(*w.shape, seed=9).astype(w.dtype), weights)
    return eqx.combine(moved, rest)


def verify(model, xs, algo=etpc.D_RTRL(window=3)) -> Report:
    """Against BPTT, on a loss that depends on time and on each output in another way."""

    def loss(y, target):
        return jnp.sum((y.ravel() - target * (1.0 + jnp.arange(y.size))) ** 2)

    report = etpc.verify(model, xs, jnp.cos(jnp.arange(len(xs))), loss, algo)
    assert report.ok, str(report)
    for row in report.rows:
        assert row.claim in ("exact", "approximate", "current step"), str(report)
        assert row.claim == "exact" or row.error > 1e-3, str(report)
    return report


def exact(report: Report) -> set[str]:
    """The paths that are claimed to be exact."""
    return {row.path for row in report.rows if row.claim == "exact"}
