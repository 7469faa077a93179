"""What D-RTRL and ES-D-RTRL cut, by hand: five models that say themselves where data is constant.

The definition (`etpc.definition`) shares with the compiler how it finds the operations whose data is constant. Here
each model says so, and its equations are written again.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import etpc
from tests import helpers
from tests.helpers import alive, distance, normal, quickly, spike, weights
from tests.marks import few, first

T, N = 6, 3
stop = jax.lax.stop_gradient


class Plain:
    """How a model uses old states and weights. Here nothing is cut."""

    def old(self, state):
        """Old states, as operations that reach a new state read them."""
        return state

    def product(self, name, weight, data, use=jnp.matmul):
        """An operation that reaches a new state."""
        return use(weight, data)


class Read(Plain):
    """The step as it is read: data is constant as far as it depends on old states. `added` is added to products."""

    def __init__(self, added=None):
        self.added, self.data = added, {}

    def old(self, state):
        return stop(state)

    def product(self, name, weight, data, use=jnp.matmul):
        self.data[name] = data
        y = use(weight, data)
        return y if self.added is None else y + self.added[name]


class Cut(Read):
    """The cut step: all data is constant."""

    def product(self, name, weight, data, use=jnp.matmul):
        return super().product(name, weight, stop(data), use)


def layers(p, x, state, how, reads_new=True):
    """Two layers, of which the second reads the new state of the first."""
    h, g = state
    current = how.product("w", p["w"], x) + how.product("u", p["u"], jnp.tanh(how.old(h)))
    new = 0.7 * h + 0.3 * jnp.tanh(current)
    above = 0.6 * g + jnp.tanh(how.product("v", p["v"], new))
    return p["out"] @ jnp.concatenate([new, above] if reads_new else [h, g]), (new, above)


def gated(p, x, h, how):
    """A layer below, and a gate in front of the recurrent weight; the output reads old and new states."""
    old = how.old(h)
    gate = jax.nn.sigmoid(how.product("gate", p["gate"], old))
    below = jnp.tanh(how.product("below", p["below"], x))
    current = how.product("w", p["w"], below) + how.product("u", p["u"], gate * old)
    new = p["leak"] * h + 0.3 * jnp.tanh(current)
    return p["out"] @ new + h[:2], new


def sub_steps(p, x, h, how):
    """One recurrent weight in each of three steps within a step: what they read is no new state yet."""
    held = how.old(h)
    for _ in range(3):
        current = how.product("u", p["u"], held) + p["w"] * x.sum()
        h, held = (0.7 * a + 0.3 * jnp.tanh(current) for a in (h, held))
    return p["out"] @ h, h


def resets(p, x, state, how):
    """Spiking neurons; a second layer reads the potential before the reset in full, and the first one old spikes."""
    v, z, g = state
    current = how.product("w", p["w"], x) + how.product("u", p["u"], how.old(z))
    before = 0.8 * v + current
    new = spike(before - 0.3)
    above = 0.6 * g + jnp.tanh(how.product("v", p["v"], before))
    return p["out"] @ above + new[:2], (before - 0.5 * new, new, above)


def lateral(p, x, h, how):
    """A convolution of old states, and a table that a number reads."""
    conv = lambda kernel, data: jax.vmap(lambda row: jnp.convolve(row, kernel, "same"))(data)
    number = (x[0] > 0).astype(int)
    current = how.product("kernel", p["kernel"], jnp.tanh(how.old(h)), conv)
    new = 0.6 * h + current + p["table"][number][:, None]
    return p["out"] @ new.ravel(), new


LAYER = {"w": weights(N, 2), "u": weights(N, N, seed=1), "out": weights(2, N, seed=2)}
ABOVE = {"v": weights(2, N, seed=3), "out": weights(2, N + 2, seed=4)}
BELOW = {"w": weights(N, N), "gate": weights(N, N, seed=5), "below": weights(N, 2)}
LEAK = jnp.asarray([0.5, 0.7, 0.9])
ROWS = {"kernel": 0.5 * normal(3), "table": normal(2, 2), "out": weights(2, 8, seed=7)}
MODELS = {
    "layers": (layers, LAYER | ABOVE, (jnp.zeros(N), jnp.zeros(2))),
    "gated": (gated, LAYER | BELOW | {"leak": LEAK}, jnp.zeros(N)),
    "sub-steps": (sub_steps, LAYER | {"w": LEAK}, jnp.zeros(N)),
    "resets": (
        resets,
        LAYER | ABOVE | {"out": weights(2, 2, seed=6)},
        (jnp.zeros(N), jnp.zeros(N), jnp.zeros(2)),
    ),
    "lateral": (lateral, ROWS, jnp.zeros((2, 4))),
}
XS, TARGETS = normal(T, 2, seed=8), normal(T, 2, seed=9)


def defined(model, p, start, rule):
    step = lambda p, x, state: model(p, x, state, Plain())
    options = dict(state=start, step=step, reduction="sum")
    return etpc.reference(p, XS, TARGETS, helpers.loss, rule, **options)[1]


def flat(model, p, start):
    """The weights and the states of a model as vectors, and its step as a function of them."""
    w, of_w = ravel_pytree(p)
    s, of_s = ravel_pytree(start)

    def step(w, s, x, how):
        y, new = model(of_w(w), x, of_s(s), how)
        return y, ravel_pytree(new)[0]

    return w, s, step, of_w


@pytest.mark.parametrize("name", few(MODELS, "gated"))
def test_d_rtrl(name):
    """`eps' = D eps + F` in the cut step, and `g += dl/dw + dl/ds eps` in the step as it is read."""
    w, s, step, of_w = flat(*MODELS[name])

    @quickly
    def one(s, eps, x, target):
        F, D = jax.jacrev(lambda w, s: step(w, s, x, Cut())[1], (0, 1))(w, s)
        loss = lambda w, s: helpers.loss(step(w, s, x, Read())[0], target)
        by_w, by_s = jax.grad(loss, (0, 1))(w, s)
        return step(w, s, x, Plain())[1], D @ eps + F, by_w + by_s @ eps

    eps, total = jnp.zeros((s.size, w.size)), 0.0
    for x, target in zip(XS, TARGETS, strict=True):
        s, eps, grad = one(s, eps, x, target)
        total = total + grad
    found = defined(*MODELS[name], etpc.D_RTRL())
    assert alive(found)
    assert distance(found, of_w(total)) < 1e-10
    assert distance(found, defined(*MODELS[name], etpc.RTRL())) > 1e-3


@pytest.mark.parametrize("decay", first([0.5, 0.95]))
@pytest.mark.parametrize("reads_new", [True, False])
def test_es_d_rtrl(decay, reads_new):
    """`X' = a X + dy/dw` and `f' = a D f + ds'/dy` of each product y, for two layers that are read after or before."""
    _, p, start = MODELS["layers"]
    model = lambda *args: layers(*args, reads_new=reads_new)
    w, s, step, _ = flat(model, p, start)
    sizes = {name: len(p[name]) for name in "wuv"}
    added = {name: jnp.zeros(size) for name, size in sizes.items()}

    @quickly
    def one(s, x, target):
        F, D = jax.jacrev(lambda y, s: step(w, s, x, Cut(y))[1], (0, 1))(added, s)
        loss = lambda y, s: helpers.loss(step(w, s, x, Read(y))[0], target)
        by_y, by_s = jax.grad(loss, (0, 1))(added, s)
        how = Read()
        _, new = step(w, s, x, how)
        X = {name: jnp.kron(jnp.eye(sizes[name]), how.data[name]) for name in sizes}
        return new, F, D, by_y, by_s, X

    X = {name: np.zeros((size, p[name].size)) for name, size in sizes.items()}
    f = {name: np.zeros((s.size, size)) for name, size in sizes.items()}
    c, total = 0.0, dict.fromkeys(sizes, 0.0)
    for x, target in zip(XS, TARGETS, strict=True):
        s, F, D, by_y, by_s, by_weight = jax.tree.map(np.asarray, one(s, x, target))
        for name in sizes:
            if not reads_new and c:
                total[name] = total[name] + by_s @ f[name] @ X[name] / c
            signal = decay * by_s @ f[name] + by_y[name]
            X[name] = decay * X[name] + by_weight[name]
            f[name] = decay * D @ f[name] + F[name]
            if reads_new:
                total[name] = total[name] + signal @ X[name] / (decay * c + 1)
        c = decay * c + 1
    found = defined(model, p, start, etpc.ES_D_RTRL(decay=decay, everywhere=True))
    for name in sizes:
        np.testing.assert_allclose(found[name].ravel(), total[name], rtol=1e-10)
