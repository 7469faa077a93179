"""Streams that begin inside a window: the gradient is that of each stream alone, under every rule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.helpers import normal
from tests.marks import few
from tests.passes.networks import INPUTS, networks

T, B = 9, 2
XS = normal(T, B, INPUTS, seed=3)
RULES = {
    "D-RTRL": lambda w: etpc.D_RTRL(window=w),
    "decay": lambda w: etpc.ES_D_RTRL(decay=0.9, window=w, everywhere=True),
    "RTRL": lambda w: etpc.RTRL(window=w),
    "SnAp": lambda w: etpc.SnAp(1),
    "full windows": lambda w: etpc.D_RTRL(window=w, backprop="full"),
    "decay, full windows": lambda w: etpc.ES_D_RTRL(
        decay=0.9, window=w, everywhere=True, backprop="full"
    ),
    "look-back": lambda w: etpc.D_RTRL(window=w, lookback=w + 2),
    "decay, look-back": lambda w: etpc.ES_D_RTRL(
        decay=0.9, window=w, everywhere=True, lookback=w + 2
    ),
    "TBPTT": lambda w: etpc.TBPTT(w + 2, every=w),
    "OSTL": lambda w: etpc.OSTL(window=w),
    "fixed leak": lambda w: etpc.RFLO(0.8, "symmetric", window=w),
    "presynaptic": lambda w: etpc.OTTT(0.8, window=w),
    "low-passed": lambda w: etpc.EProp(kappa=0.8, window=w),
    "low-passed, full windows": lambda w: etpc.EProp(kappa=0.8, window=w, backprop="full"),
}
NETWORKS = networks()
BEGINS = np.zeros((T, B), bool)
BEGINS[[4, 5], 0] = BEGINS[[0, 3, 8], 1] = True
WINDOWS = 1, 4, T
FAST = {("GRU", "decay")}
CASES = [
    pytest.param(*(name, rule), 4, marks=())
    if (name, rule) in FAST
    else pytest.param(*(name, rule), WINDOWS[(i + j) % 3], marks=pytest.mark.slow)
    for i, name in enumerate(NETWORKS)
    for j, rule in enumerate(RULES)
]


def loss(y, target):
    return jnp.sum(jnp.abs(y - 0.1) ** 2)


@pytest.mark.parametrize(("name", "rule", "window"), CASES)
def test_each_stream_has_the_gradient_that_it_has_alone(name, rule, window):
    """In pieces that end where a window of the whole ends, as some rules depend on the window."""
    model, state, step = NETWORKS[name]
    program = etpc.compile(model, RULES[rule](window), inputs=XS[0, 0], state=state, step=step)
    run, none = program.value_and_grad(loss, "sum"), jnp.zeros((T, B))
    (value, carry), grads = run(model, XS, none, program.init(B), begins=BEGINS)
    length = program.ir.window.for_sequence(T)
    total, expected = 0.0, None
    for b in range(B):
        alone = program.init()
        for t in range(T):
            alone = program.init() if BEGINS[t, b] else alone
            later = np.flatnonzero(BEGINS[t + 1 :, b])
            end = min(t - t % length + length, T, *(t + 1 + later[:1]))
            if t % length and not BEGINS[t, b]:
                continue  # the piece began before
            piece = XS[t:end, b], none[t:end, b]
            (more, alone), by = run(model, *piece, alone)
            total = total + more / B
            expected = by if expected is None else jax.tree.map(jnp.add, expected, by)
        if program.ir.window.behind:
            continue  # traces stand at an earlier step, which may be of another stream
        last = jax.tree.map(lambda a, b=b: a[b], (carry.state, carry.traces))
        for got, want in zip(
            *map(jax.tree.leaves, (last, (alone.state, alone.traces))), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(value, total, rtol=1e-12)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want / B, rtol=0, atol=1e-10 * (np.abs(want).max() + 1e-9))


@pytest.mark.parametrize(
    "rule",
    [
        etpc.UORO(window=4),
        *few(
            [
                etpc.ES_D_RTRL(rank=1, window=4),
                etpc.D_RTRL(window=4),
                etpc.KFRTRL(window=4),
                etpc.OK(2, window=4),
            ]
        ),
    ],
)
def test_nothing_of_a_stream_is_left_where_another_begins(rule):
    """Leading modes are found by an iteration, whose rounding depends on the number of steps that are reduced together:
    so a stream of low rank is not that of another window to the last digit."""
    model, state, step = NETWORKS["GRU"]
    program = etpc.compile(model, rule, inputs=XS[0, 0], state=state, step=step)
    run, mask = program.value_and_grad(loss, "sum"), np.ones((T, B), bool)
    mask[:5, 0] = False
    found = [
        run(model, xs, jnp.zeros((T, B)), program.init(B), begins=BEGINS, mask=mask)
        for xs in (XS, XS.at[:5, 0].set(3.0))
    ]
    for got, want in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "rule",
    [
        etpc.UORO(window=3),
        *few(
            [
                etpc.CreditRTRL(q=2, window=3),
                etpc.D_RTRL(window=3, lookback=5),
                etpc.CreditRTRL(q=2, window=3, lookback=5),
                etpc.ES_D_RTRL(decay=0.9, window=3, lookback=5),
                etpc.KFRTRL(window=3),
                etpc.OK(2, window=3),
            ]
        ),
    ],
)
def test_a_stream_that_begins_with_a_window_is_that_of_a_reset(rule):
    """Also where influence is followed along directions, which the batch shares."""
    model, state, step = NETWORKS["GRU"]
    program = etpc.compile(model, rule, inputs=XS[0, 0], state=state, step=step)
    run, where = program.value_and_grad(loss, "sum"), jnp.array([False, True])
    begins = jnp.zeros((T, B), bool).at[3].set(where).at[6].set(where)
    (value, _), grads = run(model, XS, jnp.zeros((T, B)), program.init(B), begins=begins)
    total, summed, other = 0.0, jax.tree.map(jnp.zeros_like, grads), program.init(B)
    for n in range(0, T, 3):
        other = program.reset(other, where) if n else other
        (more, other), by = run(model, XS[n : n + 3], jnp.zeros((3, B)), other)
        total, summed = total + more, jax.tree.map(jnp.add, summed, by)
    np.testing.assert_allclose(value, total, rtol=1e-12)
    for got, want in zip(*map(jax.tree.leaves, (grads, summed)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


def test_several_sequences_in_one_row():
    """Sequences of several lengths, one after the other, with neither padding nor a mask."""
    model, state, step = NETWORKS["GRU"]
    program = etpc.compile(model, inputs=XS[0, 0], state=state, step=step)
    run, starts = program.value_and_grad(loss, "sum"), [0, 2, 6, T]
    begins = np.isin(np.arange(T), starts)
    _, grads = run(model, XS[:, 0], jnp.zeros(T), program.init(), begins=begins)
    pieces = [XS[a:b, 0] for a, b in itertools.pairwise(starts)]
    each = [run(model, xs, jnp.zeros(len(xs)), program.init())[1] for xs in pieces]
    expected = jax.tree.map(lambda *g: sum(g), *each)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def test_outputs_of_streams_in_a_scan():
    model, state, step = NETWORKS["LSTM"]
    program = etpc.compile(model, inputs=XS[0, 0], state=state, step=step)
    ys, _ = program.scan(model, XS, program.init(B), begins=BEGINS)
    alone, _ = program.scan(model, XS[5:, :1], program.init(1))
    np.testing.assert_allclose(ys[5:, :1], alone, rtol=0, atol=1e-12)
