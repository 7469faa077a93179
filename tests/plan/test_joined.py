"""Products that are added up have one trace: the same gradient as each alone, in less memory."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.forms import Joined
from tests.helpers import normal, weights

T, B, I, N = 12, 3, 2, 5


class Summed(eqx.Module):
    """`a tanh(h) + into @ x + back @ z`."""

    into: jax.Array
    back: jax.Array
    bias: jax.Array
    leak: jax.Array

    def init_state(self):
        return jnp.zeros(N)

    def __call__(self, x, h):
        h = self.leak * jnp.tanh(h) + jnp.tanh(self.into @ x + self.back @ jnp.sin(h) + self.bias)
        return h, h


MODEL = Summed(
    weights(N, I, seed=1), weights(N, N, seed=2), normal(N, seed=3), jnp.linspace(0.3, 0.9, N)
)
XS = normal(T, B, I, seed=4)
RULE = etpc.ES_D_RTRL(decay=0.9)


def test_the_state_factor_of_a_smoothed_trace_is_carried_once():
    one, two = (etpc.compile(MODEL, RULE, inputs=XS[0, 0], passes=p) for p in (None, ()))
    into, back = (p for p in one.plan.ops if p.path in (".into", ".back"))
    assert into.node is back.node
    assert into.trace_shape == back.trace_shape == ((I + N,), (N,))
    assert two.memory(1).total - one.memory(1).total == 8 * (N + 1)  # with the normaliser
    assert one.memory(B).total == sum(a.nbytes for a in jax.tree.leaves(one.init(B)))
    assert (into.trace_bytes, back.trace_bytes) == (8 * (I + N + N + 1), 0)
    assert into.node.site.kind == Joined((into.op.kind, back.op.kind))
    assert "as the products of both are added up" in " ".join(one.explain(".back").split())


def test_what_pictures_show_of_it():
    one = etpc.compile(MODEL, RULE, inputs=XS[0, 0])
    into, back = (p for p in one.plan.ops if p.path in (".into", ".back"))
    _, carry = one.scan(MODEL, XS[:, 0], one.init())
    carry = carry.traces[one.ir.traces.index(into.node)]
    for p, columns in ((into, slice(0, I)), (back, slice(I, None))):
        shown = one.plan.shown(p, carry)
        np.testing.assert_array_equal(shown["input factor"], carry[0][columns])
        np.testing.assert_array_equal(shown["state factor"], carry[1])


def scaled(model, x, h):
    h = jnp.tanh(model["a"] @ x + 2 * (model["b"] @ jnp.sin(h))) + 0.5 * h
    return h, h


def subtracted(model, x, h):
    h = jnp.tanh(model["a"] @ x - model["b"] @ jnp.sin(h)) + 0.5 * h
    return h, h


def added_to_sums(model, x, h):
    h = jnp.tanh((model["a"] @ x + 1) + (model["b"] @ jnp.sin(h) + 2)) + 0.5 * h
    return h, h


def reversed_order(model, x, h):
    h = jnp.tanh(model["a"] @ x + (model["b"] @ jnp.sin(h))[::-1]) + 0.5 * h
    return h, h


def transposed(model, x, h):
    h = jnp.tanh(model["a"] @ x + jnp.sin(h) @ model["b"]) + 0.5 * h
    return h, h


def returned(model, x, h):
    y = model["a"] @ x + model["b"] @ jnp.sin(h)
    return y * h, jnp.tanh(y) + 0.5 * h


def one_alone(model, x, h):
    product = model["a"] @ x
    h = jnp.tanh(product + model["b"] @ jnp.sin(h)) + 0.5 * h
    return h * product, h


@pytest.mark.parametrize(
    ("step", "joins"),
    [
        (scaled, False),
        (subtracted, False),
        (added_to_sums, True),
        (reversed_order, False),
        (transposed, True),
        (one_alone, False),
        (returned, True),
    ],
)
def test_which_products_are_joined(step, joins):
    """Only where the perturbation of each is the same: not where one is scaled, negated, moved or read elsewhere."""
    net = {"a": weights(N, I, seed=1), "b": weights(N, N, seed=2)}
    options = dict(state=jnp.zeros(N), step=step)
    program = etpc.compile(net, RULE, inputs=XS[0, 0], **options)
    assert len(program.ir.traces) == (1 if joins else 2)
    assert len(etpc.compile(net, inputs=XS[0, 0], **options).ir.traces) == 2
