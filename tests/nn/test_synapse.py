"""Synapses and delays against their equations, and in networks against BPTT."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.helpers import loss
from tests.nn.reference import SLOPE

KEY = jax.random.key(0)
T = 12
SPIKES = np.random.default_rng(0).binomial(1, 0.4, (40, 3)).astype(float)


def run(layer, xs: np.ndarray):
    """The outputs of a sequence."""

    def step(state, x):
        y, state = layer(x, state)
        return state, y

    return np.asarray(jax.lax.scan(step, layer.init_state(), jnp.asarray(xs))[1])


@pytest.mark.parametrize(("tau", "dt"), [(5.0, 1.0), (np.array([2.0, 5.0, 9.0]), 0.3)])
def test_exponential(tau, dt: float) -> None:
    found = run(nn.ExponentialSynapse(3, tau=tau, dt=dt), SPIKES)
    for t in range(40):
        past = [np.exp(-(t - s) * dt / tau) * SPIKES[s] for s in range(t + 1)]
        np.testing.assert_allclose(found[t], sum(past), rtol=1e-12)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("rise", [1.5, np.array([0.5, 1.5, 3.0])])
def test_dual_exponential(rise, normalise: bool) -> None:
    synapse = nn.DualExponentialSynapse(
        3, tau_rise=rise, tau_decay=6.0, normalise=normalise, dt=0.01
    )
    found = run(synapse, np.concatenate([np.ones((1, 3)), np.zeros((1500, 3))]))
    t = 0.01 * np.arange(1501)[:, None]
    shape = np.exp(-t / 6.0) - np.exp(-t / rise)
    if normalise:
        np.testing.assert_allclose(found.max(0), 1, rtol=1e-5)
        shape = shape / shape.max(0)
    np.testing.assert_allclose(found, np.broadcast_to(shape, found.shape), rtol=1e-5, atol=1e-12)


def test_currents() -> None:
    g, V = jnp.array([0.0, 0.5, 2.0]), jnp.array([-70.0, -60.0, -90.0])
    E = np.array([0.0, -70.0, -80.0])
    np.testing.assert_allclose(nn.COBA(3, E=E)(g, V), np.asarray(g) * (E - np.asarray(V)))
    np.testing.assert_allclose(nn.COBA(3)(g, V), -np.asarray(g) * np.asarray(V))


def test_short_term_plasticity() -> None:
    U, tau_f, tau_d, dt = 0.3, 20.0, 9.0, 0.5
    found = run(nn.ShortTermPlasticity(3, U=U, tau_f=tau_f, tau_d=tau_d, dt=dt), SPIKES)
    for k in range(3):
        u, x = 0.0, 1.0
        for t in range(40):
            u = u * np.exp(-dt / tau_f)
            x = 1 - (1 - x) * np.exp(-dt / tau_d)
            efficacy = 0.0
            if SPIKES[t, k]:
                u = u + U * (1 - u)
                efficacy = u * x
                x = x - efficacy
            np.testing.assert_allclose(found[t, k], efficacy, rtol=1e-12)
    first = SPIKES.argmax(0)
    np.testing.assert_allclose(found[first, range(3)], U, rtol=1e-12)


def test_facilitation_and_depression() -> None:
    regular = np.tile([[1.0], [0.0], [0.0], [0.0]], (10, 1))
    facilitating = run(nn.ShortTermPlasticity(1, U=0.05, tau_f=1000.0, tau_d=1.0), regular)[::4]
    depressing = run(nn.ShortTermPlasticity(1, U=0.6, tau_f=1.0, tau_d=500.0), regular)[::4]
    assert (np.diff(facilitating[:, 0]) > 0).all()
    assert (np.diff(depressing[:, 0]) < 0).all()


@pytest.mark.parametrize("steps", [2, np.array([0, 4, 1])])
def test_delay(steps) -> None:
    xs = np.random.default_rng(1).normal(size=(20, 3))
    delay = nn.Delay(3, steps)
    assert delay.init_state().shape == (int(np.max(steps)), 3)
    found = run(delay, xs)
    for k, d in enumerate(np.broadcast_to(steps, 3)):
        np.testing.assert_array_equal(found[:, k], np.r_[np.zeros(d), xs[: 20 - d, k]])


def test_delay_of_a_layer_of_two_dimensions() -> None:
    steps = np.arange(1, 7).reshape(2, 3)
    xs = np.random.default_rng(1).normal(size=(9, 2, 3))
    found = run(nn.Delay((2, 3), steps), xs)
    for i, j in np.ndindex(2, 3):
        d = steps[i, j]
        np.testing.assert_array_equal(found[:, i, j], np.r_[np.zeros(d), xs[: 9 - d, i, j]])


def test_delayed_linear() -> None:
    delays = np.array([[0, 3, 1], [2, 0, 5]])
    layer = nn.DelayedLinear(3, 2, delays, key=KEY)
    weight, xs = np.asarray(layer.weight), np.random.default_rng(1).normal(size=(20, 3))
    found = run(layer, xs)
    for t in range(20):
        for o in range(2):
            arrived = [xs[t - d, i] if t >= d else 0.0 for i, d in enumerate(delays[o])]
            np.testing.assert_allclose(found[t, o], weight[o] @ arrived, rtol=1e-12, atol=1e-15)


class Membrane(eqx.Module):
    """Inputs through a layer into synapses, a neuron, and its spikes through others out."""

    weight: eqx.nn.Linear
    synapse: eqx.Module
    into: nn.COBA
    lif: nn.LIF
    after: eqx.Module | None

    def init_state(self):
        after = self.after.init_state() if self.after is not None else None
        return self.synapse.init_state(), self.lif.init_state(), after

    def __call__(self, x, state):
        synapse, V, after = state
        g, synapse = self.synapse(self.weight(x), synapse)
        y, V = self.lif(self.into(g, V), V)
        if self.after is not None:
            y, after = self.after(y, after)
        return y, (synapse, V, after)


class Delayed(eqx.Module):
    """Delayed inputs into neurons, whose spikes are fed back where `recurrent`."""

    projection: nn.DelayedLinear
    lif: nn.LIF
    recurrent: bool = eqx.field(static=True)

    def init_state(self):
        return self.projection.init_state(), self.lif.init_state()

    def __call__(self, x, state):
        past, V = state
        if self.recurrent:
            x = jnp.concatenate([x, self.lif.spike(V)])
        current, past = self.projection(x, past)
        y, V = self.lif(current, V)
        return y, (past, V)


def membrane(synapse, after=None) -> Membrane:
    return Membrane(
        nn.init(eqx.nn.Linear(3, 2, key=KEY), "normal", KEY, gain=1.5),
        synapse,
        nn.COBA(2, E=np.full(2, 3.0)),
        nn.LIF(2, tau=3.0, surrogate=SLOPE),
        after,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "block"),
    [
        (membrane(nn.ExponentialSynapse(2, tau=np.full(2, 4.0))), 2),
        (
            membrane(
                nn.DualExponentialSynapse(2, tau_rise=np.full(2, 1.0), tau_decay=np.array(4.0)),
                after=nn.Delay(2, np.array([1, 2])),
            ),
            5,
        ),
        (
            membrane(
                nn.ExponentialSynapse(2, tau=4.0),
                after=nn.ShortTermPlasticity(
                    2, U=np.full(2, 0.5), tau_f=np.array(9.0), tau_d=np.full(2, 5.0)
                ),
            ),
            4,
        ),
        (
            Delayed(
                nn.init(
                    nn.DelayedLinear(3, 2, np.arange(6).reshape(2, 3), key=KEY),
                    "normal",
                    KEY,
                    gain=3.0,
                ),
                nn.LIF(2, tau=3.0, surrogate=SLOPE),
                recurrent=False,
            ),
            1,
        ),
    ],
)
def test_in_a_network(network, block: int) -> None:
    xs = jax.random.bernoulli(jax.random.key(1), 0.6, (T, 3)).astype(float)
    targets = jnp.ones((T, 2))
    report = etpc.verify(network, xs, targets, loss, etpc.D_RTRL(window=3))
    assert report.ok, str(report)
    assert {row.claim for row in report.rows} == {"exact"}
    floats = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))
    assert len(report.rows) == len(floats)
    assert max(op.block for op in report.program.ops) == block


@pytest.mark.slow
def test_recurrent_delays_are_cut_at_the_projection() -> None:
    delays = np.array([[1, 2, 3, 1, 3], [2, 1, 1, 2, 1]])
    network = Delayed(
        nn.init(nn.DelayedLinear(5, 2, delays, key=KEY), "normal", KEY, gain=2.0),
        nn.LIF(2, tau=3.0, surrogate=SLOPE),
        recurrent=True,
    )
    program = etpc.compile(network, "d_rtrl", inputs=jnp.zeros(3))
    (op,) = program.ops
    assert not op.exact
    # The potential and the last two spikes of its neuron; the third is read by data that is cut, alone.
    assert op.block == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ExponentialSynapse(2, tau=0.0), "tau must be finite and > 0"),
        (
            lambda: nn.DualExponentialSynapse(2, tau_rise=5.0),
            "tau_decay must be above tau_rise, got tau_decay=5.0 and tau_rise=5.0",
        ),
        (lambda: nn.COBA(2, E=np.ones(3)), r"E has shape \(3,\)"),
        (lambda: nn.ShortTermPlasticity(2, U=1.5), r"U must be at most 1, got 1.5.*\(0, 1\]"),
        (lambda: nn.ShortTermPlasticity(2, U=0.0), "U must be finite and > 0"),
        (lambda: nn.Delay(2, np.array([1, -1])), "steps must be integers >= 0"),
        (lambda: nn.Delay(2, np.array([1.0, 2.0])), r"steps must be integers.*np.round"),
        (lambda: nn.Delay(2, np.ones(3, int)), r"steps has shape \(3,\) where \(2,\) is needed"),
        (lambda: nn.Delay(2, 0), "steps are all zero.*Leave the delay out"),
        (
            lambda: nn.DelayedLinear(2, 3, np.ones((2, 3), int), key=KEY),
            r"delays has shape \(2, 3\)",
        ),
    ],
)
def test_arguments_out_of_range(make, message: str, without_type_checks) -> None:
    with pytest.raises(ValueError, match=message):
        make()
