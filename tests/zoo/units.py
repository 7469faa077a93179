"""Neurons whose parameters and states are quantities with units."""

import equinox as eqx
import jax.numpy as jnp
import saiunit as u

from tests.zoo.check import model, weights

DT = 1.0 * u.ms


class COBA(eqx.Module):
    """A conductance and a membrane potential, which is also the output."""

    weight: u.Quantity
    reversal: u.Quantity
    leak: u.Quantity

    def __init__(self, inputs, size):
        self.weight = jnp.abs(weights(size, inputs)) * u.nS
        self.reversal = jnp.linspace(-10.0, 10.0, size) * u.mV
        self.leak = jnp.linspace(5.0, 10.0, size) * u.nS

    def init_state(self):
        size = len(self.leak)
        return {"v": jnp.full(size, -60.0) * u.mV, "g": jnp.zeros(size) * u.nS}

    def __call__(self, x, state):
        g = (state["g"] * 0.8 + self.weight @ x).in_unit(u.nS)
        current = self.leak * (-60.0 * u.mV - state["v"]) + g * (self.reversal - state["v"])
        v = (state["v"] + DT * current / (100.0 * u.pF)).in_unit(u.mV)
        return v, {"v": v, "g": g}


@model
def Drifting(x, v, weight):
    """A mistake: the state comes back in another unit."""
    v = (v * 0.9 + weight @ x).in_unit(u.volt)
    return v, v
