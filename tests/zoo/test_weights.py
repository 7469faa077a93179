"""Whatever operation a weight meets data in."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import etpc
from tests.zoo import weights as zoo
from tests.zoo.check import cell, check, integers, normal, weights

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
H = jnp.zeros(3)


def drives(op, inputs, *shape, **options):
    """An operation that drives a leaky state."""
    options = {"exact": True, **options}
    return check(zoo.Leaky(op), inputs, jnp.zeros(shape), **options)


# --- convolutions ---------------------------------------------------------------------------------


def test_conv2d_with_groups_and_dilation():
    drives(zoo.Dilated(weights(2, 1, 2, 2)), normal(2, 3, 3), 2, 4, 2)


def test_transposed_convolution():
    op = eqx.nn.ConvTranspose2d(2, 1, 2, stride=2, key=KEY)
    drives(op, normal(2, 2, 2), 1, 4, 4)


def test_depthwise_convolution_of_a_state():
    op = eqx.nn.Conv1d(2, 2, 3, padding="SAME", groups=2, padding_mode="CIRCULAR", key=KEY)
    check(zoo.Rolled(op), normal(2, 4), jnp.zeros((2, 4)))


def test_transposed_convolution_of_a_state():
    op = eqx.nn.ConvTranspose1d(1, 1, 3, padding="SAME", use_bias=False, key=KEY)
    check(zoo.Rolled(op), normal(1, 4), jnp.zeros((1, 4)))


# --- gathers and scatters -------------------------------------------------------------------------


def test_embedding():
    drives(eqx.nn.Embedding(4, 3, key=KEY), integers(4), 3, every=True)


def test_gathers_by_data():
    op = zoo.Take(weights(4, 3), weights(4, 4, 3), weights(3, 4))
    drives(op, integers(4, 2), 3)


def test_edges():
    op = zoo.SegmentSum(weights(5), np.array([0, 0, 1, 2, 2]), np.array([0, 1, 2, 1, 0]), 3)
    drives(op, normal(3), 3)


def test_edges_of_a_state():
    op = zoo.SegmentSum(weights(5), np.array([0, 0, 1, 2, 2]), np.array([0, 1, 2, 1, 0]), 3)
    check(zoo.Rolled(op), normal(3), H)


# --- sparse weights -------------------------------------------------------------------------------

INDICES = ((0, 0), (0, 1), (1, 1), (2, 0))


def test_sparse_recurrence():
    matrix = sparse.BCOO((weights(4), jnp.asarray(INDICES)), shape=(3, 3))
    check(zoo.Rolled(zoo.Sparse(matrix)), normal(3), H + 0.1)


# --- contractions ---------------------------------------------------------------------------------


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


# --- parameters that make a weight ----------------------------------------------------------------


def test_weight_normalisation():
    drives(eqx.nn.WeightNorm(eqx.nn.Linear(2, 3, key=KEY)), normal(2), 3)


def test_signs_and_normalised_rows():
    op = zoo.Dale(weights(3, 2), jnp.array([[1.0, -1.0]] * 3))
    drives(op, normal(2), 3, dead=(".op.sign",))


def test_weight_of_a_network():
    drives(zoo.Hyper(weights(2), eqx.nn.MLP(2, 6, 2, 1, jnp.tanh, key=KEY)), normal(2), 3)


def test_cayley_transform():
    drives(zoo.Orthogonal(weights(3, 3)), normal(3), 3)


def test_slices_of_one_matrix():
    check(zoo.Fused(weights(3, 7)), normal(2), H)


def test_one_matrix_in_and_out():
    check(zoo.Tied(weights(3, 2)), normal(2), H, exact=True)


def test_shared_layers():
    one, two = eqx.nn.Linear(3, 3, key=KEY), eqx.nn.Linear(3, 3, key=jax.random.key(1))
    model = eqx.nn.Shared((one, two), lambda m: m[1].weight, lambda m: m[0].weight)

    def step(model, x, h):
        one, two = model()
        h = jnp.tanh(0.5 * h + one(x))
        return two(h), h

    check(model, normal(3), H, step, exact=True)


# --- weights that act element by element ----------------------------------------------------------


def test_interpolated_table():
    check(zoo.Interpolated(weights(5)), normal(3), H, exact=True)


def test_mixture_of_experts():
    op = zoo.Mixture(eqx.nn.Linear(2, 3, key=KEY), weights(3, 3, 2))
    drives(op, normal(2), 3)


# --- ensembles and marks --------------------------------------------------------------------------


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
