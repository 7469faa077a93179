"""Cells of the literature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from tests.zoo import more_cells as zoo
from tests.zoo.check import T, check, normal, weights

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
H = jnp.zeros(3)
W, R = weights(3, 2), weights(3, 3)


def test_slstm():
    state = (H, H, H + 1.0, H)
    check(zoo.SLSTM(weights(12, 2), weights(12, 3)), normal(2), state)


def test_mlstm():
    state = (jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(()))
    check(zoo.MLSTM(weights(3, 2, 2), weights(2, 2)), normal(2), state, exact=True)


def test_reservoir():
    model = zoo.Reservoir(W, R, weights(3), weights(1, 3))
    dead = (".enter", ".reservoir")
    check(model, normal(2), H, dead=dead, exact=True)


def test_differentiable_plasticity():
    model = zoo.Plastic(R, weights(3, 3, seed=1), jnp.asarray(0.3), W)
    check(model, normal(2), (H, jnp.zeros((3, 3))))


def test_transition_from_the_input():
    check(zoo.InputDependentTransition(weights(3, 3, 2), W), normal(2), H, exact=True)


def test_memory():
    model = zoo.Memory(weights(2, 2), weights(2, 2, seed=1), weights(2, 2, seed=2))
    check(model, normal(2), weights(3, 2, seed=3), exact=True)


def test_learned_start():
    inputs = (normal(2), jnp.arange(T) == 3)
    state = (H, jnp.zeros((), jnp.int32))
    check(zoo.LearnedStart(weights(3), W), inputs, state, exact=True)


def test_scalar_parameters():
    model = zoo.Scalars(W, jnp.asarray(0.4), jnp.asarray(1.3))
    program = check(model, normal(2), H)
    assert {op.path for op in program.ops if op.exact} == {".weight", ".decay", ".gain"}
    assert any(not op.exact for op in program.plan.ops if op.path == ".gain")


def test_competition():
    program = check(zoo.Competition(W, jnp.linspace(0.1, 0.3, 3)), normal(2), H, exact=True)
    assert {op.block for op in program.ops} == {3}


def test_one_cell_twice():
    check(zoo.TwiceACell(eqx.nn.GRUCell(2, 3, key=KEY)), normal(2), H)


def test_leaves_of_every_kind():
    program = check(zoo.Everything(KEY), normal(2), H, exact=True, dead=(".unused",))
    assert "no operation of the step depends on it" in program.untraced[".unused"]


def test_one_einsum_of_two_weights():
    check(zoo.ThreeFactors(weights(3, 2), weights(2, 2)), normal(2), H, exact=True)


def test_products_of_outputs():
    model = zoo.GatedProduct(W, weights(3, 2, seed=1))
    check(model, normal(2), H, exact=True, smoothed=True)


def test_gap_junctions():
    model = zoo.GapJunctions(weights(4, 2), jnp.linspace(0.5, 1.0, 3))
    check(model, normal(2), jnp.zeros(4), exact=True)
