"""Models with physical units, by saiunit.

A quantity is a PyTree of one array, and its unit is part of the tree's structure. So `jax.grad`, and a program as well,
give gradients in quantities that are labelled with the unit of the *parameter*; their numbers are derivatives with
respect to the numbers of the parameter in that unit. Optax takes that. The unit of the gradient as physics knows it is
that of the loss over that of the parameter, which is what `saiunit.autograd` gives.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.zoo.check import bptt, check, model, normal, online, weights

u = pytest.importorskip("saiunit")
optax = pytest.importorskip("optax")

from etpc.units import physical  # noqa: E402

pytestmark = pytest.mark.slow

INPUTS = jnp.abs(normal(2))
DT = 1.0 * u.ms


START = {"v": jnp.full(3, -60.0) * u.mV, "g": jnp.zeros(3) * u.nS}


@functools.partial(model, start=START)
def COBA(x, state, weight, reversal, leak):
    """A conductance and a membrane potential, which is also the output."""
    g = (state["g"] * 0.8 + weight @ x).in_unit(u.nS)
    current = leak * (-60.0 * u.mV - state["v"]) + g * (reversal - state["v"])
    v = (state["v"] + DT * current / (100.0 * u.pF)).in_unit(u.mV)
    return v, {"v": v, "g": g}


def coba():
    conductances = jnp.abs(weights(3, 2)) * u.nS, jnp.linspace(5.0, 10.0, 3) * u.nS
    return COBA(conductances[0], jnp.linspace(-10.0, 10.0, 3) * u.mV, conductances[1])


@model
def Drifting(x, v, weight):
    """A mistake: the state comes back in another unit."""
    v = (v * 0.9 + weight @ x).in_unit(u.volt)
    return v, v


def compiled():
    model = coba()
    return model, etpc.compile(model, inputs=INPUTS[0])


def in_volts(y, target):
    return jnp.sum((y / (10.0 * u.mV) - target) ** 2)


def test_coba():
    model = coba()
    program = check(model, INPUTS, model.init_state(), exact=True, every=True, loss=in_volts)
    assert {op.block for op in program.ops} == {1, 2}


def test_gradients_have_the_structure_of_the_model_and_physical_ones_the_unit_of_physics():
    model, program = compiled()
    grads = online(program, model, INPUTS, in_volts)
    assert jax.tree.structure(grads) == jax.tree.structure(eqx.filter(model, eqx.is_array))
    assert (grads.weight.unit, grads.reversal.unit) == (u.nS, u.mV)

    def total(weight):
        moved = eqx.tree_at(lambda m: m.weight, model, weight)
        state, losses = moved.init_state(), []
        for t, x in enumerate(INPUTS):
            y, state = moved(x, state)
            losses.append(in_volts(y, jnp.cos(2.0 * t)))
        return sum(losses)

    expected, got = u.autograd.grad(total)(model.weight), physical(grads).weight
    assert expected.unit == got.unit == u.UNITLESS / u.nS
    np.testing.assert_allclose(got.to_decimal(expected.unit), expected.mantissa, rtol=1e-9)


def test_optax_takes_the_gradients():
    model, program = compiled()
    optimiser = optax.adam(0.01)
    parameters = eqx.filter(model, eqx.is_array)
    losses, opt_state = [], optimiser.init(parameters)
    for _ in range(3):
        run = program.value_and_grad(in_volts, "sum")
        (value, _), grads = run(model, INPUTS, jnp.zeros(len(INPUTS)), program.init())
        updates, opt_state = optimiser.update(grads, opt_state)
        model = eqx.apply_updates(model, updates)
        losses.append(float(value))
    assert losses[2] < losses[1] < losses[0]
    assert model.weight.unit == u.nS


def test_marked_quantities():
    def step(model, x, v):
        weight = jax.tree.map(etpc.mark, model)
        v = v * 0.9 + (weight @ x * u.ohm).in_unit(u.mV)
        return v, v

    weight = weights(3, 2, scale=10.0) * u.mA
    program = etpc.compile(weight, inputs=INPUTS[0], state=jnp.zeros(3) * u.mV, step=step)
    assert [op.exact for op in program.ops] == [True]
    expected = bptt(weight, INPUTS, jnp.zeros(3) * u.mV, step)
    got = online(program, weight, INPUTS)
    np.testing.assert_allclose(got.mantissa, expected.mantissa, rtol=1e-9)


def test_a_state_whose_unit_changes():
    model = Drifting(weights(3, 2, scale=10.0) * u.mV)
    with pytest.raises(etpc.ModelError, match=r"(?s)structure of the state.*mV"):
        etpc.compile(model, inputs=INPUTS[0], state=jnp.zeros(3) * u.mV)


def test_a_carry_keeps_its_units():
    model, program = compiled()
    ys, carry = program.scan(model, jnp.stack([INPUTS, INPUTS], 1), program.init(batch_size=2))
    assert ys.unit == u.mV
    assert ys.shape == (len(INPUTS), 2, 3)
    assert carry.state["g"].unit == u.nS


def test_a_loss_with_a_unit_is_refused():
    model, program = compiled()
    with pytest.raises(etpc.InputError, match=r"quantity in mV\^2.*plain number"):
        online(program, model, INPUTS, lambda y, t: u.math.sum((y - t * u.mV) ** 2))
