"""One program, used from several threads at once, gives what it gives in one: on free-threaded Pythons too."""

import functools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

import etpc
from tests.helpers import loss, weights
from tests.zoo.check import model

THREADS, T, B, N = 8, 6, 2, 4


@functools.partial(model, start=(jnp.zeros(N), jax.random.key(0)))
def Network(x, state, into, back):
    """Recurrent, with a sparse matrix, whose connections a program compares and keeps."""
    h, key = state
    key, noise = jax.random.split(key)
    h = 0.5 * h + jnp.tanh(into @ x + back @ h) + 0.1 * jax.random.normal(noise, (N,))
    return h, (h, key)


def network(seed):
    back = sparse.BCOO.fromdense(jnp.eye(N) / 2, nse=N)
    return Network(
        weights(N, 3, seed=seed), eqx.tree_at(lambda m: m.data, back, weights(N, seed=seed))
    )


def job(number, program, learner):
    """All that a program does, on data and weights of its own; T is that of every second thread."""
    model, steps = network(number), T + number % 2
    rng = np.random.default_rng(number)
    xs, targets = rng.normal(size=(steps, B, 3)), rng.normal(size=(steps, B, N))
    carry = program.init(B)
    y, _ = program(model, xs[0], carry)
    ys, _ = program.predict(model, xs, carry)
    (value, carry), grads = program.value_and_grad(loss)(model, xs, targets, carry)
    new, _, last, losses = learner.update(model, *learner.init(model, B), xs[:6], targets[:6])
    carry = program.reset(carry, jnp.array([True, False]))
    text = str(program) + program.explain(".into")
    found = y, ys, value, grads.into, grads.back.data, carry.traces, new.into, last.traces, losses
    return [np.asarray(a) for a in jax.tree.leaves(found)], text


def made():
    program = etpc.compile(network(0), etpc.D_RTRL(window=2), inputs=jnp.zeros(3))
    return program, etpc.online(program, loss, optax.adam(1e-2), every=2)


@pytest.mark.slow
def test_eight_threads():
    shared, alone = made(), made()
    together = threading.Barrier(THREADS)

    def started(number):
        together.wait()  # nothing is compiled yet: all of them ask for it at once
        return job(number, *shared)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(started, range(THREADS), timeout=300))
    finally:
        sys.setswitchinterval(switch)
    seen = set()
    for number, (arrays, text) in enumerate(found):
        wanted, said = job(number, *alone)
        assert text == said
        for a, b in zip(arrays, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
        seen.add(arrays[2].tobytes())
    assert len(seen) == THREADS, "threads had the same data"


@pytest.mark.slow
def test_programs_are_compiled_in_eight_threads():
    with ThreadPoolExecutor(THREADS) as pool:
        texts = list(pool.map(lambda _: str(made()[0]), range(THREADS), timeout=300))
    assert texts == [str(made()[0])] * THREADS
