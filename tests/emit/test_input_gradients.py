"""Gradients by inputs: of the step's own loss under "cut", of the window's under "full"."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests import models
from tests.marks import few

T = 5


def of_own_steps(model, xs, targets):
    """The gradient of each step's loss by its own input, along the states of the model, by `jax.grad` of the step."""

    def body(state, given):
        x, target = given
        grad = jax.grad(lambda x: models.loss(model(x, state)[0], target))(x)
        return model(x, state)[1], grad

    return jax.lax.scan(body, model.init_state(), (xs, targets))[1]


def of_sequence(model, xs, targets):
    def total(xs):
        def body(state, given):
            y, state = model(given[0], state)
            return state, models.loss(y, given[1])

        return jax.lax.scan(body, model.init_state(), (xs, targets))[1].sum()

    return jax.grad(total)(xs)


def total(program, model, xs, targets, windows, batch=None):
    """The loss of a sequence in some calls of `scan`."""
    carry, loss = program.init(batch), 0.0
    one = models.loss if batch is None else jax.vmap(models.loss)
    for x, target in zip(jnp.split(xs, windows), jnp.split(targets, windows), strict=True):
        ys, carry = program.scan(model, x, carry)
        loss += jax.vmap(one)(ys, target).sum()
    return loss


def distance(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


@pytest.mark.parametrize("name", few(["lif", "cascade", "gru"], "cascade"))
def test_one_exact_window(name):
    model = models.named(name)
    xs, targets = models.data(model, T)
    program = etpc.compile(model, etpc.D_RTRL(backprop="full"), inputs=xs[0])
    by_xs = jax.jit(jax.grad(lambda xs: total(program, model, xs, targets, 1)))(xs)
    expected = of_sequence(model, xs, targets)
    assert distance(by_xs, expected) < 1e-10
    assert distance(of_own_steps(model, xs, targets), expected) > 1e-4  # a control


def test_one_step_from_a_fresh_carry():
    def step(w, x, h):
        h = 0.9 * h + w * x
        return h, h

    program = etpc.compile(jnp.ones(3), inputs=jnp.ones(3), state=jnp.zeros(3), step=step)
    w = jnp.full(3, 2.0)
    by_x = jax.grad(lambda x: program(w, x, program.init())[0].sum())(jnp.ones(3))
    np.testing.assert_array_equal(by_x, w)


@pytest.mark.slow
def test_an_encoder_outside_of_the_program():
    """Weights of the program and of the encoder, in a batch, together and each alone."""
    model = models.named("cascade")
    xs, targets = models.data(model, T, 3)
    encoder = jnp.asarray(np.random.default_rng(0).normal(size=(xs.shape[-1], xs.shape[-1])))
    program = etpc.compile(model, inputs=xs[0, 0])

    def loss(model, encoder):
        return total(program, model, jnp.tanh(xs @ encoder), targets, 1, batch=3)

    both = eqx.filter_grad(lambda pair: loss(*pair))((model, encoder))
    one = eqx.filter_grad(lambda m: loss(m, encoder))(model)
    other = jax.grad(lambda e: loss(model, e))(encoder)
    for got, expected in zip(jax.tree.leaves(both), jax.tree.leaves((one, other)), strict=True):
        assert distance(got, expected) < 1e-12

    def reference(encoder):
        def example(xs, targets):
            grads = of_own_steps(model, jax.lax.stop_gradient(jnp.tanh(xs @ encoder)), targets)
            return jnp.sum(jax.lax.stop_gradient(grads) * jnp.tanh(xs @ encoder))

        return sum(example(xs[:, b], targets[:, b]) for b in range(3))

    assert distance(other, jax.grad(reference)(encoder)) < 1e-10
