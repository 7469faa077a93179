"""e-prop: as a rule, and as a model under D-RTRL whose readout broadcasts the learning signal.

Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", Nature Communications
11, 3625, 2020: random and adaptive e-prop for LIF neurons and a leaky readout.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc import nn
from tests.helpers import loss, normal
from tests.marks import few
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


def by_hand(model=MODEL, leak=KAPPA):
    """The low-passed eligibility trace times `sum_k B_kj (y_k - y*_k)`; and the readout, filtered after its weights,
    where its leak is not zero."""
    m = {k: np.asarray(w) for k, w in model.items()}
    grads, spikes = {k: np.zeros_like(w) for k, w in m.items()}, 0
    for b in range(B):
        v, z, y, filtered = np.zeros(N), np.zeros(N), np.zeros(O), np.zeros(N)
        eps, e_bar = np.zeros(I + N), np.zeros((N, I + N))
        for x, target in zip(np.asarray(XS[:, b]), np.asarray(TARGETS[:, b]), strict=True):
            eps = ALPHA * eps + np.concatenate([x, z])
            v = ALPHA * v + m["in"] @ x + m["rec"] @ z - z
            z = (v > 1).astype(float)
            e_bar = KAPPA * e_bar + np.outer(0.3 * np.maximum(1 - np.abs(v - 1), 0), eps)
            y, filtered = leak * y + m["out"] @ z, leak * filtered + z
            error = 2 * (y - target)
            change = (m["back"].T @ error)[:, None] * e_bar / B
            grads["in"] += change[:, :I]
            grads["rec"] += change[:, I:]
            grads["out"] += np.outer(error, filtered) / B
            spikes += z.sum()
    assert spikes > T
    return grads


@pytest.mark.parametrize(
    ("adaptive", "window"), few([(False, 1), (False, 4), (True, 4)], (True, 4))
)
def test_eprop(adaptive, window):
    program = etpc.compile(
        MODEL,
        etpc.D_RTRL(window=window),
        inputs=XS[0, 0],
        state=STATE,
        step=lambda m, x, state: step(m, x, state, adaptive),
    )
    _, grads = program.value_and_grad(loss, "sum")(MODEL, XS, TARGETS, program.init(B))
    want = by_hand()
    want["back"] = want["out"] if adaptive else 0 * want["out"]
    for name in MODEL:
        np.testing.assert_allclose(grads[name], want[name], rtol=0, atol=1e-12)
    assert min(np.abs(want[name]).max() for name in ("in", "rec", "out")) > 0.1


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


def random_weights(seed):
    return np.random.default_rng(seed).normal(size=(O, N)) / np.sqrt(N)


@pytest.mark.parametrize("network", few(["leaky", "membranes"], "membranes"))
@pytest.mark.parametrize("feedback", ["symmetric", "random"])
@pytest.mark.parametrize("window", few([1, 3], 3))
def test_the_readout_is_the_filter(network, feedback, window):
    back = MODEL["out"] if feedback == "symmetric" else random_weights(seed=4)
    algo = etpc.EProp(feedback, window=window, seed=4)
    program, grads = online(algo, {"leaky": LEAKY, "membranes": MEMBRANES}[network])
    want = by_hand(MODEL | {"back": back})
    for name in WEIGHTS:
        np.testing.assert_allclose(grads[name], want[name], rtol=0, atol=1e-12)
    assert program.claims["['out']"].claim == "exact"
    assert program.claims["['in']"].claim == "approximate"
    left_out = "credit through ['out'] -> fixed random weights in their place"
    assert (left_out in str(program)) == (feedback == "random")
    _, cut = online(etpc.D_RTRL(window=window), MEMBRANES)  # which does not follow the readout
    assert np.abs(cut["in"] - want["in"]).max() > 0.1


@pytest.mark.parametrize("window", few([1, 3], 3))
def test_kappa_is_the_filter_where_spikes_are_a_state(window):
    program, grads = online(etpc.EProp(kappa=KAPPA, window=window), LEAKY)
    want = by_hand(MODEL | {"back": MODEL["out"]})
    for name in WEIGHTS:
        np.testing.assert_allclose(grads[name], want[name], rtol=0, atol=1e-12)
    assert "low-passed 0.7" in str(program)
    assert program.claims["['in']"].claim == "approximate"


@pytest.mark.parametrize("window", few([1, 3], 3))
def test_kappa_and_random_feedback_of_a_readout_without_memory(window):
    def step(m, x, state):
        _, (v, z, _) = leaky(m, x, (*state, 0.0))
        return m["out"] @ z, (v, z)

    algo = etpc.EProp("random", KAPPA, seed=4, window=window)
    _, grads = online(algo, (step, LEAKY[1][:2]))
    want = by_hand(MODEL | {"back": random_weights(seed=4)}, leak=0.0)
    for name in WEIGHTS:
        np.testing.assert_allclose(grads[name], want[name], rtol=0, atol=1e-12)


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
