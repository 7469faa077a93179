"""Other dtypes than float64, and traces that do not lose what half precision would."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.nn import MinGRU
from tests.zoo.check import cast, cell, check, model, normal, weights

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
TOLERANCES = {jnp.float32: 2e-5, jnp.bfloat16: 0.1, jnp.float16: 0.01}
HALF = [jnp.bfloat16, jnp.float16]


@model
def MixedPrecision(x, h, weight, tau):
    """Parameters and products in half precision, the state in single precision."""
    current = (weight @ x.astype(weight.dtype)).astype(jnp.float32)
    h = jnp.exp(-1.0 / tau) * h + current
    return jnp.tanh(h), h


@model
def WeakParameter(x, h, weight, gain):
    """A parameter made of a Python number: it takes the dtype of what it meets."""
    h = gain * h + weight @ x
    return h, h


@model
def WeakState(x, state, weight):
    """A scalar state that starts as a Python number would."""
    h, mean = state
    h = 0.7 * h + weight @ x + mean
    return h, (h, 0.9 * mean + jnp.mean(h))


@model
def Pixels(x, state, weight, mask):
    """Small integers and booleans come in."""
    pixels, on = x
    h, count = state
    h = 0.7 * h + weight @ (pixels / 255.0) + mask @ on
    return h, (h, count + on.sum().astype(jnp.int8))


DECAYS = {jnp.bfloat16: 1 - 2.0**-8, jnp.float16: 1 - 2.0**-10}
"""The slowest that these dtypes can say."""


def slow(w, x, h):
    """A leak of which half precision loses the small increments."""
    decay = next(decay for dtype, decay in DECAYS.items() if h.dtype == dtype)
    h = decay * h + w * x
    return h, h


@model
def TwoPrecisions(x, h, weight):
    """One matrix in two products, of which one adds up in double precision."""
    short = weight @ x
    long = jnp.matmul(weight, x**2, preferred_element_type=jnp.float64)
    h = 0.7 * h + short + long.astype(h.dtype)
    return h, h


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_mingru(dtype):
    model, inputs, h = cast((MinGRU(2, 3, key=KEY), normal(2), jnp.zeros(3)), dtype)
    options = {"every": dtype is jnp.float32, "tolerance": TOLERANCES[dtype]}
    program = check(model, inputs, h, exact=True, **options)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(program.init().traces))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gru(dtype):
    model = cast(eqx.nn.GRUCell(2, 3, key=KEY), dtype)
    inputs, h = cast((normal(2), jnp.zeros(3)), dtype)
    check(model, inputs, h, cell, tolerance=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", HALF)
def test_mixed_precision(dtype):
    inputs, h = normal(2).astype(jnp.float32), jnp.zeros(3, jnp.float32)
    tau = jnp.linspace(1.0, 3.0, 3, dtype=jnp.float32)
    model = MixedPrecision(weights(3, 2).astype(dtype), tau)
    check(model, inputs, h, exact=True, tolerance=TOLERANCES[dtype])


def test_one_matrix_in_products_of_two_precisions():
    model, inputs, h = TwoPrecisions(weights(3, 2)), normal(2), jnp.zeros(3)
    model, inputs, h = cast((model, inputs, h), jnp.float32)
    check(model, inputs, h, exact=True, tolerance=TOLERANCES[jnp.float32])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_weak_parameter(dtype):
    model = WeakParameter(weights(3, 2).astype(dtype), jnp.asarray(0.7))
    h = jnp.zeros(3, dtype)
    assert model.gain.weak_type
    check(model, normal(2).astype(dtype), h, exact=True, tolerance=2e-5)


def test_weak_state():
    state = (jnp.zeros(3), jnp.asarray(0.5))
    assert state[1].weak_type
    check(WeakState(weights(3, 2)), normal(2), state, exact=True)


def test_small_integers_and_booleans():
    rng = np.random.default_rng(0)
    inputs = (
        jnp.asarray(rng.integers(0, 256, (6, 4)), jnp.uint8),
        jnp.asarray(rng.integers(0, 2, (6, 2)), bool),
    )
    state = (jnp.zeros(3), jnp.zeros((), jnp.int8))
    model = Pixels(weights(3, 4), weights(3, 2))
    check(model, inputs, state, exact=True, every=True)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("algo", [etpc.D_RTRL, etpc.RTRL])
def test_traces_of_slow_decays(dtype, algo):
    """The trace is a sum of many small increments, of which half precision loses some."""
    steps = 512 if dtype == jnp.bfloat16 else 2048
    xs = jnp.ones((steps, 2), dtype)
    w, h = jnp.ones(2, dtype), jnp.zeros(2, dtype)
    program = etpc.compile(w, algo(window=4), inputs=xs[0], state=h, step=slow)
    targets = jnp.zeros(steps, jnp.float32).at[-1].set(1.0)
    loss = lambda y, target: target * y.astype(jnp.float32).sum()
    (_, carry), grad = program.value_and_grad(loss, "sum")(w, xs, targets, program.init())
    assert grad.dtype == dtype
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(carry.traces))

    def last_trace(dtype):
        run = lambda e, _: (slow(jnp.ones((), dtype), jnp.ones((), dtype), e)[1], None)
        return jax.lax.scan(run, jnp.zeros((), dtype), length=steps)[0].astype(float)

    decay = DECAYS[dtype]
    expected, lost = (1 - decay**steps) / (1 - decay), last_trace(dtype)
    np.testing.assert_allclose(grad.astype(float), expected, rtol=0.01)
    assert abs(lost / expected - 1) > 0.05
