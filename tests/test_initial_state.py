"""Initial states that a model computes from its parameters: they are learned like any other weight."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests.helpers import by_path, distance, mean_loss, weights
from tests.helpers import loss as squared
from tests.zoo.check import normal

T, B, W = 10, 3, 5


class Learned(eqx.Module):
    """Two states, the first of which begins at a function of two parameters; `recurrent` is optional."""

    h0: jax.Array
    scale: jax.Array
    weight: jax.Array
    leak: jax.Array
    recurrent: jax.Array | None = None

    def init_state(self):
        return jnp.tanh(self.h0) * self.scale, jnp.ones(4), jax.random.key(3)

    def __call__(self, x, state):
        h, c, key = state
        key, _ = jax.random.split(key)
        drive = self.weight @ x
        if self.recurrent is not None:
            drive = drive + self.recurrent @ jnp.tanh(h)
        h = jax.nn.sigmoid(self.leak) * h + drive
        c = 0.5 * c + h**2
        return jnp.tanh(c) * h, (h, c, key)


def model(recurrent=False, seed=0, inputs=2):
    return Learned(
        weights(4, seed=seed),
        jnp.asarray(1.5),
        weights(4, inputs, seed=seed + 1),
        jnp.ones(4),
        weights(4, 4, seed=seed + 2, scale=0.5) if recurrent else None,
    )


XS = normal(B, 2, steps=T)
TARGETS = normal(B, steps=T, seed=1)


def bptt(net, xs=XS, targets=TARGETS):
    """The gradient of sequences that each begin with `init_state()`."""
    return eqx.filter_grad(mean_loss)(net, xs, targets)


RULES = {
    "D-RTRL": etpc.D_RTRL(window=W),
    "step by step": etpc.D_RTRL(window=1),
    "RTRL": etpc.RTRL(window=W),
    "full windows": etpc.D_RTRL(window=W, backprop="full"),
    "look-back": etpc.D_RTRL(window=2, lookback=4),
    "low rank": etpc.ES_D_RTRL(rank=1, window=W),
    "directions": etpc.CreditRTRL(q=8, rank=None, window=W),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recurrent"), list(itertools.product(RULES, [False, True])))
def test_what_is_exact_agrees_with_bptt_at_other_parameters_too(name, recurrent):
    program = etpc.compile(model(recurrent), RULES[name], inputs=XS[0, 0])
    other = model(recurrent, seed=7)
    grads = program.value_and_grad(squared)(other, XS, TARGETS, program.init(B))[1]
    wanted, got = by_path(bptt(other)), by_path(grads)
    exact = [path for path, claim in program.claims.items() if claim.claim == "exact"]
    assert {".h0", ".scale"} <= set(exact) or (recurrent and name != "RTRL")
    assert all(np.abs(got[path]).max() > 1e-6 for path in wanted)
    for path in exact:
        np.testing.assert_allclose(got[path], wanted[path], rtol=1e-9, atol=1e-12)
    if name == "D-RTRL":  # which says where it cuts, of the initial state too
        assert (program.claims[".h0"].claim == "approximate") == recurrent
        assert (distance(grads, bptt(other)) > 1e-2) == recurrent


@pytest.mark.slow
def test_a_carry_passed_on_does_not_begin_again():
    net = model()
    program = etpc.compile(net, RULES["D-RTRL"], inputs=XS[0, 0])
    run, carry, grads = program.value_and_grad(squared, "sum"), program.init(B), []
    for part in (slice(0, 5), slice(5, T)):
        (_, carry), g = run(net, XS[part], TARGETS[part], carry)
        grads.append(g)
    total = jax.tree.map(lambda a, b: (a + b) / T, *grads)
    assert distance(total, bptt(net)) < 1e-9


@pytest.mark.slow
def test_streams_begin_with_the_state_of_the_model_that_runs():
    net, other = model(), model(seed=7)
    program = etpc.compile(net, RULES["D-RTRL"], inputs=XS[0, 0])
    shown = program.init(B, model=other).state[0]
    np.testing.assert_allclose(shown, jnp.broadcast_to(other.init_state()[0], (B, 4)))
    wanted = jax.lax.scan(lambda s, x: other(x, s)[::-1], other.init_state(), XS[:, 0])[1]
    for carry in (program.init(), program.init(model=other)):
        np.testing.assert_allclose(program.scan(other, XS[:, 0], carry)[0], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["reset", "update"])
def test_a_reset_begins_with_the_learned_state_again(at):
    """Two sequences in one stream, with a reset between them, give the gradients of both."""
    net = model()
    program = etpc.compile(net, RULES["D-RTRL"], inputs=XS[0, 0])
    first, second = slice(0, 5), slice(5, T)
    pieces = [bptt(net, XS[part], TARGETS[part]) for part in (first, second)]
    wanted = jax.tree.map(lambda a, b: 5 * a + (T - 5) * b, *pieces)
    if at == "reset":
        run, carry = program.value_and_grad(squared, "sum"), program.init(B)
        (_, carry), one = run(net, XS[first], TARGETS[first], carry)
        carry = program.reset(carry, jnp.ones(B, bool))
        _, two = run(net, XS[second], TARGETS[second], carry)
        got = jax.tree.map(jnp.add, one, two)
    else:
        learner = etpc.online(program, squared, optax.sgd(1.0), every=T, reduction="sum")
        begins = jnp.zeros((T, B), bool).at[5].set(True)
        state, carry = learner.init(net, B)
        after, *_ = learner.update(net, state, carry, XS, TARGETS, begins=begins)
        params = (eqx.filter(m, eqx.is_inexact_array) for m in (net, after))
        got = jax.tree.map(lambda a, b: a - b, *params)
    assert distance(got, wanted) < 1e-9


def test_a_given_state_and_one_without_parameters_are_constants():
    net = model()
    given = etpc.compile(net, inputs=XS[0, 0], state=net.init_state())
    assert given.claims[".h0"].claim == "unused"

    class Shaped(Learned):
        def init_state(self):
            return jnp.zeros_like(self.h0), jnp.ones(4), jax.random.key(3)

    shaped = Shaped(*[getattr(net, f) for f in ("h0", "scale", "weight", "leak")])
    program = etpc.compile(shaped, inputs=XS[0, 0])
    assert program.claims[".h0"].claim == "unused"
    assert program.plan.analysis.step.initial is None


def test_a_model_that_needs_values_for_its_state_still_compiles():
    class Asks(Learned):
        def init_state(self):
            return (jnp.zeros(4) if self.h0[0] > 0 else jnp.ones(4)), jnp.ones(4), jax.random.key(0)

    asks = Asks(*[getattr(model(), f) for f in ("h0", "scale", "weight", "leak")])
    assert etpc.compile(asks, inputs=XS[0, 0]).claims[".h0"].claim == "unused"


@pytest.mark.slow
def test_the_reference_begins_there_too():
    net, W0 = model(), 5
    ours = etpc.bptt(net, XS, TARGETS, squared, batch_size=B)[1]
    assert distance(ours, bptt(net)) < 1e-9
    cut = etpc.bptt(net, XS, TARGETS, squared, batch_size=B, window=W0)[1]
    first = bptt(net, XS[:W0], TARGETS[:W0])
    np.testing.assert_allclose(cut.h0, first.h0 * W0 / T, rtol=1e-9)
    alone = etpc.bptt(net, XS[:, 0], TARGETS[:, 0], squared)[1]
    np.testing.assert_allclose(alone.h0, bptt(net, XS[:, :1], TARGETS[:, :1]).h0, rtol=1e-9)
    given = etpc.bptt(net, XS, TARGETS, squared, batch_size=B, state=net.init_state())[1]
    assert not np.any(given.h0)


@pytest.mark.slow
def test_a_learner_checks_it():
    net = model()
    program = etpc.compile(net, etpc.D_RTRL(window=2), inputs=XS[0, 0])
    learner = etpc.online(program, squared, optax.sgd(0.1), every=4)
    assert learner.check(net, learner.init(net, B)[1], XS, TARGETS) == ()
