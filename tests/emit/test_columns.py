"""Parameters that many states share: their immediate Jacobian is read by columns. `tests.passes` has the gradients."""

import jax.numpy as jnp
import pytest

import etpc
from tests.helpers import normal
from tests.passes.networks import whole

N = 36


def one_time_constant(p, x, state):
    """One column; it reaches two states of every neuron."""
    g, v = state
    decay = jnp.exp(-1 / etpc.mark(p["shared"][0]))
    g = decay * g + etpc.mark(p["w"]) @ x
    v = 0.8 * v + jnp.tanh(g)
    return v, (g, v)


def three_gains(p, x, state):
    """Three columns of one colour."""
    g, v = state
    g = 0.7 * g + etpc.mark(p["w"]) @ x
    v = 0.8 * v + (etpc.mark(p["shared"])[:, None] * jnp.tanh(g).reshape(3, -1)).reshape(-1)
    return v, (g, v)


def crossed(p, x, state):
    """Columns that overlap, so that each has a colour; some states are in none."""
    g, v = state
    g = 0.7 * g + etpc.mark(p["w"]) @ x
    v = (0.8 * v).at[:30].add(whole(etpc.mark(p["shared"]), g[:30]))
    return v, (g, v)


MODELS = [one_time_constant, three_gains, crossed]


@pytest.mark.parametrize("step", MODELS)
def test_few_products_read_the_jacobians(step):
    p = {"w": normal(N, 5), "shared": jnp.asarray([3.0, 1.5, 0.7])}
    program = etpc.compile(p, inputs=jnp.zeros(5), state=(jnp.zeros(N),) * 2, step=step)
    colours = program.ir.compression.colours
    assert colours.count <= 2
    assert sum(columns.count for columns in colours.columns.values()) <= 3
    (found,) = colours.columns
    assert program.plan.ops[found].path.startswith("['shared']")
