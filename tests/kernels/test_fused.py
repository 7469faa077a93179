"""The kernel that moves and reads a trace at once, by Pallas's interpreter, against the program without it."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc.kernels import FUSED, Fused, fused
from etpc.kernels._fused import moved_and_read
from etpc.plan import DEFAULT
from tests.helpers import alive, distance, loss, normal

UNITS, INPUTS, T, BATCH = 264, 130, 3, 2


def one_state(m, x, h):
    h = 0.9 * h + jnp.tanh(m["w"] @ x + jnp.tanh(h) @ m["r"])
    return jnp.sum(m["out"] * h)[None], h


def two_states(m, x, state):
    v, a = state
    v, a = 0.9 * v - 0.2 * a + m["w"] @ x + jnp.tanh(v) @ m["r"], 0.8 * a + 0.3 * jnp.tanh(v)
    return jnp.sum(m["out"] * v)[None], (v, a)


MODEL = {
    "w": 0.1 * normal(UNITS, INPUTS),
    "r": 0.05 * normal(UNITS, UNITS, seed=1),
    "out": normal(UNITS, seed=2),
}
STEPS = {"one": (one_state, jnp.zeros(UNITS)), "two": (two_states, (jnp.zeros(UNITS),) * 2)}


def program(step, *passes, target="tpu", rule=etpc.D_RTRL(window=1)):
    step, state = STEPS[step]
    options = dict(inputs=jnp.zeros(INPUTS), state=state, step=step, target=target)
    return etpc.compile(MODEL, rule, passes=(*DEFAULT, *passes), **options)


@pytest.mark.parametrize("step", STEPS)
def test_the_kernel_gives_the_gradients_and_traces_of_the_program(step):
    xs, targets = normal(T, BATCH, INPUTS, seed=3), normal(T, BATCH, 1, seed=4)
    results = []
    for passes in ((), (fused(interpret=True),)):
        one = program(step, *passes)
        used = [isinstance(node.form, Fused) for node in one.ir.traces]
        assert any(used) == bool(passes)
        learner = etpc.online(one, loss, optax.sgd(0.01))
        model, *carried = MODEL, *learner.init(MODEL, BATCH)
        for x, target in zip(xs, targets, strict=True):
            model, *carried, _ = learner.update(model, *carried, x[None], target[None])
        results.append((model, carried))
        run = one.value_and_grad(loss, "sum")
        results[-1] += (run(MODEL, xs, targets, one.init(BATCH))[1],)
    assert alive(results[0][2])
    moved, traces = (carried[-1].traces for _, carried, _ in results)
    assert distance(results[1][0], results[0][0]) < 1e-11
    assert distance(traces, moved) < 1e-11
    assert distance(results[1][2], results[0][2]) < 1e-11


@pytest.mark.parametrize("inputs_last", [True, False])
def test_tiles_at_the_edges_are_partial(inputs_last):
    batch, outputs, inputs, m = 2, 300, 1100, 2
    shape = (batch, outputs, inputs) if inputs_last else (batch, inputs, outputs)
    trace = tuple(normal(*shape, seed=n) for n in range(m))
    transition, added, credit = (normal(batch, n, outputs, seed=5 + n) for n in (m * m, m, m))
    x = normal(batch, 1, inputs, seed=9)
    new, total = moved_and_read(trace, transition, added, credit, x, inputs_last, True)
    plane = "oi" if inputs_last else "io"
    of = functools.partial(np.einsum, optimize=True)
    old = np.stack(trace, 1)
    square = np.asarray(transition).reshape(batch, m, m, outputs)
    wanted = of(f"bpqo,bq{plane}->bp{plane}", square, old)
    wanted = wanted + of(f"bpo,bi->bp{plane}", added, x[:, 0])
    assert distance(np.stack(new, 1), wanted) < 1e-13
    assert distance(total, of(f"bpo,bp{plane}->{plane}", credit, wanted)) < 1e-12


def test_what_is_not_finite_does_not_meet_an_entry_of_zero():
    trace, ones = (jnp.zeros((1, 8, 128)),), jnp.ones((1, 1, 8))
    new, total = moved_and_read(
        trace, jnp.inf * ones, ones, jnp.inf * ones, jnp.zeros((1, 1, 128)), True, True
    )
    assert (new[0] == 0).all()
    assert (total == 0).all()


def test_elsewhere_nothing_changes():
    xs, targets = normal(T, BATCH, INPUTS, seed=3), normal(T, BATCH, 1, seed=4)
    assert str(program("one", FUSED, target="cpu").ir) == str(program("one", target="cpu").ir)
    spread = etpc.Target("tpu", devices=8)
    assert "fused" not in program("one", FUSED, target=spread).passes.fired
    windows = program("one", FUSED, rule=etpc.D_RTRL(window=5))
    assert "fused" in windows.passes.fired
    grads = []
    for passes in ((), (FUSED,)):
        one = program("one", *passes)
        assert [type(node.form) for node in one.ir.traces].count(Fused) == 2 * len(passes)
        grads.append(one.value_and_grad(loss, "sum")(MODEL, xs, targets, one.init(BATCH))[1])
    assert distance(*grads) < 1e-12
