"""e-prop: as a rule, and as a model under D-RTRL whose readout broadcasts the learning signal.

Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", Nature Communications
11, 3625, 2020: random and adaptive e-prop for LIF neurons and a leaky readout.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc import nn
from tests.helpers import distance, loss, normal
from tests.marks import few, first
from tests.passes.networks import networks
from tests.passes.test_passes import BATCH, data

T, B, I, N, O, ALPHA, KAPPA = 9, 3, 4, 6, 2, 0.9, 0.7
MODEL = {
    "in": normal(N, I),
    "rec": 0.4 * normal(N, N, seed=1),
    "out": normal(O, N, seed=2),
    "back": normal(O, N, seed=3),
}
XS, TARGETS = normal(T, B, I, seed=4), normal(T, B, O, seed=5)
STATE = (jnp.zeros(N),) * 3


@jax.custom_jvp
def spike(v):
    return jnp.where(v > 0, 1.0, 0.0)


spike.defjvp(lambda v, dv: (spike(*v), dv[0] * 0.3 * jnp.maximum(1 - jnp.abs(v[0]), 0)))


def step(m, x, state, adaptive=False):
    v, z, a = state
    v = ALPHA * v + m["in"] @ x + m["rec"] @ z - lax.stop_gradient(z)
    z = spike(v - 1)
    a = KAPPA * a + z
    return nn.broadcast_readout(m["out"], m["back"], a, adaptive=adaptive), (v, z, a)


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_broadcast_readout(adaptive):
    """Under D-RTRL, of a model that filters its spikes before the readout."""
    of_model = functools.partial(step, adaptive=adaptive), STATE
    _, grads = online(etpc.D_RTRL(window=4), of_model, MODEL)
    assert distance(grads, defined(etpc.D_RTRL(), of_model, MODEL)) < 1e-12
    want = grads["out"] if adaptive else 0 * grads["out"]
    np.testing.assert_allclose(grads["back"], want, rtol=0, atol=1e-12)
    assert min(np.abs(grads[name]).max() for name in ("in", "rec", "out")) > 0.1


# --- the rule -----------------------------------------------------------------------------------------------------


def leaky(m, x, state):
    """The readout filters what it reads: `y' = kappa y + W z`."""
    v, z, y = state
    v = ALPHA * v + m["in"] @ x + m["rec"] @ z - lax.stop_gradient(z)
    z = spike(v - 1)
    y = KAPPA * y + m["out"] @ z
    return y, (v, z, y)


def membranes_alone(m, x, state):
    v, y = state
    z = spike(v - 1)
    v = ALPHA * v + m["in"] @ x + m["rec"] @ z - lax.stop_gradient(z)
    y = KAPPA * y + m["out"] @ spike(v - 1)
    return y, (v, y)


WEIGHTS = {name: MODEL[name] for name in ("in", "rec", "out")}
LEAKY = leaky, (jnp.zeros(N), jnp.zeros(N), jnp.zeros(O))
MEMBRANES = membranes_alone, (jnp.zeros(N), jnp.zeros(O))


def online(algo, of_model, model=WEIGHTS):
    step, state = of_model
    program = etpc.compile(model, algo, inputs=XS[0, 0], state=state, step=step)
    run, carry, total = program.value_and_grad(loss, "sum"), program.init(B), None
    for part in (slice(0, 5), slice(5, T)):
        (_, carry), grads = run(model, XS[part], TARGETS[part], carry)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return program, total


def defined(algo, of_model, model=WEIGHTS):
    given = dict(state=of_model[1], step=of_model[0], batch_size=B, reduction="sum")
    return etpc.reference(model, XS, TARGETS, loss, algo, **given)[1]


@pytest.mark.parametrize("network", few(["leaky", "membranes"], "membranes"))
@pytest.mark.parametrize("feedback", first(["symmetric", "random"]))
@pytest.mark.parametrize("window", few([1, 3], 3))
def test_the_readout_is_the_filter(network, feedback, window):
    algo = etpc.EProp(feedback, window=window, seed=4)
    of_model = {"leaky": LEAKY, "membranes": MEMBRANES}[network]
    program, grads = online(algo, of_model)
    assert distance(grads, want := defined(algo, of_model)) < 1e-12
    assert program.claims["['out']"].claim == "exact"
    assert program.claims["['in']"].claim == "approximate"
    left_out = "credit through ['out'] -> fixed random weights in their place"
    assert (left_out in str(program)) == (feedback == "random")
    _, cut = online(etpc.D_RTRL(window=window), MEMBRANES)  # which does not follow the readout
    assert np.abs(cut["in"] - want["in"]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3])
def test_kappa_is_the_filter_where_spikes_are_a_state(window):
    program, grads = online(etpc.EProp(kappa=KAPPA, window=window), LEAKY)
    assert distance(grads, defined(etpc.EProp(kappa=KAPPA), LEAKY)) < 1e-12
    assert distance(grads, online(etpc.EProp(), LEAKY)[1]) < 1e-12  # as the readout leaks so
    assert "low-passed 0.7" in str(program)
    assert program.claims["['in']"].claim == "approximate"


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 3])
def test_kappa_and_random_feedback_of_a_readout_without_memory(window):
    def step(m, x, state):
        _, (v, z, _) = leaky(m, x, (*state, 0.0))
        return m["out"] @ z, (v, z)

    algo, of_model = etpc.EProp("random", KAPPA, seed=4, window=window), (step, LEAKY[1][:2])
    assert distance(online(algo, of_model)[1], defined(algo, of_model)) < 1e-12


@pytest.mark.slow
def test_without_recurrent_weights_symmetric_feedback_is_exact_and_random_is_not():
    def feedforward(m, x, state):
        v, y = state
        v = ALPHA * v + m["in"] @ x
        y = KAPPA * y + m["out"] @ jnp.tanh(v)
        return y, (v, y)

    model = {name: MODEL[name] for name in ("in", "out")}
    network = feedforward, MEMBRANES[1]
    for feedback in ("symmetric", "random"):
        program, _ = online(etpc.EProp(feedback), network, model)
        assert program.exact == (feedback == "symmetric")
        report = etpc.verify(
            *(model, XS, TARGETS, loss, etpc.EProp(feedback, window=2)),
            **dict(state=network[1], step=feedforward, batch_size=B),
        )
        assert report.ok
        assert (report.rows[0].error < 1e-9) == (feedback == "symmetric")
        assert report.rows[1].error < 1e-9  # the readout's own


def test_a_readout_without_memory_makes_it_d_rtrl():
    def step(m, x, v):
        v = ALPHA * v + m["in"] @ x + m["rec"] @ spike(v - 1)
        return m["out"] @ v, v

    network = step, jnp.zeros(N)
    program, grads = online("e-prop", network)
    assert str(program).startswith("EProp(feedback='symmetric', ")
    assert "  (D-RTRL of this model)" in str(program).splitlines()[0]
    _, same = online("d_rtrl", network)
    for name in WEIGHTS:
        np.testing.assert_array_equal(grads[name], same[name])


def test_random_feedback_needs_a_readout():
    network = lambda m, x, v: (v, ALPHA * v + m["in"] @ x), jnp.zeros(N)
    with pytest.raises(etpc.AlgorithmError, match=r"would change nothing.*etpc\.feedback"):
        etpc.compile(
            WEIGHTS, etpc.EProp("random"), inputs=XS[0, 0], state=network[1], step=network[0]
        )
    with pytest.raises(etpc.AlgorithmError, match=r"two filters.*\['out'\].*Leave out kappa"):
        online(etpc.EProp("random", 0.7), LEAKY)


class Leaky(eqx.Module):
    inner: eqx.nn.Linear
    readout: nn.LeakyRateReadout

    def init_state(self):
        return jnp.zeros(N), self.readout.init_state()

    def __call__(self, x, state):
        v = ALPHA * state[0] + self.inner(x)
        y, r = self.readout(jnp.tanh(v), state[1])
        return y, (v, r)


@pytest.mark.slow
def test_a_model_with_random_feedback():
    keys = jax.random.split(jax.random.key(0), 3)
    model = Leaky(eqx.nn.Linear(I, N, key=keys[0]), nn.LeakyRateReadout(N, O, tau=3.0, key=keys[1]))
    other = etpc.feedback(model, lambda m: m.readout, keys[2])
    back = other.readout.back.weight
    assert 0.2 < np.std(back) * np.sqrt(N) < 2
    given = dict(batch_size=B)
    value, exact = etpc.bptt(model, XS, TARGETS, loss, **given)
    value_of_other, grads = etpc.bptt(other, XS, TARGETS, loss, **given)
    assert value == value_of_other
    assert not np.any(grads.readout.back.weight)
    np.testing.assert_allclose(grads.readout.layer.weight, exact.readout.weight, rtol=1e-12)
    swapped = eqx.tree_at(lambda m: m.readout.weight, model, back)
    credit = lambda m: jax.vjp(lambda x: m.readout(x, jnp.zeros(O))[0], jnp.ones(N))[1](jnp.ones(O))
    np.testing.assert_allclose(credit(other)[0], credit(swapped)[0], rtol=1e-12)
    report = etpc.verify(other, XS, TARGETS, loss, etpc.EProp(window=2), **given)
    assert report.ok
    assert (
        report.program.claims[".inner.weight"].claim == "exact"
    )  # of the model with this feedback
    with pytest.raises(etpc.SelectionError, match="no layer with a weight matrix"):
        etpc.feedback(model, lambda m: m.readout.weight, keys[2])


@pytest.mark.slow
def test_random_feedback_through_a_complex_readout():
    """A product of complex numbers, which is several of real ones when it runs."""
    model, state, step = networks()["complex cascade"]
    xs, algo = data()[0], etpc.EProp("random", window=2)
    program = etpc.compile(model, algo, inputs=xs[0, 0], state=state, step=step)
    claims = {path: claim.claim for path, claim in program.claims.items()}
    assert claims == dict.fromkeys(claims, "approximate") | {".out": "exact"}
    y, _ = program.scan(model, xs, program.init(BATCH))
    plain = etpc.compile(model, inputs=xs[0, 0], state=state, step=step)
    np.testing.assert_array_equal(y, plain.scan(model, xs, plain.init(BATCH))[0])
