"""Sequences of any length: the last window may be shorter, and the user may pad them to the length of a bucket."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.helpers import arrays, close, finite, normal
from tests.marks import few
from tests.zoo.check import model

W, B, I, N = 4, 2, 3, 4
RULES = {
    "D": etpc.D_RTRL(window=W),
    "decay": etpc.ES_D_RTRL(decay=0.9, window=W),
    "rank": etpc.ES_D_RTRL(rank=2, window=W),
    "full windows": etpc.D_RTRL(window=W, backprop="full"),
    "look-back": etpc.D_RTRL(window=W, lookback=2 * W),
    "directions": etpc.CreditRTRL(q=2, window=W),
}
DEFINED = ("D", "decay", "full windows")
"""The rules that `etpc.reference` has."""


START = jnp.zeros(N), jnp.zeros(N), jnp.zeros((), jnp.int32), jax.random.key(1)


@functools.partial(model, start=START)
def Net(x, state, rec, bias, out):
    """A recurrent layer with noise, a leaky one after it, and a counter."""
    h, g, count, key = state
    key, noise = jax.random.split(key)
    x = x + 0.1 * jax.random.normal(noise, x.shape)
    h = 0.8 * jnp.sin(h) + jnp.tanh(rec @ jnp.concatenate([x, h]) + bias)
    g = 0.9 * jnp.tanh(g) + out @ h
    return g / (1.0 + count), (h, g, count + 1, key)


MODEL = Net(0.5 * normal(N, I + N), 0.1 * normal(N, seed=1), normal(N, N, seed=2))


def loss(y, target):
    return jnp.sum((y - target) ** 2), y[0]


def data(steps, batch):
    lead = (steps,) if batch is None else (steps, batch)
    return normal(*lead, I, seed=3), normal(*lead, N, seed=4), normal(*lead, seed=5) > -0.5


@functools.cache
def program_of(rule):
    return etpc.compile(MODEL, RULES[rule], inputs=jnp.zeros(I))


def gradient(rule, xs, targets, mask, batch, carry=None):
    """The sum of the losses, the carry after it, aux, and the gradient."""
    program = program_of(rule)
    carry = program.init(batch) if carry is None else carry
    run = program.value_and_grad(loss, "sum", has_aux=True)
    (value, (carry, aux)), grads = run(MODEL, xs, targets, carry, mask=mask)
    return value, carry, aux, grads


@pytest.mark.parametrize(("steps", "batch"), few([(6, None), (11, B)], (11, B)))
@pytest.mark.parametrize("rule", few(RULES, "D"))
def test_the_steps_that_remain_are_a_window(rule, steps, batch):
    """After one window and after several: as in two calls, on the whole windows and on the steps that remain."""
    xs, targets, mask = data(steps, batch)
    mask, cut = None if batch is None else mask, steps // W * W
    first, rest = (
        jax.tree.map(lambda a, part=part: a[part], (xs, targets, mask))
        for part in (slice(cut), slice(cut, None))
    )
    value, carry, aux, grads = gradient(rule, *first, batch)
    more, carry, more_aux, more_grads = gradient(rule, *rest, batch, carry)
    assert all(np.abs(g).max() > 1e-3 for g in arrays((grads, more_grads)))
    total = jax.tree.map(jnp.add, (value, grads), (more, more_grads))
    found = gradient(rule, xs, targets, mask, batch)
    close(found, (total[0], carry, jnp.concatenate([aux, more_aux]), total[1]), 1e-10)
    if rule in DEFINED:
        of_step = lambda y, target: loss(y, target)[0]
        sequence = MODEL, xs, targets, of_step, RULES[rule]
        defined = etpc.reference(*sequence, batch_size=batch, mask=mask, reduction="sum")
        close((found[0], found[-1]), defined, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [12, 18])
@pytest.mark.parametrize("rule", RULES)
def test_a_sequence_that_is_padded_to_the_length_of_a_bucket(rule, bucket):
    """Padding ends in the last window, or goes on for a whole one and a part; its mask is zero."""
    sequence = data(10, B)
    value, _, aux, grads = gradient(rule, *sequence, B)
    assert finite(grads)
    longer = lambda a, fill: jnp.concatenate([a, jnp.full((bucket - 10, *a.shape[1:]), fill)])
    xs, targets, mask = map(longer, sequence, (jnp.nan, jnp.nan, False))
    padded = gradient(rule, xs, targets, mask, B)
    close((padded[0], padded[2][:10], padded[3]), (value, aux, grads), 1e-10)
