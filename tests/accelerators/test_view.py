"""The view of a program for a chip that is not there."""

import jax.numpy as jnp
import pytest

import etpc

pytestmark = [pytest.mark.accelerators, pytest.mark.usefixtures("as_users_have_it")]


@pytest.mark.parametrize(("on", "unit"), [("v5e:2x2", "cycles"), ("h100", "kernels")])
def test_what_an_instruction_costs_and_where_it_comes_from(on, unit):
    def step(model, x, h):
        h = jnp.tanh(model["gain"] * (model["w"] @ h) + x)
        return h, h

    model = {"w": jnp.eye(64), "gain": 1.0}  # a number of Python is no data
    of = dict(state=jnp.zeros(64), step=step, inputs=jnp.zeros(64))
    platform = {"cycles": "tpu", "kernels": "cuda"}[unit]
    program = etpc.compile(model, etpc.ES_D_RTRL(decay=0.9), target=platform, **of)
    hlo = program.view(batch_size=8, on=on).as_dict()["emitted"]["hlo"]
    assert hlo["unit"] == unit
    row = etpc.estimate(
        model, etpc.ES_D_RTRL(decay=0.9), on=on, steps=program.plan.window, batch_size=8, **of
    )
    instructions = [i for c in hlo["computations"] for i in c["instructions"]]
    total = sum(i[unit] for i in instructions)
    assert total > 0
    # An estimate is of an update with its optimiser, and the view of a gradient.
    assert 0.5 < total / (getattr(row.rows[1], unit) * program.plan.window) < 2
    of_terms = sum(i[unit] for i in instructions if i["terms"])
    assert of_terms > total / 2
