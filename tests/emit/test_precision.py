"""Low precision: states that are rounded when they are stored, and weights that are rounded when they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.marks import few, first

N = 4
W = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.9, N), jnp.float32)
XS = jnp.asarray(np.random.default_rng(1).uniform(0.3, 1.7, (12, N)), jnp.float32)


def loss(y, target):
    return jnp.sum((y.astype(jnp.float32) - target.astype(jnp.float32)) ** 2)


# --- states ---


def stored(m, x, v):
    v = 0.9 * v.astype(jnp.float32) + m * x
    return jnp.sin(30 * v), v.astype(jnp.bfloat16)


def stored_in_parts(m, x, v):
    """Two states in one array, which is rounded as a whole."""
    a, b = v[0].astype(jnp.float32), v[1].astype(jnp.float32)
    a = 0.9 * a + m * x
    b = 0.8 * b + jnp.tanh(a)
    return jnp.sin(30 * a) + jnp.cos(20 * b), jnp.stack([a, b]).astype(jnp.bfloat16)


def stored_after_reduction(m, x, v):
    v = 0.9 * v + jax.lax.reduce_precision(m * x, 8, 6)
    return jnp.sin(30 * v), jax.lax.reduce_precision(v, 8, 4)


def stored_wider(m, x, v):
    v = 0.9 * v.astype(jnp.bfloat16) + m.astype(jnp.bfloat16) * x.astype(jnp.bfloat16)
    return jnp.sin(3 * v), v.astype(jnp.float32)


STATES = {
    "bfloat16": (stored, jnp.zeros(N, jnp.bfloat16)),
    "two in one": (stored_in_parts, jnp.zeros((2, N), jnp.bfloat16)),
    "reduced": (stored_after_reduction, jnp.zeros(N, jnp.float32)),
    "wider": (stored_wider, jnp.zeros(N, jnp.float32)),
}


@pytest.mark.parametrize("backprop", first(["cut", "full"]))
@pytest.mark.parametrize("name", STATES)
def test_outputs_are_those_of_the_model(name, backprop):
    step, state = STATES[name]
    program = etpc.compile(W, etpc.D_RTRL(backprop=backprop), inputs=XS[0], state=state, step=step)
    carry = program.init()
    ys, after = program.scan(W, XS, carry)
    last, expected = jax.jit(lambda: jax.lax.scan(lambda s, x: step(W, x, s)[::-1], state, XS))()
    # XLA may keep more bits between two operations of one program than of another
    tolerance = 2**-7 if name == "wider" else 1e-4
    for got, wanted in ((ys, expected), (after.state, last)):
        got, wanted = np.asarray(got, float), np.asarray(wanted, float)
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", few(["bfloat16", "two in one", "wider"], "two in one"))
def test_gradients_are_those_of_bptt(name):
    step, state = STATES[name]
    targets = 0.5 * XS
    _, bptt = etpc.bptt(W, XS, targets, loss, state=state, step=step)
    for algo in (etpc.D_RTRL(window=5), etpc.RTRL(window=3)):
        program = etpc.compile(W, algo, inputs=XS[0], state=state, step=step)
        assert program.exact
        grads = program.value_and_grad(loss)(W, XS, targets, program.init())[1]
        assert grads.dtype == jnp.float32
        error = float(jnp.linalg.norm(grads - bptt) / jnp.linalg.norm(bptt))
        assert error < 0.05, error  # eight bits


# --- weights ---


def rounded_weight(m, x, h):
    h = 0.5 * h + m.astype(jnp.bfloat16) * x.astype(jnp.bfloat16)
    return h.astype(jnp.float32), h


def rounded_matrix(m, x, h):
    h = 0.5 * h + m.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)
    return h.astype(jnp.float32), h


def rounded_readout(m, x, h):
    h = 0.5 * h + x
    return (m.astype(jnp.bfloat16) @ h.astype(jnp.bfloat16)).astype(jnp.float32), h


MATRIX = jnp.asarray(np.random.default_rng(2).uniform(0.1, 0.5, (N, N)), jnp.float32)
WEIGHTS = {
    "element-wise": (rounded_weight, W, jnp.zeros(N, jnp.bfloat16)),
    "a matrix": (rounded_matrix, MATRIX, jnp.zeros(N, jnp.bfloat16)),
    "a readout": (rounded_readout, MATRIX, jnp.zeros(N, jnp.float32)),
}


FULL = etpc.D_RTRL(backprop="full")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "algo"),
    [*((name, etpc.D_RTRL()) for name in WEIGHTS), ("a matrix", FULL), ("a matrix", etpc.RTRL())],
)
def test_a_gradient_adds_up_over_a_long_sequence(name, algo):
    """In bfloat16 a sum of 4,000 terms of one sign stands still after the first 256."""
    step, model, state = WEIGHTS[name]
    steps = 4000
    xs = jnp.asarray(np.random.default_rng(3).uniform(0, 1, (steps, N)), jnp.float32)
    targets = jnp.zeros((steps, N), jnp.float32)
    wide = lambda a: a.astype(jnp.bfloat16).astype(jnp.float64)

    def in_float64(m, x, h):
        m, x = wide(m), wide(x)
        if step is rounded_readout:
            h = 0.5 * h + x
            return m @ h, h
        h = 0.5 * h + (m * x if step is rounded_weight else m @ x)
        return h, h

    def precise(y, target):
        return jnp.sum((y - target) ** 2)

    start = jnp.zeros(N, jnp.float64)
    _, expected = etpc.bptt(
        model.astype(jnp.float64), xs, targets, precise, state=start, step=in_float64
    )
    program = etpc.compile(model, algo, inputs=xs[0], state=state, step=step)
    assert program.exact
    grads = program.value_and_grad(loss)(model, xs, targets, program.init())[1]
    error = float(jnp.linalg.norm(grads - expected) / jnp.linalg.norm(expected))
    assert error < 5e-3, error


def of_readout(m, x, h):
    h = 0.5 * h + x
    return m * h, h


def of_state(m, x, h):
    h = 0.5 * h + m * x
    return h, h


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "step", "backprop"),
    [
        (jnp.bfloat16, of_readout, "cut"),
        (jnp.bfloat16, of_state, "full"),
        (jnp.float16, of_readout, "full"),
        (jnp.float16, of_state, "cut"),
    ],
)
def test_a_gradient_adds_up_over_a_large_batch(dtype, step, backprop):
    """5,000 examples whose terms have one sign, in a dtype in which a sum of ones stops at 256 or at 2,048."""
    steps, batch = 8, 5000
    m, xs = jnp.full(N, 0.5, dtype), jnp.ones((steps, batch, N), dtype)
    algo = etpc.D_RTRL(window=4, backprop=backprop)
    program = etpc.compile(m, algo, inputs=m, state=jnp.zeros(N, dtype), step=step)
    grads = program.value_and_grad(loss)(m, xs, jnp.zeros_like(xs), program.init(batch))[1]
    one = [a.astype(jnp.float64) for a in (m, xs[:, 0], jnp.zeros_like(xs[:, 0]))]
    _, expected = etpc.bptt(*one, loss, state=jnp.zeros(N), step=step)
    np.testing.assert_allclose(np.asarray(grads, float), expected, rtol=2e-2)


def test_the_gradient_of_a_rounded_weight_is_not_rounded():
    """What reaches the parameter has more bits than the weight in the step."""
    step, model, state = WEIGHTS["a matrix"]
    program = etpc.compile(model, inputs=XS[0], state=state, step=step)
    grads = program.value_and_grad(loss)(model, XS, XS, program.init())[1]
    assert grads.dtype == jnp.float32
    assert (grads != grads.astype(jnp.bfloat16).astype(jnp.float32)).any()
