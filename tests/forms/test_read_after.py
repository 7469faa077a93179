"""In windows of one step a whole trace is read after it has moved, where all credit comes by way of the new states.

`tests.passes` has the gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc import D_RTRL
from etpc.plan import PASSES
from tests.helpers import loss, normal
from tests.marks import first

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
        return m["U"] @ jnp.sin(u) + g[:2] + g[2], (new, g)

    return step, (jnp.zeros(3), jnp.zeros(3))


TWO, THREE = (jnp.zeros(N),) * 2, (jnp.zeros(N),) * 3
# a step, its state, and the parameters whose traces are read after it
CASES = {
    "a product of a product": (  # its own trace alone
        *of_one(lambda m, x, h: m["a"] * h * jnp.cos(h) + (u := m["W"] @ x) + m["V"] @ jnp.sin(u)),
        "aV",
    ),
    "one of two weights": (mixed, TWO, "aW"),
    "a stack": (*packed(lambda parts: jnp.stack(parts).reshape(-1)), "WaV"),
    "a stack, turned round": (*packed(lambda parts: jnp.concatenate(parts)[::-1]), "WaV"),
    "an output that reads the old state": (
        lambda m, x, h: (m["U"] @ h, m["a"] * h * jnp.cos(h) + m["W"] @ x),
        jnp.zeros(N),
        "",
    ),
    "a state that reads the old one": (displaced, THREE, ""),
    "what a slice leaves out": (*in_part(lambda u: u[:3]), "a"),
    "what a split leaves out": (*in_part(lambda u: jnp.split(u, [3])[0]), "a"),
    "what a gather leaves out": (*in_part(lambda u: u[jnp.array([3, 1, 1])]), "a"),
    "what a dynamic slice leaves out": (
        *in_part(lambda u: lax.dynamic_slice(u, (jnp.argmax(lax.stop_gradient(u)),), (3,))),
        "a",
    ),
    "what is overwritten": (*in_part(lambda u: u.at[1].set(0.3)[:3]), "a"),
}


@pytest.mark.parametrize("name", CASES)
def test_which_traces_are_read_after_the_step(name):
    step, state, names = CASES[name]
    program = etpc.compile(MODEL, D_RTRL(window=1), inputs=XS[0, 0], state=state, step=step)
    (report,) = (report for report in program.passes if report.name == "read_after")
    assert {change.path for change in report.changes} == {f"['{n}']" for n in names}


def gradient(step, xs, targets, model, passes=None):
    options = dict(state=jnp.zeros(N), step=step, passes=passes)
    program = etpc.compile(model, D_RTRL(window=1), inputs=xs[0, 0], **options)
    run = program.value_and_grad(loss, "sum")
    (_, carry), first = run(model, xs[:3], targets[:3], program.init(xs.shape[1]))
    (_, carry), second = run(model, xs[3:], targets[3:], carry)
    return {name: first[name] + second[name] for name in first}, carry.traces


@pytest.mark.parametrize("batch", first([3, 12]))
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
        found, traces = gradient(step, xs, targets, model, passes)
        for path in ("W", "U"):
            finite, of_bptt = np.isfinite(found[path]), np.isfinite(wanted[path])
            assert finite[of_bptt].all()
            if passes is BEFORE:
                np.testing.assert_array_equal(finite, of_bptt)
        if passes is BEFORE or where == "of the loss":
            assert np.isnan(found["W"]).any()
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(traces))


@pytest.mark.parametrize("batch", first([1, 3, 12]))
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
    found, _ = gradient(step, xs, targets, model)
    for path in model:
        assert np.isfinite(wanted[path]).all()
        np.testing.assert_allclose(found[path], wanted[path], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 4])
def test_no_trace_of_leaky_neurons_is_copied(batch):
    """Their F is constant. XLA would compute the new trace a second time where it is read, from a copy of the old."""

    def step(m, x, h):
        return m["U"] @ jnp.tanh(new := m["a"] * h + m["W"] @ x + m["V"] @ jnp.tanh(h)), new

    model = {name: MODEL[name] for name in "WVaU"}
    program = etpc.compile(model, D_RTRL(window=1), inputs=XS[0, 0], state=jnp.zeros(N), step=step)
    assert "grad ['W'] = end t" in str(program.ir)
    assert "of several examples" not in str(program.ir)
    run = jax.jit(program.value_and_grad(loss, "sum"), donate_argnums=3)
    xs, targets = (jnp.tile(a[:1, :1], (1, batch, 1)) for a in (XS, TARGETS))
    text = run.lower(model, xs, targets, program.init(batch)).compile().as_text()
    entry = [line for line in text[text.index("ENTRY") :].splitlines() if " copy(" in line]
    for inputs in (I, N):
        assert not [line for line in entry if f"f64[{batch},{N},{inputs}]" in line]
