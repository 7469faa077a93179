"""In windows of one step a whole trace is read after it has moved, where all credit comes by way of the new states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc import D_RTRL
from etpc.plan import PASSES
from etpc.traces import Full
from tests.helpers import loss, normal
from tests.marks import few

T, I, N = 5, 4, 5
XS, TARGETS = normal(T, 3, I, seed=3), normal(T, 3, 2, seed=4)
MODEL = {
    "W": normal(N, I),
    "V": normal(N, N, seed=1),
    "R": normal(N, N, seed=2),
    "a": jnp.full(N, 0.7),
    "U": normal(2, N, seed=5),
}


BEFORE = frozenset(PASSES) - {"read_after"}
"""Every trace is read at the start of its window."""


def of_one(update, output=jnp.tanh):
    def step(m, x, h):
        new = update(m, x, h)
        return m["U"] @ output(new), new

    return step, jnp.zeros(N)


def lstm(m, x, state):
    """No trace holds the output, which weights alone read in the next step."""
    h, c = state
    c = jax.nn.sigmoid(m["a"] + c * 0.1) * c + jnp.tanh(m["W"] @ x + m["V"] @ h)
    h = jax.nn.sigmoid(c) * jnp.tanh(c)
    return m["U"] @ h, (h, c)


def layers(m, x, state):
    """The second layer reads the new output of the first, which no trace holds."""
    h, c, g = state
    c = m["a"] * c + jnp.tanh(m["W"] @ x + m["V"] @ h)
    h = jnp.sin(c)
    g = 0.8 * g * jax.nn.sigmoid(h) + m["R"] @ h
    return m["U"] @ (g + h), (h, c, g)


def adaptive(m, x, state):
    """Two states in one complex number."""
    v, b = state
    z = jnp.tanh(v - b)
    v, b = m["a"] * v - 0.3 * b + m["W"] @ x + m["V"] @ z, 0.9 * b + 0.2 * jnp.sin(v)
    return m["U"] @ jnp.tanh(v - b), (v, b)


def mixed(m, x, state):
    """The second weight is read past the new states, and the first is not."""
    h, g = state
    u = m["V"] @ x[:1].repeat(N)
    h = m["a"] * h * jnp.cos(h) + m["W"] @ x
    g = 0.5 * g * jnp.tanh(g) + u
    return m["U"] @ (h + g * u), (h, g)


def displaced(m, x, state):
    """No trace holds `h`, but the output reads the old `c` by way of it, and a weight that is cut does too."""
    h, c, g = state
    new = m["a"] * c * jnp.cos(c) + m["W"] @ x
    h = jnp.tanh(c) + new
    g = 0.7 * g * jnp.sin(g) + m["R"] @ h
    return m["U"] @ (h * g), (h, new, g)


def packed(pack):
    """One array holds all that the output reads."""

    def step(m, x, state):
        h = jnp.tanh(m["W"] @ x + 0.1 * state[:N])
        g = m["a"] * state[N:] + m["V"] @ state[:N]
        return m["U"] @ (h * g), pack((h, g))

    return step, jnp.zeros(2 * N)


def in_part(part):
    """A part of the product is a new state, and the output reads the rest too."""

    def step(m, x, state):
        h, g = state
        u = m["W"] @ x
        new = part(u)
        g = m["a"][:3] * g + jnp.tanh(new) + 0.1 * jnp.sin(h)
        return m["U"] @ jnp.sin(u) + g[:2], (new, g)

    return step, (jnp.zeros(3), jnp.zeros(3))


TWO, THREE = (jnp.zeros(N),) * 2, (jnp.zeros(N),) * 3
READ_AFTER = {
    "one state": of_one(lambda m, x, h: m["a"] * h * jnp.cos(h) + m["W"] @ x + m["V"] @ h),
    "twice one weight": of_one(
        lambda m, x, h: 0.7 * h * jnp.cos(h) + m["V"] @ h + jnp.tanh(m["V"] @ jnp.tanh(h))
    ),
    "a product of a product": of_one(  # its own trace alone
        lambda m, x, h: m["a"] * h * jnp.cos(h) + (u := m["W"] @ x) + m["V"] @ jnp.sin(u)
    ),
    "an output that weights alone read": (lstm, TWO),
    "two layers": (layers, THREE),
    "two states": (adaptive, TWO),
    "one of two weights": (mixed, TWO),
    "a stack": packed(lambda parts: jnp.stack(parts).reshape(-1)),
    "a stack, turned round": packed(lambda parts: jnp.concatenate(parts)[::-1]),
}
READ_BEFORE = {
    "an output that reads the old state": (
        lambda m, x, h: (m["U"] @ h, m["a"] * h * jnp.cos(h) + m["W"] @ x),
        jnp.zeros(N),
    ),
    "a state that reads the old one": (displaced, THREE),
    "what a slice leaves out": in_part(lambda u: u[:3]),
    "what a split leaves out": in_part(lambda u: jnp.split(u, [3])[0]),
    "what a gather leaves out": in_part(lambda u: u[jnp.array([3, 1, 1])]),
    "what a dynamic slice leaves out": in_part(
        lambda u: lax.dynamic_slice(u, (jnp.argmax(lax.stop_gradient(u)),), (3,))
    ),
    "what is overwritten": in_part(lambda u: u.at[1].set(0.3)[:3]),
}
CASES = READ_AFTER | READ_BEFORE
PAIRED = {"two states", "a stack, turned round"}
"""Whose two states are the parts of a complex number, which of a single example is read before."""


def gradient(case, rule, data=(XS, TARGETS), model=MODEL, passes=None):
    step, state = case
    xs, targets = data
    program = etpc.compile(model, rule, inputs=xs[0, 0], state=state, step=step, passes=passes)
    run = program.value_and_grad(loss, "sum")
    (_, carry), first = run(model, xs[:3], targets[:3], program.init(xs.shape[1]))
    (_, carry), second = run(model, xs[3:], targets[3:], carry)
    return {name: first[name] + second[name] for name in first}, carry.traces


@pytest.fixture
def when(monkeypatch):
    """Whether the trace of a weight with data is read after it has moved, each time that this is asked."""
    answers: list[bool] = []
    read_after = Full.read_after

    def noted(form, site, credit, carry):
        entries = read_after(form, site, credit, carry)
        if site.factored:
            answers.append(entries is not None)
        return entries

    monkeypatch.setattr(Full, "read_after", noted)
    return answers


@pytest.mark.parametrize("batch", few([1, 3], 1))
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_and_the_traces_are_those_of_a_trace_that_is_read_before(name, batch, when):
    data = XS[:, :batch], TARGETS[:, :batch]
    after, moved = gradient(CASES[name], D_RTRL(window=1), data)
    assert any(when) == (name in READ_AFTER and not (name in PAIRED and batch == 1))
    before, kept = gradient(CASES[name], D_RTRL(window=1), data, passes=BEFORE)
    for path in before:
        np.testing.assert_allclose(after[path], before[path], rtol=1e-12, atol=1e-12)
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_window_does_not_matter(name):
    one, _ = gradient(CASES[name], D_RTRL(window=1))
    several, _ = gradient(CASES[name], D_RTRL(window=3))
    for path in one:
        np.testing.assert_allclose(one[path], several[path], rtol=1e-12, atol=1e-12)


def test_windows_of_several_steps_are_read_before(when):
    gradient(READ_AFTER["one state"], D_RTRL(window=3))
    gradient(READ_AFTER["one state"], D_RTRL(window=3, backprop="full"))
    assert not when


@pytest.mark.parametrize("batch", [3, 12])
@pytest.mark.parametrize("where", ["of the loss", "of the state"])
def test_an_infinite_derivative_stays_with_its_example(where, batch):
    """Of the loss, at one step of one example; or at zero, where no influence arrives. There a trace that is read after
    it has moved is zero, and gives zero."""

    def step(m, x, h):
        new = m["a"] * h * jnp.cos(h) + m["W"] @ x
        size = jnp.sqrt(jnp.sum(new**2)) if where == "of the state" else 0.0
        return m["U"] @ new + size, new

    xs, targets = (jnp.tile(a, (1, batch // 3, 1)) for a in (XS, TARGETS))
    if where == "of the state":
        xs = xs.at[:2, 1].set(0)
    else:
        targets = targets.at[2, 1].set(jnp.nan)
    model = {name: MODEL[name] for name in ("a", "W", "U")}
    of_stream = {"state": jnp.zeros(N), "step": step, "batch_size": batch, "reduction": "sum"}
    _, wanted = etpc.bptt(model, xs, targets, loss, **of_stream)
    for passes in (None, BEFORE):
        case, data = (step, jnp.zeros(N)), (xs, targets)
        found, traces = gradient(case, D_RTRL(window=1), data, model, passes)
        for path in ("W", "U"):
            finite, of_bptt = np.isfinite(found[path]), np.isfinite(wanted[path])
            assert finite[of_bptt].all()
            if passes is BEFORE:
                np.testing.assert_array_equal(finite, of_bptt)
        if passes is BEFORE or where == "of the loss":
            assert np.isnan(found["W"]).any()
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(traces))


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_credit_that_is_not_finite_gives_nothing_to_an_entry_that_is_zero(batch):
    """A norm has no derivative at zero, where a relu passes nothing on: backpropagation gives zero."""

    def step(m, x, h):
        new = jax.nn.relu(m["a"] * h + m["W"] @ x - 0.1)
        return m["U"] @ new + jnp.sqrt(jnp.sum(new**2)), new

    xs, targets = (jnp.tile(a, (1, 4, 1))[:, :batch] for a in (XS, TARGETS))
    xs = xs.at[:2, batch // 2].set(0)
    model = {name: MODEL[name] for name in ("a", "W", "U")}
    of_stream = {"state": jnp.zeros(N), "step": step, "batch_size": batch, "reduction": "sum"}
    _, wanted = etpc.bptt(model, xs, targets, loss, **of_stream)
    found, _ = gradient((step, jnp.zeros(N)), D_RTRL(window=1), (xs, targets), model)
    for path in model:
        assert np.isfinite(wanted[path]).all()
        np.testing.assert_allclose(found[path], wanted[path], rtol=1e-12, atol=1e-12)
