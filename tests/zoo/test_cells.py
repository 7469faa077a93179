"""Recurrent cells: those of Equinox as they are, and what people build of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from tests.marks import few
from tests.zoo import cells
from tests.zoo.check import cell, check, normal, weights

KEY = jax.random.key(0)
H = jnp.zeros(3)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_gru(bias):
    model = eqx.nn.GRUCell(2, 3, use_bias=bias, key=KEY)
    check(model, normal(2), H, cell, smoothed=True, every=bias)


@pytest.mark.parametrize("bias", few([True, False], True))
def test_lstm(bias):
    model = eqx.nn.LSTMCell(2, 3, use_bias=bias, key=KEY)
    program = check(model, normal(2), (H, H), cell)
    assert {op.block for op in program.ops} == {1}  # c; h is read by data that is cut, alone


@pytest.mark.slow
def test_layer_normalisation():
    check(cells.NormalisedLSTM(2, 3, KEY), normal(2), (H + 0.1, weights(3)))


@pytest.mark.slow
def test_mingru():
    model = cells.MinGRU(2, 3, KEY)
    check(model, normal(2), H, exact=True, smoothed=True, every=True)


@pytest.mark.slow
def test_perceptrons_around_a_cell():
    program = check(cells.Sandwich(KEY), normal(2), H)
    assert {op.path for op in program.ops if op.exact} >= {".cell.gate.weight"}
    assert "through other weights" in program.untraced[".before.layers[0].weight"]


@pytest.mark.slow
def test_a_perceptron_after_a_cell():
    check(cells.Sandwich(KEY, encode=False), normal(2), H, exact=True)


@pytest.mark.slow
def test_layers_by_scan():
    check(cells.ResidualStack(2, 2, KEY), normal(2), jnp.zeros((2, 2)))


@pytest.mark.slow
def test_second_order():
    model = cells.FastWeights(weights(3, 2, 3), weights(3, 2), weights(3, 3))
    check(model, normal(2), H + 0.1)
