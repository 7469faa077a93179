"""One network written in two styles has one gradient under each rule: rules are of values, not of what is stored.

A neuron may be reset within its step, so that the state is the potential after the reset, or at the start of the next
one, so that the state is the potential before it. Both give the same spikes, and the same gradient of BPTT.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from tests.helpers import distance, normal
from tests.marks import few

T, I, N, M, O = 14, 3, 5, 4, 2
stop = lax.stop_gradient
spike = etpc.surrogate.ReluGrad()


def soft(v, z):
    return v - stop(z)


def live(v, z):
    return v - z


def hard(v, z):
    return v * (1 - stop(z))


def where(v, z):
    return jnp.where(z > 0, 0.0, v)


class Layer(eqx.Module):
    """Neurons, perhaps with adaptation or a synapse before them; `early` if they are reset within the step."""

    reset: str = eqx.field(static=True)
    early: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True, default=False)
    synapse: bool = eqx.field(static=True, default=False)

    def __call__(self, current, state):
        v, a, i = state
        reset = globals()[self.reset]
        if self.synapse:
            i = current = 0.8 * i + current
        fires = lambda v, a: spike(v - 0.4 - (0.6 * a if self.adaptive else 0.0))
        if self.early:
            v = 0.9 * v + current
            z = fires(v, a)
            return z, (reset(v, z), 0.85 * a + z if self.adaptive else a, i)
        z = fires(v, a)
        a = 0.85 * a + z if self.adaptive else a
        v = 0.9 * reset(v, z) + current
        return fires(v, a), (v, a, i)


class Net(eqx.Module):
    """Two layers and a readout; with `back` the second sends its last spikes to the first."""

    w: jax.Array
    u: jax.Array
    out: jax.Array
    back: jax.Array | None
    first: Layer
    second: Layer
    leaky: bool = eqx.field(static=True)

    def init_state(self):
        of = lambda n: (jnp.zeros(n),) * 3
        return of(N), of(M), jnp.zeros(M if self.back is not None else 0), jnp.zeros(O)

    def __call__(self, x, state):
        one, two, z, r = state
        current = self.w @ x + (0.0 if self.back is None else self.back @ z)
        z, one = self.first(current, one)
        z, two = self.second(self.u @ z, two)
        y = r = (0.7 * r if self.leaky else 0.0) + self.out @ z
        return y, (one, two, z if self.back is not None else state[2], r)


def network(early, leaky=True, back=False, **kind):
    layer = Layer(early=early, **kind)
    fed = 0.5 * normal(N, M, seed=3) if back else None
    weights = 0.8 * normal(N, I), 0.8 * normal(M, N, seed=1), normal(O, M, seed=2)
    return Net(*weights, fed, layer, layer, leaky)


DATA = np.abs(normal(T, I, seed=4)), normal(T, O, seed=5)


def loss(y, t):
    return jnp.sum((y - t) ** 2)


def online(model, rule):
    program = etpc.compile(model, rule, inputs=DATA[0][0])
    return program.value_and_grad(loss, "sum")(model, *DATA, program.init())[1]


RULES = {
    "d_rtrl": etpc.D_RTRL(),
    "windows": etpc.D_RTRL(window=3),
    "decay": etpc.ES_D_RTRL(decay=0.8, everywhere=True, window=4),
    "decay where smaller": etpc.ES_D_RTRL(decay=0.8),
    "two decays": etpc.ES_D_RTRL(decay=(0.6, 0.9), everywhere=True),
    "rank": etpc.ES_D_RTRL(rank=1, window=4),
    "e-prop": etpc.EProp(),
    "kappa": etpc.EProp(kappa=0.7),
    "random feedback": etpc.EProp("random"),
    "ostl": etpc.OSTL(),
    "rflo": etpc.RFLO(0.8),
    "ottt": etpc.OTTT(0.8),
    "otpe": etpc.OTPE(0.8),
}
KINDS = {
    "soft": dict(reset="soft"),
    "live": dict(reset="live"),
    "hard": dict(reset="hard"),
    "where": dict(reset="where"),
    "adaptive": dict(reset="soft", adaptive=True),
    "synapse": dict(reset="hard", synapse=True),
    "feedback": dict(reset="soft", back=True),
    "adaptive feedback": dict(reset="live", adaptive=True, back=True),
    "spikes read": dict(reset="soft", leaky=False),
    "adaptive spikes read": dict(reset="hard", adaptive=True, leaky=False),
}
PLAIN = "soft", "feedback", "spikes read"
"""Where both styles carry equal traces; a rank keeps what is largest of what is carried."""
PAIRS = [(kind, rule) for kind in KINDS for rule in RULES if rule != "rank" or kind in PLAIN]


@functools.cache
def exact(kind, early):
    return etpc.bptt(network(early, **KINDS[kind]), *DATA, loss, reduction="sum")[1]


@pytest.mark.parametrize(
    ("kind", "rule"),
    few(PAIRS, ("live", "ostl")),
)
def test_two_styles_of_one_network(kind, rule):
    early, late = (network(early, **KINDS[kind]) for early in (True, False))
    assert distance(exact(kind, True).w, exact(kind, False).w) < 1e-12
    one, two = online(early, RULES[rule]), online(late, RULES[rule])
    assert distance(jax.tree.leaves(one), jax.tree.leaves(two)) < 1e-8
    assert np.linalg.norm(two.w) > 1e-3


def test_what_is_shown_has_the_states_of_the_step():
    """Values that count as new states are in the trace program alone, and nothing of them is carried as a state."""
    rule, model = etpc.OTTT(0.8), network(True, **KINDS["soft"])
    program = etpc.compile(model, rule, inputs=DATA[0][0])
    assert "the value at" not in str(program)
    assert "[0][0]" in program.ops[0].states
    assert not {path for op in program.ops for path in op.states} - {
        *program.plan.analysis.hidden.paths
    }
    assert program.plan.ir.analysis.hidden.transient == 2
    assert program.init().state[0][0].shape == (N,)
    program.draw()
    assert program.plan.again(target=None).analysis is program.plan.analysis
