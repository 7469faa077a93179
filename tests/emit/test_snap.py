"""SnAp from the Jacobians of the cut step: as many products as D-RTRL, and the numbers of the dense way."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse

import etpc
import etpc.plan._plan

T, N, IN, B = 6, 5, 3, 2
spike = etpc.surrogate.ReluGrad()


def normal(*shape, seed=0):
    return 0.7 * jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Model(eqx.Module):
    """A step on weights; the output reads all of the new state."""

    weights: dict
    step: Callable = eqx.field(static=True)
    state: tuple = eqx.field(static=True)

    def init_state(self):
        return tuple(jnp.zeros(shape, dtype) for shape, dtype in self.state)

    def __call__(self, x, state):
        state = self.step(self.weights, x, state)
        read = [jnp.concatenate([s.real.ravel(), s.imag.ravel()]) for s in state]
        return jnp.sin(jnp.concatenate(read)), state


def lif(w, x, state):
    V, z = state
    V = jnp.exp(-1 / w["tau"]) * V * (1 - lax.stop_gradient(z)) + w["in"] @ x + w["rec"] @ z
    return V, spike(V - 0.3)


def alif(w, x, state):
    V, a = state
    z = spike(V - 0.3 - 0.2 * a)
    return w["decay"] * V + w["in"] @ x + w["rec"] @ z - 0.3 * z, 0.9 * a + 0.1 * z


def gru(w, x, state):
    (h,) = state
    r, u, n = jnp.split(w["gates"] @ x, 3)
    hr, hu, hn = jnp.split(w["back"] @ h, 3)
    u = jax.nn.sigmoid(u + hu + w["bias"])
    return ((1 - u) * jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn) + u * h,)


def lstm(w, x, state):
    c, h = state
    i, f, o, g = jnp.split(w["long"] @ x + w["self"] @ h, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def linked(w, x, state):
    (h,) = state
    links = np.array([[0, 4], [1, 0], [2, 1], [3, 2], [4, 3], [2, 2], [0, 2]])
    matrix = sparse.BCOO((w["links"], jnp.asarray(links)), shape=(N, N))
    return (jnp.tanh(matrix @ h + w["in"] @ x),)


def grouped(w, x, state):
    (h,) = state
    return (0.5 * h + jnp.tanh(jnp.einsum("ghk,gk->gh", w["heads"], h) + (w["in"] @ x)[None]),)


def shared(w, x, state):
    """Rows of the state share a weight, from which they are read in the other order."""
    (h,) = state
    return (0.5 * h + jnp.tanh(h @ w["shared"] + (w["in"] @ x)[None]),)


def convolved(w, x, state):
    (h,) = state
    back = lax.conv_general_dilated(jnp.tanh(h)[None], w["kernel"], (1,), "SAME")[0]
    return (0.5 * h + back + (w["in"] @ x)[None],)


def rotated(w, x, state):
    """Complex states, which no weight reads, beside a layer that reads itself."""
    s, h = state
    s = w["phase"] * s + w["complex"] @ x
    return s, 0.5 * h + jnp.tanh(w["rec"] @ h + s.real)


def complex_back(w, x, state):
    (s,) = state
    return (0.5 * s + w["phases"] @ s + w["complex"] @ x,)


def stacked(w, x, state):
    a, b = state
    a = 0.6 * a + jnp.tanh(w["in"] @ x + w["rec"] @ a)
    return a, 0.8 * b + jnp.tanh(w["up"] @ a)


def reading(w, x, state):
    """A leaky readout, whose weights read what the others make in the same step."""
    V, r = state
    V = w["decay"] * V + w["in"] @ x + w["rec"] @ spike(V - 0.3)
    return V, 0.8 * r + w["out"] @ spike(V - 0.3)


def threshold(w, x, state):
    """What the weight reads depends on an element-wise weight in the same step."""
    (V,) = state
    return (0.9 * V + w["in"] @ x + w["rec"] @ spike(V - w["decay"]),)


WEIGHTS = {
    "tau": 5 + normal(N),
    "decay": 0.5 + 0.1 * normal(N),
    "in": normal(N, IN, seed=1),
    "rec": normal(N, N, seed=2),
    "up": normal(N, N, seed=3),
    "out": normal(2, N, seed=18),
    "gates": normal(3 * N, IN, seed=4),
    "back": normal(3 * N, N, seed=5),
    "bias": normal(N, seed=6),
    "long": normal(4 * N, IN, seed=7),
    "self": normal(4 * N, N, seed=8),
    "links": normal(7, seed=9),
    "heads": normal(2, N, N, seed=10),
    "shared": normal(N, N, seed=11),
    "kernel": normal(2, 2, 3, seed=12),
    "phase": 0.8 * jnp.exp(1j * normal(N, seed=13)),
    "complex": normal(N, IN, seed=14) + 1j * normal(N, IN, seed=15),
    "phases": normal(N, N, seed=16) + 1j * normal(N, N, seed=17),
}
REAL, COMPLEX = "float64", "complex128"
MODELS = {
    lif: ("tau in rec", [((N,), REAL)] * 2),
    alif: ("decay in rec", [((N,), REAL)] * 2),
    gru: ("gates back bias", [((N,), REAL)]),
    lstm: ("long self", [((N,), REAL)] * 2),
    linked: ("links in", [((N,), REAL)]),
    grouped: ("heads in", [((2, N), REAL)]),
    shared: ("shared in", [((3, N), REAL)]),
    convolved: ("kernel in", [((2, N), REAL)]),
    rotated: ("phase complex rec", [((N,), COMPLEX), ((N,), REAL)]),
    complex_back: ("phases complex", [((N,), COMPLEX)]),
    stacked: ("in rec up", [((N,), REAL)] * 2),
    reading: ("decay in rec out", [((N,), REAL), ((2,), REAL)]),
    threshold: ("decay in rec", [((N,), REAL)]),
}
DENSE = (complex_back, threshold)
"""Those that have to take the dense way."""


def model_of(step):
    names, state = MODELS[step]
    return Model({name: WEIGHTS[name] for name in names.split()}, step, tuple(state))


def compiled(model, algo, dense, monkeypatch):
    with monkeypatch.context() as patch:
        if dense:
            patch.setattr(etpc.plan._plan, "through", lambda *_: None)
        return etpc.compile(model, algo, inputs=jnp.ones(IN), weights="all")


def gradients(program, model):
    """Over two parts of a sequence; before the second, a stream begins again."""
    xs = 2 * normal(T, B, IN, seed=20)
    run = program.value_and_grad(lambda y, target: jnp.sum((y - target) ** 2), "sum")
    carry, grads = program.init(B), []
    for part in (slice(0, 4), slice(4, T)):
        (_, carry), found = run(model, xs[part], jnp.zeros((len(xs[part]), B)), carry)
        grads.append(found)
        carry = program.reset(carry, jnp.array([True, False]))
    return jax.tree.leaves(grads)


def assert_same(step, algo, monkeypatch):
    model = model_of(step)
    program, dense = (compiled(model, algo, dense, monkeypatch) for dense in (False, True))
    assert program.plan.through is not None
    assert dense.plan.through is None
    assert str(program) == str(dense)
    found, wanted = gradients(program, model), gradients(dense, model)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * np.abs(other).max())
    return program


CASES = [step for step in MODELS if step not in DENSE]
FEW = (lif, gru, reading)


@pytest.mark.parametrize(
    "step", [pytest.param(s, marks=[] if s in FEW else pytest.mark.slow) for s in CASES]
)
def test_gradients_are_those_of_the_dense_way(step, monkeypatch):
    assert_same(step, etpc.SnAp(1, window=2), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "algo",
    [
        etpc.SnAp(1, window=1),
        etpc.SnAp(1, window=T),
        etpc.SnAp(1, window=2, in_window="exact"),
        etpc.SnAp(1, window=2, lookback=3),
    ],
    ids=["1", "all", "exact", "lookback"],
)
@pytest.mark.parametrize("step", [alif, lstm])
def test_windows(step, algo, monkeypatch):
    assert_same(step, algo, monkeypatch)


@pytest.mark.slow
def test_a_weight_without_a_trace_passes_influence_on(monkeypatch):
    model = model_of(gru)
    algo, zero = etpc.SnAp(1, window=2), jnp.ones(IN)
    found = []
    for dense in (False, True):
        with monkeypatch.context() as patch:
            if dense:
                patch.setattr(etpc.plan._plan, "through", lambda *_: None)
            select = lambda m: m.weights["gates"]
            program = etpc.compile(model, algo, inputs=zero, weights=select)
        assert (program.plan.through is None) == dense
        found.append(gradients(program, model))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * np.abs(other).max())


@pytest.mark.parametrize("step", DENSE)
def test_what_takes_the_dense_way(step, monkeypatch):
    program = compiled(model_of(step), etpc.SnAp(1), False, monkeypatch)
    assert program.plan.through is None
    assert program.plan.colours.count >= N


@pytest.mark.parametrize("step", [s for s in CASES if s not in (stacked, reading)])
def test_products_do_not_grow_with_the_layer(step, monkeypatch):
    """D-RTRL's, one more for each state that a block has beside it, and those of what weights read."""
    program = compiled(model_of(step), etpc.SnAp(1), False, monkeypatch)
    plan = program.plan
    assert plan.through is not None
    cut = etpc.compile(model_of(step), "d_rtrl", inputs=jnp.ones(IN), weights="all").plan
    assert plan.colours.count <= cut.colours.count + 1
    assert plan.through.count <= 2
    assert f"{plan.colours.count} vector-Jacobian products" in str(plan)
    assert f"and {plan.through.count} of data" in str(plan)


@pytest.mark.parametrize(("step", "rows"), [(stacked, N), (reading, 2)])
def test_rows_of_a_later_layer_are_read_of_the_uncut_step(step, rows, monkeypatch):
    plan = compiled(model_of(step), etpc.SnAp(1), False, monkeypatch).plan
    assert plan.through is not None
    assert (plan.colours.count, plan.through.count) == (1 + rows, 1)


@pytest.mark.parametrize("algo", [etpc.RTRL(), etpc.D_RTRL(), etpc.SnAp(5)], ids=str)
def test_other_rules_read_the_step_that_they_are_of(algo, monkeypatch):
    assert compiled(model_of(gru), algo, False, monkeypatch).plan.through is None
