"""States that no output depends on, at any step, have no credit and change no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.analyse import analyse
from etpc.trace import trace
from tests.helpers import loss
from tests.marks import first

_RNG = np.random.default_rng(5)
MODEL = {
    "a": jnp.full(3, 0.8),
    "W": jnp.asarray(_RNG.normal(size=(3, 2))),
    "V": jnp.asarray(_RNG.normal(size=(2, 3))),
    "U": jnp.asarray(_RNG.normal(size=(3, 2))),
}
XS = jnp.asarray(_RNG.normal(size=(7, 2)))


def step_of(log):
    """An exact layer, and a second state that is kept of it: `log(model, h, y, old)`."""

    def step(m, x, state):
        h, old = state
        h = m["a"] * h + m["W"] @ x
        y = m["V"] @ jnp.tanh(h)
        return y, (h, log(m, h, y, old))

    return step


UNREAD = {
    "the output": lambda m, h, y, old: y,
    "an infinite derivative": lambda m, h, y, old: jnp.sqrt(jnp.abs(old) * 0 * y),
    "read by data that is cut, on the way to itself": lambda m, h, y, old: (
        m["V"] @ jnp.tanh(m["U"] @ jnp.tanh(old + y))
    ),
}


@pytest.mark.parametrize("name", first(UNREAD))
def test_an_unread_state_is_no_hidden_state(name):
    step, state = step_of(UNREAD[name]), (jnp.zeros(3), jnp.ones(2))
    program = etpc.compile(MODEL, etpc.D_RTRL(window=2), inputs=XS[0], state=state, step=step)
    claims = {path: claim.claim for path, claim in program.claims.items()}
    assert claims == {"['U']": "unused", "['V']": "exact", "['W']": "exact", "['a']": "exact"}
    assert program.plan.analysis.hidden.paths == ("[0]",)
    assert max(p.block for p in program.ops) == 1
    (_, carry), grads = program.value_and_grad(loss)(MODEL, XS, 0 * XS, program.init())
    _, expected = etpc.bptt(
        MODEL, XS, 0 * XS, loss, state=(state[0], jax.lax.stop_gradient(state[1])), step=step
    )
    for path in ("V", "W", "a"):
        assert np.isfinite(grads[path]).all()
        if name != "an infinite derivative":
            np.testing.assert_allclose(grads[path], expected[path], rtol=1e-9)
    np.testing.assert_array_equal(grads["U"], 0)
    end = state
    for x in XS:
        _, end = step(MODEL, x, end)
    for found, wanted in zip(carry.state, end, strict=True):
        np.testing.assert_allclose(found[0] if found.ndim > wanted.ndim else found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", [etpc.D_RTRL(window=2, lookback=4, backprop="full"), etpc.RTRL(window=2)], ids=str
)
def test_an_infinite_derivative_of_an_unread_state_is_not_met(rule):
    def step(m, x, state):
        y, (h, _) = step_of(UNREAD["the output"])(m, x, (state[0], None))
        return y, (h, jnp.sqrt(jnp.maximum(h, 0.0) * 0 + state[1] * 0))

    state = (jnp.zeros(3), jnp.zeros(3))
    program = etpc.compile(MODEL, rule, inputs=XS[0], state=state, step=step)
    _, grads = program.value_and_grad(loss)(MODEL, XS, 0 * XS, program.init())

    def without(m, x, h):
        y, (h, _) = step_of(UNREAD["the output"])(m, x, (h, None))
        return y, h

    _, expected = etpc.bptt(MODEL, XS, 0 * XS, loss, state=state[0], step=without)
    for path in ("V", "W", "a"):
        np.testing.assert_allclose(grads[path], expected[path], rtol=1e-9)


@pytest.mark.slow
def test_a_new_state_that_only_an_output_reads_keeps_its_credit():
    """The output is the new state, and of one array a part alone is read as an old state."""

    def step(m, x, h):
        h = jnp.concatenate([m["a"][:2] * h[:2] + x, m["V"][:, :2] @ jnp.tanh(h[:2])])
        return h, h

    for rule in (etpc.RTRL(window=2), etpc.RTRL(window=2, backprop="full")):
        program = etpc.compile(MODEL, rule, inputs=XS[0], state=jnp.zeros(4), step=step)
        assert program.claims["['V']"].claim == program.claims["['a']"].claim == "exact"
        targets = jnp.zeros((len(XS), 4))
        _, grads = program.value_and_grad(loss)(MODEL, XS, targets, program.init())
        _, expected = etpc.bptt(MODEL, XS, targets, loss, state=jnp.zeros(4), step=step)
        for path in ("V", "a"):
            np.testing.assert_allclose(grads[path], expected[path], rtol=1e-9, atol=1e-12)


READ = {"at once": lambda y, old: y + old[:2], "through another state": lambda y, old: y + old[2:]}


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_a_state_that_is_read_later_takes_part(name):
    """Negative control: what is kept reaches the output, directly or a step later."""

    def step(m, x, state):
        y, (h, _) = step_of(UNREAD["the output"])(m, x, (state["h"], None))
        kept = state["kept"]
        following = {"h": h, "kept": jnp.concatenate([m["V"] @ h, kept[:2]])}
        return READ[name](y, kept), following

    state = {"h": jnp.zeros(3), "kept": jnp.zeros(4)}
    report = etpc.verify(MODEL, XS, 0 * XS, loss, etpc.D_RTRL(window=2), state=state, step=step)
    assert report.program.plan.analysis.hidden.paths == ("['h']", "['kept']")
    assert {row.claim for row in report.rows if row.path == "['W']"} == {"approximate"}


def test_what_stops_before_the_output_is_unread():
    def step(m, x, state):
        h, spikes = state
        h = m["a"] * h + m["W"] @ x
        y = h + jax.lax.stop_gradient(spikes) + (spikes > 2)
        return y, (h, spikes + m["U"].sum(1) * h)

    state = (jnp.zeros(3), jnp.zeros(3))
    assert analyse(trace(MODEL, XS[0], state, step)).hidden.leaves == (0,)


@pytest.mark.slow
def test_no_state_may_be_read_at_all():
    """Then no weight reaches one, also where its influence would be infinite."""

    def step(m, x, h):
        return m["V"][:, 0] * x, m["a"] * h / (m["a"] - 0.8) + m["W"] @ x

    rule = etpc.D_RTRL(window=2)
    report = etpc.verify(MODEL, XS, 0 * XS, loss, rule, state=jnp.zeros(3), step=step)
    assert all(row.held is not False for row in report.rows), str(report)
    assert [row.claim for row in report.rows] == ["unused", "exact", "unused", "unused"]
    assert not report.program.ir.traces
