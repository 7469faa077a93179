"""OTPE with one hidden layer, whose spikes are states: its definition, and where it is the gradient."""

import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import OTPE
from tests.helpers import distance, loss, normal

T, B, I, N, O, A = 8, 3, 4, 5, 2, 0.8


MODEL = {"w": normal(N, I), "b": normal(N, seed=4), "out": normal(O, N, seed=1)}
XS, TARGETS = normal(T, B, I, seed=2), normal(T, B, O, seed=3)


def step(m, x, state):
    v, before, r = state
    v = A * v + m["w"] @ x + m["b"]
    s = jnp.tanh(v)  # in the place of a spike with its surrogate derivative
    r = A * r + m["out"] @ s
    return (jnp.sin(r), before), (v, s, r)  # a state that no output reads would not be followed


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 5])
def test_otpe(window):
    state = jnp.zeros(N), jnp.zeros(N), jnp.zeros(O)
    program = etpc.compile(MODEL, OTPE(A, window=window), inputs=XS[0, 0], state=state, step=step)
    run, carry, total = (
        program.value_and_grad(lambda y, t: loss(y[0], t), "sum"),
        program.init(B),
        [0.0, 0.0, 0.0],
    )
    for part in (slice(0, 4), slice(4, T)):
        (_, carry), grads = run(MODEL, XS[part], TARGETS[part], carry)
        total = [a + np.asarray(grads[k]) for a, k in zip(total, MODEL, strict=True)]
    given = dict(state=state, step=step, batch_size=B, reduction="sum")
    of_loss = lambda y, t: loss(y[0], t)
    _, defined = etpc.reference(MODEL, XS, TARGETS, of_loss, OTPE(A), **given)
    assert distance(total, [defined[k] for k in MODEL]) < 1e-12
    assert program.claims["['w']"].claim == "approximate"
    assert "low-passed 0.8" in str(program)
    # the readout leaks as the estimate does, so this is the gradient
    _, exact = etpc.bptt(MODEL, XS, TARGETS, of_loss, **given)
    np.testing.assert_allclose(total[0], exact["w"], rtol=0, atol=1e-12)
