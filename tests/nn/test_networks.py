"""Networks of each kind of layer under D-RTRL against backpropagation through time: what is exact, and its blocks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.marks import few
from tests.nn.online import KEY, Leaky, exact, made, normal, parameters, shuffled, verify
from tests.nn.reference import MODELS, SLOPE

KEYS = jax.random.split(KEY, 3)


def spikes():
    return jax.random.bernoulli(jax.random.key(1), 0.6, (12, 3)).astype(float)


class Driven(eqx.Module):
    """Neurons whose currents are those of conductances."""

    into: nn.COBA
    lif: nn.LIF

    def init_state(self):
        return self.lif.init_state()

    def __call__(self, g, V):
        return self.lif(self.into(g, V), V)


def neuron(name, learned, **options):
    """Weights into neurons, and their spikes weighted: nothing escapes."""
    model = MODELS[name]
    trained = {n: np.full(2, model.arguments[n]) for n in learned.split()}
    layer = model.layer(2, **(model.arguments | trained | options), surrogate=SLOPE)
    mean, deviation = model.drive
    scale = mean + deviation
    hidden = nn.init(eqx.nn.Linear(3, 2, key=KEYS[0]), "normal", KEYS[0], gain=0.6 * scale)
    hidden = eqx.tree_at(lambda m: m.bias, hidden, jnp.full(2, scale))
    out = nn.init(eqx.nn.Linear(2, 2, key=KEYS[1]), "kaiming_normal", KEYS[1])
    return [hidden, layer, out], normal(33, 3), "", len(model.fields)


def membrane(block, synapse, *after):
    """Spikes through weights into synapses and a neuron, whose spikes go through other layers."""
    weight = nn.init(eqx.nn.Linear(3, 2, key=KEY), "normal", KEY, gain=1.5)
    into, lif = nn.COBA(2, E=np.full(2, 3.0)), nn.LIF(2, tau=3.0, surrogate=SLOPE)
    return [weight, synapse, Driven(into, lif), *after], spikes(), "", block


def before_a_leak(layer, block=1, *first):
    return [*first, shuffled(layer), Leaky((4,))], normal(11, 4), "", block


def read_out(layer, path=""):
    """A layer with a state, whose outputs are weighted."""
    layers = [shuffled(layer), jnp.sin, eqx.nn.Linear(4, 2, key=KEY)]
    return layers, normal(11, 4), path, None


def readout(kind):
    return [kind(3, 2, tau=np.array([2.0, 5.0]), key=KEY)], normal(11, 3), "", 1


def two_layers():
    last = nn.Sequential([nn.MinGRU(4, 2, key=KEYS[1]), jnp.sin])
    first = nn.MinGRU(3, 4, key=KEYS[0])
    return [first, jnp.tanh, last], normal(11, 3), ".layers[2].layers[0]", None


def delayed():
    layer = nn.DelayedLinear(3, 2, np.arange(6).reshape(2, 3), key=KEY)
    lif = nn.LIF(2, tau=3.0, surrogate=SLOPE)
    return [nn.init(layer, "normal", KEY, gain=3.0), lif], spikes(), "", 1


def rising():
    times = dict(tau_rise=np.full(2, 1.0), tau_decay=np.array(4.0))
    return membrane(5, nn.DualExponentialSynapse(2, **times), nn.Delay(2, np.array([1, 2])))


def plastic():
    times = dict(U=np.full(2, 0.5), tau_f=np.array(9.0), tau_d=np.full(2, 5.0))
    return membrane(4, nn.ExponentialSynapse(2, tau=4.0), nn.ShortTermPlasticity(2, **times))


def normed(norm, block):
    return before_a_leak(norm, block, eqx.nn.Linear(4, 4, key=KEY))


GATED = (nn.VanillaRNN, eqx.nn.GRUCell, nn.MGU, eqx.nn.LSTMCell)
ALONE = (nn.MinGRU, nn.MinLSTM, nn.IndRNN)
NOT_LINEAR = {"linear": False, "activation": jnp.tanh}
NETWORKS = {
    # layers, inputs, the beginning of the paths that are exact, and the largest block
    **{kind.__name__: lambda kind=kind: read_out(kind(4, 4, key=KEY)) for kind in ALONE},
    **{
        kind.__name__: lambda kind=kind: read_out(kind(4, 4, key=KEY), ".layers[2]")
        for kind in GATED
    },
    "LRU": lambda: read_out(made(nn.LRU)),
    "S5": lambda: read_out(made(nn.S5, state_size=8, step_max=1.0)),
    "RTU": lambda: read_out(made(nn.RTU, state_size=2)),
    "RTU, non-linear": lambda: read_out(made(nn.RTU, state_size=2, **NOT_LINEAR)),
    "two layers": two_layers,
    "LIF": lambda: neuron("LIF", "tau V_th", refractory=1.0),
    "ALIF": lambda: neuron("ALIF", "tau_a beta"),
    "ALIF, detached": lambda: neuron("ALIF", "beta", refractory=1.0, detach_reset=True),
    "GIF": lambda: neuron("GIF", "A2 V_th_reset"),
    "QIF": lambda: neuron("QIF", "c V_reset"),
    "EIF": lambda: neuron("EIF", "delta_T", detach_reset=True),
    "AdEx": lambda: neuron("AdEx", "a b", refractory=1.0),
    "Izhikevich": lambda: neuron("Izhikevich", "b d"),
    "resonators": lambda: neuron("ResonateAndFire", "omega tau", refractory=1.0, reset="hard"),
    "a synapse": lambda: membrane(2, nn.ExponentialSynapse(2, tau=np.full(2, 4.0))),
    "a synapse that rises, and a delay": rising,
    "plasticity": plastic,
    "delayed inputs": delayed,
    "LeakyRateReadout": lambda: readout(nn.LeakyRateReadout),
    "MembraneReadout": lambda: readout(nn.MembraneReadout),
    "DaleLinear": lambda: before_a_leak(made(nn.DaleLinear)),
    "LowRankLinear": lambda: before_a_leak(made(nn.LowRankLinear)),
    "SparseLinear": lambda: before_a_leak(made(nn.SparseLinear)),
    "LayerNorm": lambda: normed(eqx.nn.LayerNorm(4), 4),
    "RMSNorm": lambda: normed(eqx.nn.RMSNorm(4), 4),
    "GroupNorm": lambda: normed(eqx.nn.GroupNorm(2, 4), 2),
}


@pytest.mark.parametrize("name", few(NETWORKS, "GRUCell"))
def test_d_rtrl(name) -> None:
    layers, xs, path, block = NETWORKS[name]()
    model = nn.Sequential(layers)
    report = verify(model, xs)
    everything = {row.path for row in report.rows}
    assert len(everything) == parameters(model)
    assert exact(report) == {row for row in everything if row.startswith(path)}
    assert block is None or block == max(op.block for op in report.program.ops)


@pytest.mark.slow
def test_recurrent_delays_are_cut_at_the_projection() -> None:
    delays = np.array([[1, 2, 3, 1, 3], [2, 1, 1, 2, 1]])
    layer = nn.init(nn.DelayedLinear(5, 2, delays, key=KEY), "normal", KEY, gain=2.0)
    lif = nn.LIF(2, tau=3.0, surrogate=SLOPE)

    def step(layer, x, state):
        current, past = layer(jnp.concatenate([x, lif.spike(state[1])]), state[0])
        y, V = lif(current, state[1])
        return y, (past, V)

    state = layer.init_state(), lif.init_state()
    (op,) = etpc.compile(layer, "d_rtrl", inputs=jnp.zeros(3), state=state, step=step).ops
    assert not op.exact
    # The potential alone: spikes, however old, are read by data that is cut.
    assert op.block == 1
