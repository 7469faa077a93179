"""Neurons whose parameters and states are quantities with units."""

import equinox as eqx
import jax
import jax.numpy as jnp
import saiunit as u

from tests.helpers import spike
from tests.zoo.check import model, weights

DT = 1.0 * u.ms


class LIF(eqx.Module):
    """`tau dV/dt = -(V - V_rest) + R I`, by exponential Euler. Spikes come out."""

    weight: u.Quantity
    recurrent: u.Quantity | None
    R: u.Quantity
    tau: u.Quantity
    threshold: u.Quantity

    def __init__(self, inputs, size, recurrent=False):
        self.weight = weights(size, inputs, scale=10.0) * u.mA
        self.recurrent = weights(size, size, scale=2.0) * u.mA if recurrent else None
        self.R = jnp.linspace(1.0, 2.0, size) * u.ohm
        self.tau = jnp.linspace(5.0, 10.0, size) * u.ms
        self.threshold = jnp.linspace(-59.0, -57.0, size) * u.mV

    def init_state(self):
        size = len(self.tau)
        return {"v": jnp.full(size, -60.0) * u.mV, "z": jnp.zeros(size)}

    def __call__(self, x, state):
        v, z = state["v"], state["z"]
        current = self.weight @ x
        if self.recurrent is not None:
            current = current + self.recurrent @ z
        decay = u.math.exp(-DT / self.tau)
        steady = (-60.0 * u.mV) + (self.R * current).in_unit(u.mV)
        v = (steady + (v - steady) * decay).in_unit(u.mV)
        z = spike((v - self.threshold) / u.mV)
        return z, {"v": v - jax.lax.stop_gradient(z) * 2.0 * u.mV, "z": z}


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
