"""Evidence accumulation by a conductance-based network of excitatory and inhibitory neurons.

The task of `evidence.py`, in a network that keeps to Dale's law: 64 excitatory and 16 inhibitory neurons,
exponential synapses, and currents that depend on the potential, `g (E - V)`. Conductances are in nS and
the resistance in gigaohm, so that currents are in pA and potentials in mV.

Source: the task of Bellec et al., Nature Communications 11, 2020, scaled as in `evidence.py`; the synapses of
Gerstner, Kistler, Naud & Paninski, "Neuronal Dynamics", Cambridge University Press 2014, section 3.1.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Task, main
from .evidence import BATCH, DT, GROUP, accuracy, batch

EXCITATORY, INHIBITORY = 64, 16
NEURONS, INPUTS = EXCITATORY + INHIBITORY, 4 * GROUP


class State(NamedTuple):
    neurons: Any
    g_e: Array  # nS
    g_i: Array
    r: Array


class Network(eqx.Module):
    """Adaptive neurons with excitatory and inhibitory synapses, and a leaky readout."""

    from_excitatory: nn.DaleLinear
    from_inhibitory: nn.DaleLinear
    synapse_e: nn.ExponentialSynapse
    synapse_i: nn.ExponentialSynapse
    current_e: nn.COBA
    current_i: nn.COBA
    neurons: nn.ALIF
    readout: nn.LeakyRateReadout

    def __init__(self, key: PRNGKeyArray):
        k1, k2, k3 = jax.random.split(key, 3)
        # All conductances are positive: what inhibits is the reversal potential.
        from_excitatory = nn.DaleLinear(
            INPUTS + EXCITATORY,
            NEURONS,
            excitatory=INPUTS + EXCITATORY,
            key=k1,
        )
        self.from_excitatory = nn.init(from_excitatory, "lecun_normal", k1, gain=2.0)
        from_inhibitory = nn.DaleLinear(
            INHIBITORY,
            NEURONS,
            excitatory=INHIBITORY,
            key=k2,
        )
        self.from_inhibitory = nn.init(from_inhibitory, "lecun_normal", k2, gain=2.0)
        self.synapse_e = nn.ExponentialSynapse(NEURONS, tau=10.0, dt=DT)
        self.synapse_i = nn.ExponentialSynapse(NEURONS, tau=10.0, dt=DT)
        self.current_e = nn.COBA(NEURONS, E=0.0)
        self.current_i = nn.COBA(NEURONS, E=-80.0)
        self.neurons = nn.ALIF(
            NEURONS,
            tau=20.0,
            tau_a=500.0,
            beta=2.0,
            R=0.1,
            V_th=-50.0,
            V_rest=-60.0,
            V_reset=-60.0,
            dt=DT,
        )
        self.readout = nn.LeakyRateReadout(EXCITATORY, 2, tau=20.0, dt=DT, key=k3)

    def init_state(self) -> State:
        return State(
            self.neurons.init_state(),
            self.synapse_e.init_state(),
            self.synapse_i.init_state(),
            self.readout.init_state(),
        )

    def __call__(self, x: Float[Array, " I"], state: State) -> tuple[Array, State]:
        last, V = self.neurons.spike(state.neurons), state.neurons.V
        excites, inhibits = last[:EXCITATORY], last[EXCITATORY:]
        arrives = self.from_excitatory(jnp.concatenate([x, excites]))
        y_e, g_e = self.synapse_e(arrives, state.g_e)
        y_i, g_i = self.synapse_i(self.from_inhibitory(inhibits), state.g_i)
        current = self.current_e(y_e, V) + self.current_i(y_i, V)
        spikes, neurons = self.neurons(current, state.neurons)
        y, r = self.readout(spikes[:EXCITATORY], state.r)
        return y, State(neurons, g_e, g_i, r)


TASK = Task(
    name="Evidence accumulation, conductance-based",
    make_model=Network,
    batch=batch,
    loss_fn=optax.softmax_cross_entropy_with_integer_labels,
    score=accuracy,
    batch_size=BATCH,
    updates=400,
    rate=1e-2,
    uncut=False,
    through=True,
)

if __name__ == "__main__":
    main(TASK)
