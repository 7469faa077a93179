"""Other dtypes than float64, and traces that do not lose what half precision would."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.nn import MinGRU
from tests.zoo import dtypes
from tests.zoo.check import cell, check, normal, weights

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
TOLERANCES = {jnp.float32: 2e-5, jnp.bfloat16: 0.1, jnp.float16: 0.01}
HALF = [jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_mingru(dtype):
    model, inputs, h = dtypes.cast((MinGRU(2, 3, key=KEY), normal(2), jnp.zeros(3)), dtype)
    options = {"every": dtype is jnp.float32, "tolerance": TOLERANCES[dtype]}
    program = check(model, inputs, h, exact=True, **options)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(program.init().traces))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gru(dtype):
    model = dtypes.cast(eqx.nn.GRUCell(2, 3, key=KEY), dtype)
    inputs, h = dtypes.cast((normal(2), jnp.zeros(3)), dtype)
    check(model, inputs, h, cell, tolerance=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", HALF)
def test_mixed_precision(dtype):
    inputs, h = normal(2).astype(jnp.float32), jnp.zeros(3, jnp.float32)
    model = dtypes.MixedPrecision(dtype)
    check(model, inputs, h, exact=True, tolerance=TOLERANCES[dtype])


def test_one_matrix_in_products_of_two_precisions():
    model, inputs, h = dtypes.TwoPrecisions(weights(3, 2)), normal(2), jnp.zeros(3)
    model, inputs, h = dtypes.cast((model, inputs, h), jnp.float32)
    check(model, inputs, h, exact=True, tolerance=TOLERANCES[jnp.float32])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_weak_parameter(dtype):
    model, h = dtypes.WeakParameter(dtype), jnp.zeros(3, dtype)
    assert model.gain.weak_type
    check(model, normal(2).astype(dtype), h, exact=True, tolerance=2e-5)


def test_weak_state():
    state = (jnp.zeros(3), jnp.asarray(0.5))
    assert state[1].weak_type
    check(dtypes.WeakState(weights(3, 2)), normal(2), state, exact=True)


def test_small_integers_and_booleans():
    rng = np.random.default_rng(0)
    inputs = (
        jnp.asarray(rng.integers(0, 256, (6, 4)), jnp.uint8),
        jnp.asarray(rng.integers(0, 2, (6, 2)), bool),
    )
    state = (jnp.zeros(3), jnp.zeros((), jnp.int8))
    model = dtypes.Pixels(weights(3, 4), weights(3, 2))
    check(model, inputs, state, exact=True, every=True)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("algo", [etpc.D_RTRL, etpc.RTRL])
def test_traces_of_slow_decays(dtype, algo):
    """The trace is a sum of many small increments, of which half precision loses some."""
    steps = 512 if dtype == jnp.bfloat16 else 2048
    xs = jnp.ones((steps, 2), dtype)
    w, h = jnp.ones(2, dtype), jnp.zeros(2, dtype)
    program = etpc.compile(w, algo(window=4), inputs=xs[0], state=h, step=dtypes.slow)
    targets = jnp.zeros(steps, jnp.float32).at[-1].set(1.0)
    loss = lambda y, target: target * y.astype(jnp.float32).sum()
    (_, carry), grad = program.value_and_grad(loss, "sum")(w, xs, targets, program.init())
    assert grad.dtype == dtype
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(carry.traces))

    def last_trace(dtype):
        run = lambda e, _: (dtypes.slow(jnp.ones((), dtype), jnp.ones((), dtype), e)[1], None)
        return jax.lax.scan(run, jnp.zeros((), dtype), length=steps)[0].astype(float)

    decay = dtypes.DECAYS[dtype]
    expected, lost = (1 - decay**steps) / (1 - decay), last_trace(dtype)
    np.testing.assert_allclose(grad.astype(float), expected, rtol=0.01)
    assert abs(lost / expected - 1) > 0.05
