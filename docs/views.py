"""Four small networks, and their compilations as pages for the site: a hook of MkDocs."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

import etpc
from etpc import nn

INPUTS, HIDDEN, OUTPUTS = 4, 8, 2


class State(NamedTuple):
    V: jax.Array
    r: jax.Array


class LIF(eqx.Module):
    """Leaky integrate-and-fire neurons that read each other's spikes, and a leaky readout."""

    hidden: eqx.nn.Linear
    lif: nn.LIF
    readout: nn.LeakyRateReadout

    def __init__(self, key):
        keys = jax.random.split(key)
        self.hidden = eqx.nn.Linear(INPUTS + HIDDEN, HIDDEN, use_bias=False, key=keys[0])
        self.lif = nn.LIF(HIDDEN, tau=10.0, R=10.0)
        self.readout = nn.LeakyRateReadout(HIDDEN, OUTPUTS, key=keys[1])

    def init_state(self):
        return State(self.lif.init_state(), self.readout.init_state())

    def __call__(self, x, state):
        spikes = self.lif.spike(state.V)
        current = self.hidden(jnp.concatenate([x, spikes]))
        spikes, V = self.lif(current, state.V)
        y, r = self.readout(spikes, state.r)
        return y, State(V, r)


class ALIF(eqx.Module):
    """Neurons whose threshold adapts, with weights for the input and for each other's spikes."""

    w_in: jax.Array
    w_rec: jax.Array
    alif: nn.ALIF
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.w_in = jax.random.normal(keys[0], (HIDDEN, INPUTS))
        self.w_rec = 0.1 * jax.random.normal(keys[1], (HIDDEN, HIDDEN))
        self.alif = nn.ALIF(HIDDEN, tau=20.0, R=10.0)
        self.out = eqx.nn.Linear(HIDDEN, OUTPUTS, key=keys[2])

    def init_state(self):
        return self.alif.init_state()

    def __call__(self, x, state):
        spikes = self.alif.spike(state)
        current = self.w_in @ x + self.w_rec @ spikes
        spikes, state = self.alif(current, state)
        return self.out(spikes), state


class GRU(eqx.Module):
    """A GRU of Equinox, and a readout."""

    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(INPUTS, HIDDEN, key=keys[0])
        self.out = eqx.nn.Linear(HIDDEN, OUTPUTS, key=keys[1])

    def init_state(self):
        return jnp.zeros(HIDDEN)

    def __call__(self, x, h):
        h = self.cell(x, h)
        return self.out(h), h


class LRU(eqx.Module):
    """Two linear recurrent units with complex states, one behind the other."""

    layers: list[nn.LRU]

    def __init__(self, key):
        keys = jax.random.split(key)
        sizes = ((INPUTS, HIDDEN), (HIDDEN, OUTPUTS))
        self.layers = [nn.LRU(*io, HIDDEN, key=k) for io, k in zip(sizes, keys, strict=True)]

    def init_state(self):
        return [layer.init_state() for layer in self.layers]

    def __call__(self, x, state):
        after = []
        for layer, h in zip(self.layers, state, strict=True):
            x, h = layer(x, h)
            x = jax.nn.gelu(x)
            after.append(h)
        return x, after


MODELS = {
    "lif": (LIF, "d_rtrl"),
    "alif": (ALIF, "e-prop"),
    "gru": (GRU, etpc.ES_D_RTRL(decay=0.9)),
    "lru": (LRU, "d_rtrl"),
}
"""By the name of its page: a network, and the rule that it is compiled with."""


@functools.cache
def view(name):
    """The view of one of the networks."""
    network, rule = MODELS[name]
    program = etpc.compile(network(jax.random.key(0)), rule, inputs=jnp.zeros(INPUTS), target="cpu")
    return program.view(title=f"{network.__name__}, {program.algorithm.short}")


def on_files(files, config):
    """Add the pages to the site."""
    from mkdocs.structure.files import File

    for name in MODELS:
        files.append(File.generated(config, f"viewer/{name}.html", content=view(name).html()))
    return files
