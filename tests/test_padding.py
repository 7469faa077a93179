"""Sequences whose last window is padded: as if the steps that remain were a window of their own.

The reference calls the program twice, on the whole windows and on the steps that remain, which are then a window that
is not padded. After the last step of the sequence the model of these tests gives no finite number.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn

T, W, B, I, N = 41, 4, 2, 3, 4


class Net(eqx.Module):
    """Spiking neurons and leaky units, with noise and a counter."""

    into: jax.Array
    lif: nn.LIF
    leaky: jax.Array

    def __init__(self):
        first, second = jax.random.split(jax.random.key(0))
        self.into = 3 * jax.random.normal(first, (N, I))
        self.lif = nn.LIF(N)
        self.leaky = jax.random.normal(second, (N, I))

    def init_state(self):
        count, key = jnp.zeros((), jnp.int32), jax.random.key(1)
        return self.lif.init_state(), jnp.zeros(N), count, key

    def __call__(self, x, state):
        V, g, count, key = state
        key, noise = jax.random.split(key)
        spikes, V = self.lif(self.into @ (x + 0.1 * jax.random.normal(noise, x.shape)), V)
        g = 0.9 * g + self.leaky @ x
        left = 1 / jnp.sqrt(1.0 * T - count)  # not finite after the last step
        return jnp.concatenate([spikes, g * left]), (V, g, count + 1, key)


MODEL = Net()


def loss(y, target):
    return jnp.sum((y - target) ** 2), y[0]


def data(steps=T, batch=(B,)):
    keys = jax.random.split(jax.random.key(2), 3)
    xs = jax.random.normal(keys[0], (steps, *batch, I))
    targets = jax.random.normal(keys[1], (steps, *batch, 2 * N))
    return xs, targets, jax.random.bernoulli(keys[2], 0.7, (steps, *batch))


@functools.cache
def program_of(algo):
    return etpc.compile(MODEL, algo, inputs=jnp.zeros(I))


def in_two_calls(program, xs, targets, mask, batch_size):
    """The sum of losses and gradients, the carry and aux."""
    run, cut = program.value_and_grad(loss, "sum", has_aux=True), len(xs) // W * W
    carry, values = program.init(batch_size), []
    for steps in (slice(0, cut), slice(cut, None)):
        part = None if mask is None else mask[steps]
        (value, (carry, aux)), grads = run(MODEL, xs[steps], targets[steps], carry, mask=part)
        values.append((value, aux, grads))
    (value, aux, grads), (more, more_aux, more_grads) = values
    total = lambda a, b: a + b
    return (
        value + more,
        carry,
        jnp.concatenate([aux, more_aux]),
        jax.tree.map(total, grads, more_grads),
    )


def leaves(tree):
    for a in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        yield np.asarray(jax.random.key_data(a) if is_key else a)


def close(found, expected):
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        if np.issubdtype(b.dtype, np.inexact):
            assert np.isfinite(b).all()
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        else:
            np.testing.assert_array_equal(a, b)


RULES = {
    "rank": etpc.ES_D_RTRL(rank=2, window=W),
    "D": etpc.D_RTRL(window=W),
    "RTRL": etpc.RTRL(window=W),
}


CASES = [(rule, masked) for rule in RULES for masked in (False, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "masked"), CASES)
def test_padding_changes_nothing(rule, masked):
    program, (xs, targets, mask) = program_of(RULES[rule]), data()
    assert program.runner.padding(T) == 3
    if masked:  # what is masked may be NaN, the last step too
        mask = mask.at[-1, 0].set(False)
        targets = jnp.where(mask[..., None], targets, jnp.nan)
    mask = mask if masked else None
    (value, (carry, aux)), grads = program.value_and_grad(loss, "sum", has_aux=True)(
        MODEL, xs, targets, program.init(B), mask=mask
    )
    expected = in_two_calls(program, xs, targets, mask, B)
    assert all(np.abs(g).max() > 1e-3 for g in leaves(expected[3]))
    assert aux.shape == (T, B)
    close((value, carry, aux, grads), expected)
    (mean, _), means = program.value_and_grad(loss, "mean", has_aux=True)(
        MODEL, xs, targets, program.init(B), mask=mask
    )
    count = T if mask is None else mask.sum() / B
    close((mean, means), jax.tree.map(lambda a: a / count, (value, grads)))


@pytest.mark.slow
def test_without_a_batch_axis():
    program, (xs, targets, _) = program_of(RULES["D"]), data(batch=())
    (value, (carry, aux)), grads = program.value_and_grad(loss, "sum", has_aux=True)(
        MODEL, xs, targets, program.init()
    )
    close((value, carry, aux, grads), in_two_calls(program, xs, targets, None, None))


def test_inside_jit():
    program, (xs, targets, _) = program_of(RULES["rank"]), data()
    run = program.value_and_grad(loss, "sum", has_aux=True)
    inside = eqx.filter_jit(run)(MODEL, xs, targets, program.init(B))
    close(inside, run(MODEL, xs, targets, program.init(B)))


@pytest.mark.slow
def test_lengths_that_are_padded_to_one_are_compiled_once(caplog):
    program = etpc.compile(MODEL, RULES["D"], inputs=jnp.zeros(I))
    run = program.value_and_grad(loss, has_aux=True)
    compiled = []
    for steps in (41, 42, 43, 44):
        xs, targets, _ = data(steps)
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            run(MODEL, xs, targets, program.init(B))
        compiled.append("Finished XLA compilation of jit(run)" in caplog.text)
    assert compiled == [True, False, False, True]  # a multiple of the window is not padded


def test_what_is_not_padded():
    padding = program_of(RULES["rank"]).runner.padding
    assert {T: padding(T) for T in (3, 5, 29, 30, 39, 40, 41)} == {
        3: 0,
        5: 0,
        29: 0,  # more than a tenth
        30: 2,
        39: 1,
        40: 0,
        41: 3,
    }
    decay = program_of(etpc.ES_D_RTRL(decay=0.9, window=W))  # a step of padding would decay
    full = program_of(etpc.D_RTRL(window=W, backprop="full"))
    assert [p.runner.padding(T) for p in (decay, full)] == [0, 0]
