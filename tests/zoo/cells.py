"""Recurrent cells beyond those of Equinox, and networks of them."""

import equinox as eqx
import jax
import jax.numpy as jnp

from etpc.nn import MinGRU
from tests.zoo.check import model


class NormalisedLSTM(eqx.Module):
    """An LSTM with layer normalisation of its gates and of its cell."""

    weight_ih: eqx.nn.Linear
    weight_hh: eqx.nn.Linear
    gates: eqx.nn.LayerNorm
    cell: eqx.nn.LayerNorm

    def __init__(self, inputs, size, key):
        one, two = jax.random.split(key)
        self.weight_ih = eqx.nn.Linear(inputs, 4 * size, key=one)
        self.weight_hh = eqx.nn.Linear(size, 4 * size, use_bias=False, key=two)
        self.gates = eqx.nn.LayerNorm(4 * size)
        self.cell = eqx.nn.LayerNorm(size)

    def __call__(self, x, state):
        h, c = state
        i, f, g, o = jnp.split(self.gates(self.weight_ih(x) + self.weight_hh(h)), 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(self.cell(c))
        return h, (h, c)


class Sandwich(eqx.Module):
    """A perceptron, a cell, and another perceptron."""

    before: eqx.nn.MLP | eqx.nn.Identity
    cell: MinGRU
    after: eqx.nn.MLP

    def __init__(self, key, encode=True):
        one, two, three = jax.random.split(key, 3)
        self.before = eqx.nn.Identity()
        if encode:
            self.before = eqx.nn.MLP(2, 2, 3, 1, activation=jnp.tanh, key=one)
        self.cell = MinGRU(2, 3, key=two)
        self.after = eqx.nn.MLP(3, 1, 3, 1, activation=jnp.tanh, key=three)

    def __call__(self, x, h):
        y, h = self.cell(self.before(x), h)
        return self.after(y), h


class ResidualStack(eqx.Module):
    """Cells of one kind with their parameters stacked, as for a scan over layers."""

    cells: MinGRU
    depth: int = eqx.field(static=True)

    def __init__(self, size, depth, key):
        self.depth = depth
        make = lambda key: MinGRU(size, size, key=key)
        self.cells = eqx.filter_vmap(make)(jax.random.split(key, depth))

    def __call__(self, x, state):
        arrays, rest = eqx.partition(self.cells, eqx.is_array)

        def layer(x, given):
            arrays, h = given
            y, h = eqx.combine(arrays, rest)(x, h)
            return x + y, h

        return jax.lax.scan(layer, x, (arrays, state))


@model
def FastWeights(x, h, w, u, v):
    """A recurrent cell that multiplies its input by its state (second order)."""
    h = jnp.tanh(jnp.einsum("ijk,j,k->i", w, x, h) + u @ x + v @ h)
    return h, h
