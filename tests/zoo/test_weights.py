"""Whatever operation a weight meets data in."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etpc
from tests.zoo import weights as zoo
from tests.zoo.check import cell, check, normal, weights

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
H = jnp.zeros(3)


EINSUM = {  # shapes of the weight, the data and the state
    "goi,gi->go": ((2, 3, 2), (2, 2), (2, 3)),
    "oi,ti->to": ((3, 2), (2, 2), (2, 3)),
    "hdi,ti->thd": ((2, 2, 3), (2, 3), (2, 2, 2)),
    "goi,tgi->tgo": ((2, 2, 2), (2, 2, 2), (2, 2, 2)),
    "o,i->oi": ((3,), (2,), (3, 2)),
    "i,i->": ((3,), (3,), ()),
    "ii,i->i": ((3, 3), (3,), (3,)),
    "ab,cb->ac": ((2, 3), (2, 3), (2, 2)),
}


def test_einsum():
    """All are parts of one model."""
    model = {e: zoo.Leaky(zoo.Einsum(weights(*w), e)) for e, (w, _, _) in EINSUM.items()}
    inputs = {e: normal(*data) for e, (_, data, _) in EINSUM.items()}
    state = {e: jnp.zeros(shape) for e, (_, _, shape) in EINSUM.items()}

    def step(m, x, h):
        both = {e: m[e](x[e], h[e]) for e in EINSUM}
        return {e: y for e, (y, _) in both.items()}, {e: new for e, (_, new) in both.items()}

    check(model, inputs, state, step, exact=True)


def test_grouped_einsum_smoothed():
    def step(op, x, h):
        """Transitions differ, so that no smaller trace takes the place of the smoothed one."""
        h = 0.8 * jnp.tanh(h) + op(x)
        return h, h

    op = zoo.Einsum(weights(2, 3, 2), "goi,gi->go")
    check(op, normal(2, 2), jnp.zeros((2, 3)), step, exact=True, smoothed=True)


def test_ensemble():
    make = eqx.filter_vmap(lambda key: eqx.nn.GRUCell(2, 3, key=key))
    model = make(jax.random.split(KEY, 2))
    run = eqx.filter_vmap(cell, in_axes=(eqx.if_array(0), None, 0))
    check(model, normal(2), jnp.zeros((2, 3)), run, smoothed=True)


@pytest.mark.parametrize("mark", [etpc.mark, lambda w: etpc.mark(2.0 * w)])
def test_marked(mark):
    model = zoo.Leaky(zoo.Marked(weights(3, 2), weights(3), mark))
    check(model, normal(2), H, exact=True)
    program = etpc.compile(model, inputs=jnp.zeros(2), state=H, weights="marked")
    assert [op.path for op in program.ops] == [".op.weight"]
    assert "not marked" in program.untraced[".op.bias"]
