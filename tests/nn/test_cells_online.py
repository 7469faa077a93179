"""Recurrent cells in small networks against backpropagation through time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import etpc
from etpc import nn
from tests.marks import few
from tests.nn.online import KEY, exact, normal, parameters, shuffled, verify

I, H, T = 3, 4, 11
GATED = (nn.VanillaRNN, eqx.nn.GRUCell, nn.MGU, eqx.nn.LSTMCell)
DIAGONAL = (nn.MinGRU, nn.MinLSTM, nn.IndRNN)


@pytest.mark.parametrize("kind", few([*GATED, *DIAGONAL], eqx.nn.GRUCell, nn.MinLSTM))
def test_d_rtrl(kind) -> None:
    """Exact where no matrix reads the state; else only what no state follows."""
    cell = shuffled(kind(I, H, key=KEY))
    model = nn.Sequential([cell, jnp.sin, eqx.nn.Linear(H, 2, key=KEY)])
    report = verify(model, normal(T, I))
    readout = {".layers[2].weight", ".layers[2].bias"}
    everything = {row.path for row in report.rows}
    assert len(everything) == parameters(cell) + 2
    assert exact(report) == (everything if kind in DIAGONAL else readout)


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
