"""A whole trace has the order of axes of its weight, so that a gradient is not transposed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests.helpers import loss, normal

I, O, G = 5, 3, 2
PRODUCTS = {
    "outputs first": (lambda w, x: w @ x, (O, I), (O, I)),
    "inputs first": (lambda w, x: x @ w, (I, O), (I, O)),
    "one output": (lambda w, x: (w @ x) * jnp.ones(O), (I,), (1, I)),
    "heads, outputs first": (
        lambda w, x: jnp.einsum("goi,i->go", w, x).sum(0),
        (G, O, I),
        (G * O, I),
    ),
    "inputs in two axes": (
        lambda w, x: jnp.einsum("aob,ab->o", w, jnp.stack([x, x * x])),
        (2, O, I),
        (O, 2 * I),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "states", "window"),
    list(itertools.product(PRODUCTS, [1, 2], [1, 3])),
)
def test_shape_and_gradient(name, states, window):
    function, shape, of_trace = PRODUCTS[name]
    model = {"w": normal(*shape), "leak": jnp.linspace(0.3, 0.8, O)}

    def step(model, x, state):
        h, *slow = state
        h = jnp.tanh(model["leak"] * h + function(model["w"], x) - (slow[0] if slow else 0))
        return h, (h, *(0.9 * s + model["leak"] * h for s in slow))

    xs, targets = normal(6, 4, I, seed=1), normal(6, 4, O, seed=2)
    options = dict(state=(jnp.zeros(O),) * states, step=step)
    _, wanted = etpc.bptt(model, xs, targets, loss, batch_size=4, **options)
    program = etpc.compile(model, etpc.D_RTRL(window=window), inputs=xs[0, 0], **options)
    (op,) = (op for op in program.ops if op.path == "['w']")
    assert op.exact
    block = states * (O if name == "one output" else 1)
    assert op.trace_shape == ((block,) if block > 1 else ()) + of_trace
    _, found = program.value_and_grad(loss)(model, xs, targets, program.init(4))
    for key, value in found.items():
        np.testing.assert_allclose(value, wanted[key], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("states", [1, 2])
def test_a_step_that_learns_copies_no_transpose(states):
    """At each step a trace is read once and written once, and its gradient goes into the update as it is."""
    n = 16
    model = {"w": normal(n, n), "leak": jnp.linspace(0.3, 0.8, n)}

    def step(model, x, state):
        h, *slow = state
        h = jnp.tanh(model["leak"] * h + model["w"] @ x - (slow[0] if slow else 0))
        return h, (h, *(0.9 * s + h for s in slow))

    program = etpc.compile(
        model, "d_rtrl", inputs=jnp.zeros(n), state=(jnp.zeros(n),) * states, step=step
    )
    learner = etpc.online(program, loss, optax.sgd(0.1))
    arguments = (model, *learner.init(model), normal(5, n), normal(5, n, seed=1))
    text = jax.jit(learner.update).lower(*arguments).compile().as_text()
    matrices = [line for line in text.splitlines() if f"f64[{n},{n}]" in line.split("=")[-1][:40]]
    assert matrices
    assert not any("transpose(" in line for line in matrices)
