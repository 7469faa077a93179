"""SnAp on steps of many kinds, against a dense reference and, where nothing leaves its blocks, BPTT."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

import etpc
from tests.helpers import loss
from tests.marks import few

T, N, IN, B = 6, 5, 3, 2
spike = etpc.surrogate.ReluGrad()


def normal(*shape, seed=0):
    """In NumPy: computing with JAX arrays would compile a kernel for each shape."""
    return 0.7 * np.random.default_rng(seed).normal(size=shape)


class Model(eqx.Module):
    """A step on weights; the output reads all of the new state, and of the old one too if `past`."""

    weights: dict
    step: Callable = eqx.field(static=True)
    state: tuple = eqx.field(static=True)
    past: bool = eqx.field(static=True)

    def init_state(self):
        return tuple(jnp.zeros(shape, dtype) for shape, dtype in self.state)

    def __call__(self, x, state):
        new = self.step(self.weights, x, state)
        return self.output(state, new), new

    def output(self, state, new):
        read = [jnp.concatenate([s.real.ravel(), s.imag.ravel()]) for s in (*new, *state)]
        count = len(read) if self.past else len(new)
        return jnp.sin(jnp.concatenate(read[:count]))


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


def convolved(w, x, state):
    (h,) = state
    back = lax.conv_general_dilated(jnp.tanh(h)[None], w["kernel"], (1,), "SAME")[0]
    return (0.5 * h + back + (w["in"] @ x)[None],)


def rotated(w, x, state):
    """Complex states, which no weight reads, beside a layer that reads itself."""
    s, h = state
    s = w["phase"] * s + w["complex"] @ x
    return s, 0.5 * h + jnp.tanh(w["rec"] @ h + s.real)


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


def ring(w, x, state):
    """Each unit reads itself and its left neighbour past any weight."""
    (h,) = state
    return (jnp.tanh(0.6 * h + 0.5 * jnp.roll(h, 1) + w["in"] @ x + w["bias"]),)


DRAWN = {
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
    "kernel": normal(2, 2, 3, seed=12),
    "phase": 0.8 * np.exp(1j * normal(N, seed=13)),
    "complex": normal(N, IN, seed=14) + 1j * normal(N, IN, seed=15),
}
WEIGHTS = {name: jnp.asarray(a) for name, a in DRAWN.items()}
REAL, COMPLEX = "float64", "complex128"
MODELS = {
    ring: ("in bias", [((N,), REAL)]),
    alif: ("decay in rec", [((N,), REAL)] * 2),
    gru: ("gates back bias", [((N,), REAL)]),
    lstm: ("long self", [((N,), REAL)] * 2),
    convolved: ("kernel in", [((2, N), REAL)]),
    rotated: ("phase complex rec", [((N,), COMPLEX), ((N,), REAL)]),
    stacked: ("in rec up", [((N,), REAL)] * 2),
    reading: ("decay in rec out", [((N,), REAL), ((2,), REAL)]),
    threshold: ("decay in rec", [((N,), REAL)]),
}
SEVERAL_OUTPUTS = (convolved, rotated)
"""An element of a weight is used at several outputs, each of which has a block of its own; or is complex."""
XS = jnp.asarray(2 * normal(T, IN, seed=20))


def model_of(step, past=False):
    names, state = MODELS[step]
    return Model({name: WEIGHTS[name] for name in names.split()}, step, tuple(state), past)


def reference(model, n, window, cut):
    """`J_t = mask * (D_t J_{t-1} + F_t)`, and in windows that are not cut plain reverse mode besides; all dense."""
    theta, weights_of = ravel_pytree(model.weights)
    zero, state_of = ravel_pytree(model.init_state())

    def step(theta, s, x):
        y, new = eqx.tree_at(lambda m: m.weights, model, weights_of(theta))(x, state_of(s))
        return ravel_pytree(new)[0], loss(y, 0.0)

    @jax.jit
    def of_step(s, x):
        """The next state, its Jacobians, and the gradients of the loss by the old state and by it."""
        new, _ = step(theta, s, x)
        by_theta, by_state = jax.jacobian(lambda *a: step(*a, x)[0], (0, 1))(theta, s)
        of_states = lambda *states: loss(model.output(*map(state_of, states)), 0.0)
        return new, by_state, by_theta, *jax.grad(of_states, (0, 1))(s, new)

    @jax.jit
    def of_window(s, xs):
        total = lambda theta, s: lax.scan(lambda s, x: step(theta, s, x), s, xs)[1].sum()
        return jax.grad(total, (0, 1))(theta, s)

    points = normal(64, zero.size, seed=50), 2 * normal(64, IN)
    _, D, F, *_ = (np.any(np.asarray(a) != 0, 0) for a in jax.vmap(of_step)(*points))
    mask = reached = F
    for _ in range(n - 1):
        reached = (D.astype(int) @ reached.astype(int)) > 0
        mask = mask | reached
    s, J, total = zero, np.zeros(F.shape), 0.0
    for t in range(0, T, window):
        if not cut:
            by_weights, credit = of_window(s, XS[t : t + window])
            total = total + by_weights + credit @ J
        for x in XS[t : t + window]:
            s, by_state, by_theta, old_signal, signal = map(np.asarray, of_step(s, x))
            old, J = J, mask * (by_state @ J + by_theta)
            if cut:
                total = total + old_signal @ old + signal @ J
    return total


def gradient(model, algo):
    program = etpc.compile(model, algo, inputs=XS[0])
    _, grads = program.value_and_grad(loss, "sum")(model, XS, jnp.zeros(T), program.init())
    return ravel_pytree(grads)[0]


def assert_near(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("step", few([s for s in MODELS if s not in SEVERAL_OUTPUTS], gru))
@pytest.mark.parametrize("n", few([1, 2], 1))
def test_gradients_are_those_of_the_dense_reference(step, n):
    for past in (False, True):
        model = model_of(step, past)
        assert_near(gradient(model, etpc.SnAp(n, window=1)), reference(model, n, T, cut=True))


@pytest.mark.slow
@pytest.mark.parametrize("step", [alif, lstm])
def test_windows_with_nothing_cut(step):
    model, algo = model_of(step), etpc.SnAp(1, window=2, backprop="full")
    assert_near(gradient(model, algo), reference(model, 1, 2, cut=False))


@pytest.mark.slow
@pytest.mark.parametrize("step", [lstm, *SEVERAL_OUTPUTS])
def test_in_enough_steps_it_is_bptt(step):
    model = model_of(step)
    _, grads = etpc.bptt(model, XS, jnp.zeros(T), loss, reduction="sum")
    assert_near(gradient(model, etpc.SnAp(20, window=1)), ravel_pytree(grads)[0])


def test_states_that_are_dropped_from_a_closed_block_pass_their_credit_on():
    """Where the block of another weight is open, so that sequences are processed step by step."""

    def step(m, x, state):
        h, both = state
        h = jnp.tanh(m["rec"] @ h + x[:2])
        both = m["leak"] * both[:2] + x[:2]
        both = jnp.concatenate([both, jnp.sin(2 * both)])
        return h + both[2:], (h, both)

    model = {"rec": normal(2, 2), "leak": normal(2, seed=1)}
    given = dict(state=(jnp.zeros(2), jnp.zeros(4)), step=step)
    program = etpc.compile(model, etpc.SnAp(1), inputs=XS[0], **given)
    assert [node.block for node in program.ir.traces] == [1, 1]
    _, grads = program.value_and_grad(loss, "sum")(model, XS, jnp.zeros(T), program.init())
    rule = etpc.SnAp(1)
    _, wanted = etpc.reference(model, XS, jnp.zeros(T), loss, rule, reduction="sum", **given)
    assert_near(ravel_pytree(grads)[0], ravel_pytree(wanted)[0])
