"""Products that sum nothing are element-wise ones."""

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
    def step(w, x, h):
        h = jnp.tanh(function(w, h)) + x
        return h, h

    return etpc.compile(
        w,
        etpc.D_RTRL(window=2),
        inputs=jnp.zeros(shape),
        state=jnp.zeros(shape),
        step=step,
    )


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
    assert [(p.kind, p.exact) for p in program.ops] == [("dot_general", False)]


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
