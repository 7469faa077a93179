"""The low-rank form against dense traces that are reduced by a singular value decomposition."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.algorithms import Full, LowRank
from etpc.forms import _modes
from tests.helpers import loss, normal

T, W = 9, 3


def gated(w, x, h):
    """A gate from the input: D depends on data, so traces have full rank."""
    z, new = jnp.split(w @ x, 2)
    z = jax.nn.sigmoid(z)
    h = (1 - z) * h + z * jnp.tanh(new)
    return h, h


def adaptive(w, x, s):
    """Two states for each neuron."""
    v, a = jnp.split(s, 2)
    z = jax.nn.sigmoid(4 * (v - a))
    v = 0.9 * v * (1 - z) + w @ x
    a = 0.8 * a + 0.3 * z
    return v * z, jnp.concatenate([v, a])


def rotated(w, x, h):
    """Complex states, as pairs of real ones."""
    h = (0.5 + 0.4j) * jnp.abs(jnp.tanh(x[0])) * h + w.astype(complex) @ x.astype(complex)
    return jnp.stack([h.real, h.imag]), h


XS = normal(T, 6, seed=1)
MODELS = {  # step, weight, state, and the states that each output of the weight reaches alone
    "gated": (gated, normal(8, 6), jnp.zeros(4), np.array([[o % 4] for o in range(8)])),
    "adaptive": (adaptive, normal(4, 6), jnp.zeros(8), np.array([[o, o + 4] for o in range(4)])),
}


def online(step, w, state, algo, passes=None):
    program = etpc.compile(
        w, algo, inputs=XS[0], state=state, step=step, weights="all", passes=passes
    )
    run = program.value_and_grad(loss, "sum")
    return program, run(w, XS, jnp.full(T, 0.3), program.init())[1]


def reduced(step, w, state, rows, rank):
    """Windows of reverse mode, and between them a dense trace, cut to `rank` by an SVD."""

    def window(w, s, xs):
        total = 0.0
        for x in xs:
            y, s = step(w, x, s)
            total = total + loss(y, 0.3)
        return total, s

    of_loss = jax.jit(jax.grad(lambda w, s, xs: window(w, s, xs)[0], (0, 1)))
    of_state = jax.jit(jax.jacrev(lambda w, s, xs: window(w, s, xs)[1], (0, 1)))
    trace, total, outputs = np.zeros((state.size, *w.shape)), 0.0, np.arange(len(w))[:, None]
    for start in range(0, T, W):
        xs = XS[start : start + W]
        by_w, by_s = of_loss(w, state, xs)
        total = total + by_w + np.tensordot(by_s, trace, 1)
        new, moved = of_state(w, state, xs)
        entries = (np.tensordot(moved, trace, 1) + new)[rows, outputs]  # [O, m, I]
        u, s, v = np.linalg.svd(entries.reshape(-1, w.shape[1]), full_matrices=False)
        trace = np.zeros_like(trace)
        trace[rows, outputs] = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(entries.shape)
        state = window(w, state, xs)[1]
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_equals_the_reduced_dense_trace(name, rank, monkeypatch):
    """Where the iteration goes on until the modes are the leading ones."""
    monkeypatch.setattr(_modes, "ROUNDS", 40)
    step, w, state, rows = MODELS[name]
    program, grads = online(step, w, state, etpc.ES_D_RTRL(rank=rank, window=W))
    assert isinstance(program.ops[0].form, LowRank)
    expected = reduced(step, w, state, rows, rank)
    # Gram matrices and two modes of nearly the same size leave the root of the precision
    np.testing.assert_allclose(grads, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize(("rank", "form"), [(3, LowRank(3)), (4, Full()), (6, Full())])
def test_the_whole_trace_is_carried_where_it_is_smaller(rank, form):
    step, w, state, _ = MODELS["gated"]
    algo = etpc.ES_D_RTRL(rank=rank, window=W)
    program = etpc.compile(w, algo, inputs=XS[0], state=state, step=step, weights="all")
    (op,) = program.ops
    assert op.form == form
    assert op.exact == (form == Full())
    assert (f"rank {rank}" in str(program)) == (form != Full())


@pytest.mark.slow
@pytest.mark.parametrize("backprop", ["cut", "full"])
def test_complex_factors(backprop):
    """All units share a decay: one mode is all there is, which filtered inputs would replace."""
    model = rotated, normal(4, 6), jnp.zeros(4, complex)
    low, whole = (
        online(*model, rule(window=W, backprop=backprop), passes=())
        for rule in (functools.partial(etpc.ES_D_RTRL, rank=1, everywhere=True), etpc.D_RTRL)
    )
    assert low[0].ops[0].form == LowRank(1)
    assert np.abs(low[1] - whole[1]).max() < 1e-7 * np.abs(whole[1]).max()


@pytest.mark.slow
def test_float32_is_stable_over_a_long_stream():
    step, *arrays, _ = MODELS["adaptive"]
    w, state, first = (a.astype(jnp.float32) for a in (*arrays, XS[0]))
    xs = normal(20_000, 6, seed=3).astype(jnp.float32)
    targets = jnp.full(len(xs), 0.3, jnp.float32)
    grads = []
    for rule in (etpc.ES_D_RTRL(rank=2, window=5), etpc.D_RTRL(window=5)):
        p = etpc.compile(w, rule, inputs=first, state=state, step=step)
        (_, carry), g = p.value_and_grad(loss, reduction="mean")(w, xs, targets, p.init())
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(carry))
        grads.append(g)
    assert np.linalg.norm(grads[0] - grads[1]) < 0.1 * np.linalg.norm(grads[1])


@pytest.mark.parametrize("window", [1, W])
def test_a_step_without_data_adds_nothing(window):
    """However large F is there. Data in two dimensions has traces of rank two, which are then exact."""
    draw = np.random.default_rng(0)
    silent = np.arange(T) % 3 == 1
    data = draw.normal(size=(T, 2)) @ draw.normal(size=(2, 6)) * ~silent[:, None]
    gates = draw.uniform(0.5, 1, size=(T, 8))
    xs = data, gates, np.where(silent, 1e6, 1.0)
    xs = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), xs)
    w = jnp.asarray(draw.normal(size=(8, 6)), jnp.float32)

    def step(w, x, h):
        data, gates, gain = x
        h = gates * h + gain * jnp.tanh(w @ data)
        return h, h

    def gradient(rule):
        state, first = jnp.zeros(8, jnp.float32), jax.tree.map(lambda a: a[0], xs)
        program = etpc.compile(w, rule, inputs=first, state=state, step=step)
        targets = jnp.full(T, 0.3, jnp.float32)
        run = program.value_and_grad(loss, "sum")
        return program, run(w, xs, targets, program.init())[1]

    program, found = gradient(etpc.ES_D_RTRL(rank=2, window=window))
    assert isinstance(program.ops[0].form, LowRank)
    _, expected = gradient(etpc.D_RTRL(window=window))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "scale"), list(itertools.product(["inputs", "states"], [1e-25, 1e25]))
)
def test_the_size_of_a_trace_does_not_matter_in_float32(scale, of):
    """Of a GRU-like layer whose inputs, or states, are many orders of magnitude larger."""
    fed, read = (scale, 1.0) if of == "inputs" else (1.0, scale)

    def gradient(fed, read):
        def step(w, x, h):
            z, new = jnp.split(w @ x / np.float32(fed), 2)
            z = jax.nn.sigmoid(z)
            h = (1 - z) * h + z * np.float32(read) * jnp.tanh(new)
            return h / np.float32(read), h

        w, xs = normal(8, 6).astype(jnp.float32), (XS * fed).astype(jnp.float32)
        algo = etpc.ES_D_RTRL(rank=1, window=W)
        program = etpc.compile(w, algo, inputs=xs[0], state=jnp.zeros(4, jnp.float32), step=step)
        targets = jnp.full(T, 0.3, jnp.float32)
        return program.value_and_grad(loss, "sum")(w, xs, targets, program.init())[1]

    one, other = gradient(fed, read), gradient(1.0, 1.0)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())
