"""Products that sum nothing are element-wise ones, and complex ones are products of real numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc

_RNG = np.random.default_rng(3)


def normal(*shape):
    return jnp.asarray(_RNG.normal(size=shape))


PAIRS = {
    "a batch": (normal(3), (3,), lambda w, h: jnp.einsum("i,i->i", w, h), lambda w, h: w * h),
    "one weight": (normal(), (3,), jnp.dot, lambda w, h: w * h),
    "free axes of the data": (
        normal(3),
        (2, 3, 4),
        lambda w, h: jnp.einsum("i,aib->aib", w, h),
        lambda w, h: w[None, :, None] * h,
    ),
    "the data first, transposed": (
        normal(2, 3),
        (3, 2),
        lambda w, h: jnp.einsum("ab,ba->ba", h, w).T,
        lambda w, h: w.T * h,
    ),
}


def program_of(function, w, shape):
    step = lambda w, x, h: (jnp.tanh(function(w, h)) + x,) * 2
    return etpc.compile(
        w, etpc.D_RTRL(window=2), inputs=jnp.zeros(shape), state=jnp.zeros(shape), step=step
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_a_product_that_sums_nothing_is_element_wise(name):
    w, shape, product, expected = PAIRS[name]
    found, wanted = (program_of(f, w, shape) for f in (product, expected))
    assert found.exact
    assert [(p.kind, p.block, p.trace_shape) for p in found.ops] == [
        (p.kind, p.block, p.trace_shape) for p in wanted.ops
    ]
    xs = normal(5, *shape)
    loss = lambda y, t: jnp.sum((y - t) ** 2)
    grads = [p.value_and_grad(loss)(w, xs, 0 * xs, p.init())[1] for p in (found, wanted)]
    np.testing.assert_allclose(*grads, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_a_product_that_sums_is_cut_whatever_its_size(size):
    program = program_of(lambda w, h: w @ h, normal(size, size), (size,))
    assert [(p.kind, p.exact) for p in program.plan.ops] == [("dot_general", False)]


def test_the_type_of_the_product_is_kept():
    def product(w, h):
        return jnp.einsum("i,i->i", w, h.astype("bfloat16"), preferred_element_type="float64")

    program = program_of(product, normal(3).astype("bfloat16"), (3,))
    assert [p.kind for p in program.ops] == ["mul"]
    w, x = normal(3).astype("bfloat16"), normal(4, 3)
    ys, _ = program.scan(w, x, program.init())
    h = jnp.zeros(3)
    for t in range(4):
        h = jnp.tanh(product(w, h)) + x[t]
        np.testing.assert_allclose(ys[t], h, rtol=1e-12)


COMPLEX = {
    "real data": ("complex64", "float32", lambda w, x: w @ x),
    "real data in float64": ("complex128", "float64", lambda w, x: w @ x),
    "a real weight": ("float32", "complex64", lambda w, x: w @ x),
    "both complex": ("complex64", "complex64", lambda w, x: w @ x),
    "both real": ("float32", "float32", lambda w, x: w.astype("complex64") @ x),
    "the data first": ("complex64", "float32", lambda w, x: x @ w.T),
    "a batch": (
        *("complex64", "complex64"),
        lambda w, x: jnp.einsum("oi,gi->go", w, jnp.stack([x, 2 * x])).sum(0),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPLEX)
def test_a_product_of_complex_numbers_is_one_of_their_parts(name):
    """No product of complex numbers is compiled, and the gradient is that of backpropagation."""
    of_weight, of_data, product = COMPLEX[name]
    wide = jnp.result_type(of_weight, of_data, "complex64")
    real = jnp.finfo(wide).dtype

    def step(w, x, h):
        seen = x + 1j * x[::-1] if "complex" in of_data else x
        h = 0.5j * h + product(w, seen)
        return jnp.concatenate([h.real, h.imag]), h

    w = normal(3, 4) + (1j * normal(3, 4) if "complex" in of_weight else 0)
    w, xs, targets = w.astype(of_weight), normal(5, 4).astype(real), normal(5, 6).astype(real)
    loss = lambda y, t: jnp.sum((y - t) ** 2)
    state = jnp.zeros(3, wide)
    program = etpc.compile(w, etpc.D_RTRL(window=2), inputs=xs[0], state=state, step=step)
    learn = jax.jit(program.value_and_grad(loss))
    given = w, xs, targets, program.init()
    products = [line for line in learn.lower(*given).as_text().splitlines() if "dot_gen" in line]
    assert products
    assert not any("complex" in line for line in products)
    (found, _), grads = learn(*given)
    wanted, grads_wanted = etpc.bptt(w, xs, targets, loss, state=state, step=step)
    assert program.exact
    assert grads.dtype == w.dtype
    tolerance = 50 * float(jnp.finfo(real).eps)
    np.testing.assert_allclose(found, wanted, rtol=tolerance)
    np.testing.assert_allclose(grads, grads_wanted, rtol=tolerance, atol=tolerance)
