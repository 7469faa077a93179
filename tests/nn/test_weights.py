"""Sparse and low-rank layers: equations and BPTT; norms of Equinox between weights and states."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import etpc
from etpc import nn
from tests.nn.online import KEY, Leaky, normal, shuffled

T = 11
PAIRS = [(2, 1), (0, 0), (1, 3), (0, 2)]
ROWS, COLUMNS = (np.array(side) for side in zip(*PAIRS, strict=True))


@pytest.mark.slow
def test_low_rank() -> None:
    layer = shuffled(nn.LowRankLinear(6, 5, 2, key=KEY))
    x, dense = normal(6), np.asarray(layer.U) @ np.asarray(layer.V)
    assert np.linalg.matrix_rank(dense) == 2
    expected = dense @ np.asarray(x) + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-13)
    many = nn.LowRankLinear(400, 300, 50, key=KEY)
    np.testing.assert_allclose(jnp.var(many.U @ many.V), 2 / 400, rtol=0.05)


# --- sparse ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sparse_from_indices() -> None:
    layer = shuffled(nn.SparseLinear(4, 3, (ROWS, COLUMNS), key=KEY))
    assert [tuple(map(int, pair)) for pair in layer.indices] == sorted(PAIRS)
    dense = np.zeros((3, 4))
    for (row, column), weight in zip(sorted(PAIRS), layer.weight, strict=True):
        dense[row, column] = weight
    x = normal(4)
    expected = dense @ np.asarray(x) + np.asarray(layer.bias)
    for run in (layer, eqx.filter_jit(layer)):
        np.testing.assert_allclose(run(x), expected, rtol=1e-14)
    lists = nn.SparseLinear(4, 3, (ROWS.tolist(), COLUMNS.tolist()), key=KEY)
    np.testing.assert_array_equal(lists.indices, layer.indices)


@pytest.mark.parametrize("form", [scipy.sparse.csr_array, scipy.sparse.coo_matrix])
def test_sparse_from_a_matrix(form) -> None:
    dense = np.array([[0.5, 0.0, -1.0, 0.0], [0.0, 0.0, 0.0, 2.0], [0.0, 3.0, 0.0, 0.0]])
    layer = nn.SparseLinear(4, 3, form(dense), key=KEY)
    x = normal(4)
    np.testing.assert_allclose(layer(x), dense @ np.asarray(x), rtol=1e-14)


def test_sparse_from_a_density() -> None:
    layer = nn.SparseLinear(500, 400, 0.1, key=KEY)
    rows, columns = layer.indices.T
    np.testing.assert_allclose(len(rows), 0.1 * 500 * 400, rtol=0.03)
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == len(rows)
    for side, size in ((rows, 400), (columns, 500)):
        degrees = np.bincount(side, minlength=size)
        binomial = len(rows) / size * 0.9  # the variance of a degree
        np.testing.assert_allclose(degrees.var(), binomial, rtol=0.2)
    fan_in = np.bincount(rows)[rows]
    np.testing.assert_allclose(np.var(layer.weight * np.sqrt(fan_in)), 2, rtol=0.03)
    again, other = (nn.SparseLinear(500, 400, 0.1, key=k) for k in jax.random.split(KEY))
    assert again.indices.shape != other.indices.shape or (again.indices != other.indices).any()
    whole = nn.SparseLinear(4, 3, 1, key=KEY)
    np.testing.assert_array_equal(whole.indices, np.argwhere(np.ones((3, 4))))


def test_sparse_ensemble() -> None:
    with pytest.raises(etpc.InputError, match="cannot be drawn where key is traced"):
        eqx.filter_vmap(lambda key: nn.SparseLinear(4, 3, 0.5, key=key))(jax.random.split(KEY, 2))


def test_sparse_has_one_trace_entry_for_each_connection() -> None:
    layer = nn.SparseLinear(40, 30, 0.1, key=KEY)
    model = nn.Sequential([layer, Leaky((30,))])
    op, bias = etpc.compile(model, inputs=jnp.zeros(40)).ops
    assert (op.path, op.kind) == (".layers[0].weight", "bcoo_dot_general")
    assert op.trace_shape == (len(layer.weight),)
    assert bias.trace_shape == (30,)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64"])
def test_connections_of_every_integer_type(dtype):
    rows, columns = np.array([0, 3, 100, 3], dtype), np.array([7, 120, 0, 2], dtype)
    layer = nn.SparseLinear(300, 300, (rows, columns), key=KEY)
    plain = nn.SparseLinear(300, 300, (rows.astype(int), columns.astype(int)), key=KEY)
    np.testing.assert_array_equal(layer.indices, plain.indices)
    x = normal(300)
    np.testing.assert_array_equal(layer(x), plain(x))
    steps = np.array([1, 100, 2], dtype)
    delay = nn.Delay(3, steps)
    assert delay.init_state().shape == (100, 3)
