"""Recurrent cells against their equations, and in small networks against backpropagation through time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.nn.online import KEY, normal, shuffled

I, H, T = 3, 4, 11


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


# One step of each cell, unit by unit; `W(g)` is a gate's row of the input weights times x plus its
# bias, `U(g)` its row of the recurrent weights times h.


def vanilla(k, W, U, h, cell):
    return np.tanh(W(0) + U(0))


def mgu(k, W, U, h, cell):
    f = sigmoid(W(0) + U(0))
    return (1 - f) * h[k] + f * np.tanh(W(1) + f * U(1))


def min_gru(k, W, U, h, cell):
    z = sigmoid(W(0))
    return (1 - z) * h[k] + z * W(1)


def min_lstm(k, W, U, h, cell):
    f, i = sigmoid(W(0)), sigmoid(W(1))
    return f / (f + i) * h[k] + i / (f + i) * W(2)


def ind_rnn(k, W, U, h, cell):
    return max(W(0) + cell.weight_hh[k] * h[k], 0.0)


EQUATIONS = {
    nn.VanillaRNN: vanilla,
    nn.MGU: mgu,
    nn.MinGRU: min_gru,
    nn.MinLSTM: min_lstm,
    nn.IndRNN: ind_rnn,
}


@pytest.mark.parametrize("kind", EQUATIONS)
def test_equation(kind) -> None:
    cell = shuffled(kind(I, H, key=KEY))
    h = cell.init_state()
    np.testing.assert_array_equal(h, np.zeros(H))
    run = eqx.filter_jit(cell)
    weights = jax.tree.map(np.asarray, cell)
    for x in normal(3, I):

        def one(k, x=np.asarray(x), h=np.asarray(h)):
            W = lambda g: weights.weight_ih[g * H + k] @ x + weights.bias[g * H + k]
            U = lambda g: weights.weight_hh[g * H + k] @ h
            return EQUATIONS[kind](k, W, U, h, weights)

        expected = [one(k) for k in range(H)]
        y, h = run(x, h)
        np.testing.assert_array_equal(y, h)
        np.testing.assert_allclose(h, expected, rtol=1e-13)
    assert np.count_nonzero(np.asarray(h)) > H / 2


def test_min_lstm_with_both_gates_shut() -> None:
    cell = nn.MinLSTM(1, 1, dtype=jnp.float32, key=KEY)
    weight = jnp.array([[-200.0], [-200.0], [1.0]], jnp.float32)
    cell = eqx.tree_at(lambda c: c.weight_ih, cell, weight)
    _, h = cell(jnp.ones(1, jnp.float32), cell.init_state())
    np.testing.assert_allclose(h, [0.5])


@pytest.mark.parametrize("kind", [nn.VanillaRNN, nn.IndRNN])
def test_activation(kind) -> None:
    cell, x = kind(I, H, activation=jnp.sin, key=KEY), normal(I)
    expected = np.sin(np.asarray(cell.weight_ih) @ np.asarray(x))
    np.testing.assert_allclose(cell(x, jnp.zeros(H))[0], expected, rtol=1e-14)


@pytest.mark.parametrize("kind", EQUATIONS)
def test_parameters(kind) -> None:
    cell = kind(I, H, key=KEY)
    assert not cell.bias.any()
    weights = eqx.tree_at(lambda c: c.bias, cell, None)
    drawn = np.concatenate([np.ravel(a) for a in jax.tree.leaves(weights)])
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "gates"), [(eqx.nn.GRUCell, 3), (nn.MGU, 2)])
def test_every_gate_has_a_gradient(kind, gates) -> None:
    """None is cut off, as one in front of a matrix would be."""
    cell = nn.Sequential([kind(I, H, key=KEY)])
    program = etpc.compile(cell, inputs=jnp.zeros(I))

    def loss(cell):
        carry = program.init()
        return jnp.sum(program.scan(cell, normal(3, I), carry)[0])

    weight = jax.grad(loss)(cell).layers[0].weight_ih
    for gate in jnp.split(weight, gates):
        assert jnp.linalg.norm(gate) > 1e-2 * jnp.linalg.norm(weight)
