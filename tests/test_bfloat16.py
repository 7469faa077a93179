"""The products of a TPU on a CPU, as the benchmark of precisions computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.bfloat16 import products, rounded, to_bfloat16


@pytest.fixture(scope="module", autouse=True)
def _float32():
    with jax.enable_x64(False):
        yield


def drawn(*shape):
    return jax.random.normal(jax.random.key(len(shape)), shape)


def by_numpy(x, w):
    """Of factors that were rounded, added up in float32."""
    x, w = (np.asarray(a.astype(jnp.bfloat16).astype(jnp.float32)) for a in (x, w))
    return x @ w


@jax.custom_jvp
def with_jvp(x, w):
    return x @ w


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0] @ primals[1]))


@jax.custom_vjp
def with_vjp(x, w):
    return x @ w


with_vjp.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))


def in_scan(x, w):
    _, rows = lax.scan(lambda n, row: (n + 1, row @ w), 0, x)
    return rows


def in_reversed_scan(x, w):
    return lax.scan(lambda w, row: (w, row @ w), w, x, reverse=True)[1]


def in_while(x, w):
    """Whose body closes over the factors, and whose condition has a constant."""
    end = jnp.argmax(x[0]) * 0 + 1
    carried = 0, jnp.zeros((len(x), w.shape[1]))
    return lax.while_loop(lambda c: c[0] < end, lambda c: (c[0] + 1, c[1] + x @ w), carried)[1]


def in_cond(x, w):
    return lax.cond(x[0, 0] < jnp.inf, lambda: x @ w, lambda: jnp.zeros((len(x), w.shape[1])))


PLACES = {
    "plain": lambda x, w: x @ w,
    "under vmap": jax.vmap(lambda row, w: row @ w, (0, None)),
    "jit": jax.jit(lambda x, w: x @ w),
    "scan": in_scan,
    "scan, reversed": in_reversed_scan,
    "while": in_while,
    "cond": in_cond,
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "remat": jax.checkpoint(lambda x, w: x @ w),
    "convolution": lambda x, w: lax.conv_general_dilated(
        x[..., None], w.T[..., None], (1,), "VALID"
    )[..., 0],
}


@pytest.mark.parametrize("name", PLACES)
def test_factors_are_rounded_wherever_a_product_is(name):
    function, x, w = PLACES[name], drawn(5, 7), drawn(7, 3) / 3
    want = by_numpy(x, w)
    for run in (rounded(function), jax.jit(rounded(function))):
        np.testing.assert_allclose(run(x, w), want, rtol=1e-6, atol=1e-6)
    assert np.abs(function(x, w) - want).max() > 1e-3  # which is not what a CPU computes
    assert products(jax.make_jaxpr(function)(x, w)) == (1, 1)


@pytest.mark.parametrize("name", PLACES)
def test_products_of_a_higher_precision_are_left_alone(name):
    function, x, w = PLACES[name], drawn(5, 7), drawn(7, 3) / 3
    for precision in ("high", "highest"):
        with jax.default_matmul_precision(precision):
            assert products(jax.make_jaxpr(function)(x, w)) == (1, 0)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(jax.jit(rounded(function))(x, w), jax.jit(function)(x, w))


@pytest.mark.parametrize("name", ["scan", "cond", "custom_jvp", "custom_vjp", "remat"])
def test_products_of_a_derivative_are_rounded_too(name):
    x, w, g = drawn(5, 7), drawn(7, 3) / 3, drawn(5, 3)
    grad = rounded(lambda x, w: jax.vjp(lambda x: PLACES[name](x, w), x)[1](g)[0])(x, w)
    np.testing.assert_allclose(grad, by_numpy(g, w.T), rtol=1e-6, atol=1e-6)


def test_rounding_is_that_of_bfloat16_and_other_numbers_are_left_alone():
    a = jnp.concatenate([drawn(1000), jnp.array([0.0, jnp.inf, 1e-30, 3e38])])
    np.testing.assert_array_equal(jax.jit(to_bfloat16)(a), a.astype(jnp.bfloat16).astype(a.dtype))
    pair = jax.jit(to_bfloat16)(lax.complex(a[:9], a[9:18]))
    np.testing.assert_array_equal(pair.real, to_bfloat16(a[:9]))
    np.testing.assert_array_equal(pair.imag, to_bfloat16(a[9:18]))
    with jax.enable_x64(True):
        exact = np.random.default_rng(0).normal(size=(4, 4))
        np.testing.assert_array_equal(rounded(jnp.matmul)(exact, exact), jnp.matmul(exact, exact))


def test_structure_is_kept_and_what_is_no_product_too():
    function = lambda tree: {"sum": tree["a"].sum(), "pair": (tree["b"] + 1, tree["a"] * tree["a"])}
    tree = {"a": drawn(3, 3), "b": jnp.arange(3)}
    jax.tree.map(np.testing.assert_array_equal, rounded(function)(tree), function(tree))


def test_products_that_are_not_looked_into_are_refused():
    w = jnp.eye(3)
    solve = lambda b: lax.custom_linear_solve(lambda v: w @ v, b, lambda _, b: b)
    with pytest.raises(NotImplementedError, match="linear_solve"):
        rounded(solve)(drawn(3))
    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(rounded(solve)(drawn(3)), drawn(3))
