"""Streams that are not finite: an update without them is that of a batch that they were never in."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests.helpers import arrays, close, normal, same
from tests.marks import first
from tests.test_online import RULES, B, T, data
from tests.zoo.check import model

H, I, BAD, OTHERS = 5, 4, 1, np.array([0, 2])


@functools.partial(model, start=(jnp.zeros(H), jax.random.key(5)))
def Rooted(x, state, win, rec):
    """The derivative of a root at zero is not finite, where the value is."""
    h, key = state
    key, noise = jax.random.split(key)
    h = jnp.tanh(0.7 * h + jnp.sqrt((win @ x) ** 2) + rec @ h + 0.1 * jax.random.normal(noise))
    return h.sum(keepdims=True), (h, key)


def loss(y, target):
    """Where the target is 9, its gradient is not finite, and it is."""
    root = jnp.sqrt((y * (target - 9)) ** 2)
    return jnp.sum((y - target) ** 2 + 0.1 * root), {"y": y}


NET = Rooted(0.4 * normal(H, I), 0.4 * normal(H, H, seed=1))
BREAKS = {
    "input": lambda xs, targets: (xs.at[4, BAD, 0].set(jnp.nan), targets),
    "infinite input": lambda xs, targets: (xs.at[5, BAD, 0].set(-jnp.inf), targets),
    "target": lambda xs, targets: (xs, targets.at[3, BAD].set(jnp.nan)),
    "gradient of the loss": lambda xs, targets: (xs, targets.at[4, BAD].set(9)),
    "gradient of the step": lambda xs, targets: (xs.at[4, BAD].set(0), targets),
}
ALGOS = {**RULES, "credit": etpc.CreditRTRL(2, 2, window=3)}


@functools.cache
def learners(name, every):
    program = etpc.compile(NET, ALGOS[name], inputs=jnp.zeros(I))
    options = dict(every=every, has_aux=True)
    make = functools.partial(etpc.online, program, loss, optax.adam(0.05), **options)
    return make(skip_nonfinite=True), make()


def rows(carry, which=OTHERS):
    """The carry of some examples of a batch."""
    of_each = jax.tree.map(lambda a: a[which], dataclasses.replace(carry, shared=()))
    return dataclasses.replace(of_each, shared=carry.shared)


CASES = [(name, 3, "input") for name in ALGOS]
CASES += [("D", 3, cause) for cause in BREAKS if cause != "input"] + [("D", 1, "input")]
CASES += [("credit", 3, "gradient of the step"), ("decay", 3, "target")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every", "cause"), CASES)
def test_an_update_is_that_without_the_stream(name, every, cause):
    learner, plain = learners(name, every)
    xs, targets = data()
    mask = np.random.default_rng(0).uniform(0.5, 1, (T, B))
    begins = np.zeros((T, B), bool)
    begins[1, 0] = begins[4, 2] = True
    bad_xs, bad_targets = BREAKS[cause](xs, targets)
    start = NET, *learner.init(NET, B)
    options = dict(mask=mask, begins=begins)
    clean = learner.update(*start, xs, targets, **options)
    close(clean[:5], plain.update(*start, xs, targets, **options))
    assert not clean[5].any()

    end = 5 if every == 1 else T
    before = end - every
    piece = dict(xs=bad_xs, targets=bad_targets, **options)
    cut = lambda *where: {name: a[where] for name, a in piece.items()}
    first = plain.update(*start, **cut(slice(before)))
    want = plain.update(*first[:2], rows(first[2]), **cut(slice(before, end), OTHERS))
    got = learner.update(*start, **cut(slice(end)))
    close((got[:2], got[3][-1:], rows(got[2]).state), (want[:2], want[3], want[2].state))
    if name != "credit":  # its next directions are of a batch in which another stream stands in
        close(rows(got[2]), want[2])
    assert differs(want[0], first[0])
    close(got[4]["y"][before:, OTHERS], want[4]["y"])
    assert np.argwhere(got[5]).tolist() == [[end // every - 1, BAD]]

    # The stream begins anew; its noise goes on, and nobody else's is repeated.
    assert got[2].fresh.tolist() == [False, True, False]
    same(learner.program.reset(got[2], got[2].fresh), got[2])
    assert all(np.isfinite(a).all() for a in arrays(got[:3]))
    same(got[2].state[1], plain.update(*start, **cut(slice(end)))[2].state[1])


def differs(one, other):
    return any(np.any(a != b) for a, b in zip(arrays(one), arrays(other), strict=True))


@pytest.mark.parametrize("batch", first([None, B]))
def test_nothing_moves_where_all_streams_are_left_out(batch):
    learner, plain = learners("D", 3)
    xs, targets = data(batch=batch)
    start = NET, *learner.init(NET, batch)
    first = plain.update(*start, xs[:3], targets[:3])
    model, opt_state, carry, losses, _, left_out = learner.update(
        *start, xs.at[4].set(jnp.nan), targets
    )
    close((model, opt_state, losses[0]), (*first[:2], first[3][0]))
    assert losses[1] == 0
    assert not left_out[0].any()
    assert left_out[1].all()
    assert carry.fresh.all()
    assert all(np.isfinite(a).all() for a in arrays(carry))
    again = learner.update(model, opt_state, carry, xs, targets)
    assert differs(again[0], model)
