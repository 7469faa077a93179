"""What takes a model and data, where JAX is told to promote no dtype by itself."""

import jax
import jax.numpy as jnp
import optax
import pytest

import etpc
from tests.helpers import loss, normal, weights
from tests.marks import few, first

T, B, I, N = 16, 3, 2, 3


def step(p, x, h):
    h = jnp.tanh(p["back"] @ h + p["into"] @ x)
    return h, h


def trained(model, xs, targets, mask, called):
    optimiser = optax.sgd(0.01, momentum=0.9)
    size = called.pop("batch_size")
    program = etpc.compile(model, inputs=xs[0, 0], **called)
    learner = etpc.online(program, loss, optimiser, every=4)
    begins = jnp.zeros((T // 4, B), bool).at[1].set(True)
    block = dict(xs=xs, targets=targets, mask=mask, begins=begins)
    return etpc.fit(learner, model, [block], batch_size=size, independent=True, verify=True)


def suggested(*data, **options):
    model, xs, targets, mask, called = data
    score = lambda y, t: y[0] > t[0]  # whether an answer is right
    usual = dict(rules=["d_rtrl"], updates=2, rates=[1.0], optimiser=optax.sgd(0.1), score=score)
    found = etpc.suggest(model, (xs, targets, mask), loss, **called, **usual | options)
    assert [row.updates for row in found.rows if row.rule] == [2]
    return found


def checked(model, xs, targets, mask, called):
    _, gradient = etpc.bptt(model, xs, targets, loss, window=5, **called, mask=mask)
    found = etpc.check(jax.tree.map(lambda a: a + 1, gradient), model, xs, targets, loss, **called)
    return found.by_lag


CALLS = {
    "suggest": suggested,
    "suggest, updates within sequences": lambda *data: suggested(*data, every=4),
    "suggest, Adam": lambda *data: suggested(*data, optimiser=None),
    "compare": lambda *data: etpc.compare(*data[:3], loss, mask=data[3], **data[4]),
    "verify": lambda *data: etpc.verify(*data[:3], loss, mask=data[3], **data[4]),
    "check": checked,
    "online and fit": trained,
}


@pytest.mark.parametrize("masked", first([bool, float]))
@pytest.mark.parametrize("name", few(CALLS, "verify", "online and fit"))
def test_under_strict_promotion(name, masked):
    with jax.enable_x64(False), jax.numpy_dtype_promotion("strict"):
        f32 = lambda a: a.astype(jnp.float32)
        model = {"back": f32(weights(N, N, seed=1)), "into": f32(weights(N, I, seed=2))}
        xs, targets = f32(normal(T, B, I, seed=3)), f32(normal(T, B, N, seed=4))
        mask = jnp.ones((T, B)).at[:3].set(0).astype(masked)
        called = dict(state=jnp.zeros(N, jnp.float32), step=step, batch_size=B)
        assert CALLS[name](model, xs, targets, mask, called) is not None
