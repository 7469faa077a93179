"""Learning rules as their papers write them, in NumPy but for backpropagation, and the models that they are of.

They share nothing with `etpc`. Each returns the gradient of the mean of `sum((y - target)**2)` over time and batch,
as a dict from the paths of parameters to arrays. `xs` and `targets` are [T, B, ...].
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etpc
from tests.helpers import by_path, normal
from tests.zoo.check import model as of_step

THRESHOLD, LEAK, SLOW, BETA = 0.6, 0.8, 0.95, 0.3


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + 10 * v**2)


def pseudo_derivative(v):
    return 1 / (1 + 10 * v**2)


def heaviside(v):
    return (v > 0).astype(v.dtype)


class Spiking(eqx.Module):
    """Recurrent LIF neurons; ALIF neurons with `beta`. The reset is soft, and detached."""

    w_in: jax.Array
    w_rec: jax.Array
    w_out: jax.Array
    beta: float = eqx.field(static=True, default=0.0)

    def init_state(self):
        zeros = jnp.zeros(self.w_rec.shape[0])
        return (zeros, zeros) if self.beta else zeros

    def __call__(self, x, state):
        V, a = state if self.beta else (state, 0.0)
        z = spike(V - THRESHOLD - self.beta * a)
        V = LEAK * V + self.w_in @ x + self.w_rec @ z - THRESHOLD * jax.lax.stop_gradient(z)
        if self.beta:
            a = SLOW * a + z
        y = self.w_out @ spike(V - THRESHOLD - self.beta * a)
        return y, (V, a) if self.beta else V


def spiking(beta=0.0, units=5):
    return Spiking(
        normal(units, 3), 0.5 * normal(units, units, seed=1), normal(2, units, seed=2), beta
    )


def sequence(steps=20, batch=3, outputs=2):
    return normal(steps, batch, 3, seed=3), normal(steps, batch, outputs, seed=4)


def eprop(model, xs, targets, fault=None):
    """E-prop of LIF or ALIF neurons, with the true readout weights as feedback.

    **Source** Bellec et al., Nature Communications 11, 3625, 2020, equations 4, 22, 24 and 25.

    - `fault`: a mistake; those of terms are left out of the derivation.
    """
    w_in, w_rec, w_out = (np.asarray(w) for w in (model.w_in, model.w_rec, model.w_out))
    (T, B, _), N, beta = xs.shape, len(w_rec), model.beta
    V, a = np.zeros((B, N)), np.zeros((B, N))
    inputs = w_in.shape[1] + N
    of_V, of_a = np.zeros((B, N, inputs)), np.zeros((B, N, inputs))
    grad, out = np.zeros((N, inputs)), np.zeros_like(w_out)
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        z = heaviside(V - THRESHOLD - beta * a)
        psi = pseudo_derivative(V - THRESHOLD - beta * a)[..., None]
        before = V - THRESHOLD - beta * a
        of_a = SLOW * of_a + psi * (of_V - beta * of_a * (fault not in ("decay", "decay, leak")))
        old = of_V
        V = LEAK * V + x @ w_in.T + z @ w_rec.T - THRESHOLD * z
        a = SLOW * a + z
        z_new = heaviside(V - THRESHOLD - beta * a)
        presynaptic = np.concatenate([x, z_new if fault == "presynaptic" else z], 1)
        of_V = LEAK * of_V * (fault != "decay, leak") + presynaptic[:, None, :]
        at = {"before": before, "reset": V - THRESHOLD * z_new - THRESHOLD, "uncentred": V}.get(
            fault, V - THRESHOLD - beta * a
        )
        trace = pseudo_derivative(at)[..., None] * (
            (old if fault == "early" else of_V) - beta * of_a * (fault != "signal")
        )
        error = 2 * (z_new @ w_out.T - target)
        grad += np.einsum("bn,bni->ni", error @ w_out, trace) / (T * B)
        out += error.T @ z_new / (T * B)
    own = w_in.shape[1]
    return {".w_in": grad[:, :own], ".w_rec": grad[:, own:], ".w_out": out}


class Rate(eqx.Module):
    """Leaky units; the error goes back through `feedback`, if there is one."""

    w_in: jax.Array
    w_rec: jax.Array
    w_out: jax.Array
    feedback: jax.Array | None = None
    leak: float = eqx.field(static=True, default=0.7)

    def init_state(self):
        return jnp.zeros(self.w_rec.shape[0])

    def __call__(self, x, h):
        h = self.leak * h + (1 - self.leak) * jnp.tanh(self.w_rec @ h + self.w_in @ x)
        if self.feedback is None:
            return self.w_out @ h, h
        return etpc.nn.broadcast_readout(self.w_out, self.feedback, h), h


def rate(feedback=False, units=5):
    back = normal(2, units, seed=5) if feedback else None
    return Rate(normal(units, 3), normal(units, units, seed=1), normal(2, units, seed=2), back)


def rflo(model, xs, targets):
    """Random feedback local online learning.

    **Source** Murray, "Local online learning in recurrent networks with random feedback", eLife 8, e43299, 2019,
    equations 4 to 6.
    """
    w_in, w_rec, w_out, back = (
        np.asarray(w) for w in (model.w_in, model.w_rec, model.w_out, model.feedback)
    )
    (T, B, I), N = xs.shape, len(w_rec)
    h, trace = np.zeros((B, N)), np.zeros((B, N, I + N))
    grad, out = np.zeros((N, I + N)), np.zeros_like(w_out)
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        u = h @ w_rec.T + x @ w_in.T
        slope = (1 - model.leak) * (1 - np.tanh(u) ** 2)
        trace = model.leak * trace + slope[..., None] * np.concatenate([x, h], 1)[:, None]
        h = model.leak * h + (1 - model.leak) * np.tanh(u)
        error = 2 * (h @ w_out.T - target)
        grad += np.einsum("bn,bni->ni", error @ back, trace) / (T * B)
        out += error.T @ h / (T * B)
    return {".w_in": grad[:, :I], ".w_rec": grad[:, I:], ".w_out": out}


def tbptt(model, xs, targets, steps):
    """Truncated backpropagation through time of the leaky units, in blocks of so many steps."""
    T, B, _ = xs.shape

    def block(model, h, xs, targets):
        def step(h, given):
            y, h = jax.vmap(model)(given[0], h)
            return h, jnp.sum((y - given[1]) ** 2)

        h, losses = jax.lax.scan(step, h, (xs, targets))
        return losses.sum() / (T * B), h

    total, h = jax.tree.map(jnp.zeros_like, model), jnp.zeros((B, len(model.w_rec)))
    for start in range(0, T, steps):
        part = slice(start, start + steps)
        grads, h = jax.grad(block, has_aux=True)(model, h, xs[part], targets[part])
        total = jax.tree.map(jnp.add, total, grads)
    return by_path(total)


@functools.partial(of_step, start=(jnp.zeros(5), jnp.zeros(4)))
def Layers(x, state, first, second, w_out):
    """Two layers of LIF neurons, the second of which reads the new spikes of the first."""
    for_reset = lambda V: V - THRESHOLD * jax.lax.stop_gradient(spike(V - THRESHOLD))
    V, U = state
    V = LEAK * for_reset(V) + first @ x
    U = LEAK * for_reset(U) + second @ spike(V - THRESHOLD)
    return w_out @ spike(U - THRESHOLD), (V, U)


def layers():
    return Layers(normal(5, 3), normal(4, 5, seed=1), normal(2, 4, seed=2))


def ottt(model, xs, targets):
    """Online training through time of two layers.

    **Source** Xiao et al., "Online training through time for spiking neural networks", NeurIPS 2022, equations 7 to 9.
    """
    first, second, w_out = (np.asarray(w) for w in (model.first, model.second, model.w_out))
    T, B, I = xs.shape
    V, U = np.zeros((B, len(first))), np.zeros((B, len(second)))
    of_x, of_spikes = np.zeros((B, I)), np.zeros((B, len(first)))
    grads = {
        ".first": np.zeros_like(first),
        ".second": np.zeros_like(second),
        ".w_out": np.zeros_like(w_out),
    }
    reset = lambda V: V - THRESHOLD * heaviside(V - THRESHOLD)
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        V = LEAK * reset(V) + x @ first.T
        spikes = heaviside(V - THRESHOLD)
        U = LEAK * reset(U) + spikes @ second.T
        z = heaviside(U - THRESHOLD)
        of_x, of_spikes = LEAK * of_x + x, LEAK * of_spikes + spikes
        error = 2 * (z @ w_out.T - target) / (T * B)
        to_second = (error @ w_out) * pseudo_derivative(U - THRESHOLD)
        to_first = (to_second @ second) * pseudo_derivative(V - THRESHOLD)
        grads[".w_out"] += error.T @ z
        grads[".second"] += to_second.T @ of_spikes
        grads[".first"] += to_first.T @ of_x
    return grads


@functools.partial(of_step, start={"g": jnp.zeros(4), "V": jnp.zeros(4)})
def Cascade(x, state, w, w_out):
    """A synapse, whose new current a leaky membrane reads in the same step."""
    g = SLOW * state["g"] + w @ x
    V = LEAK * state["V"] + g
    return w_out @ jnp.tanh(V), {"g": g, "V": V}


def cascade():
    return Cascade(0.2 * normal(4, 3), normal(2, 4, seed=1))


def of_a_cascade(model, xs, targets, twice):
    """Traces of both states. With `twice`, the credit of the current goes through the membrane, whose trace has it."""
    w, w_out = np.asarray(model.w), np.asarray(model.w_out)
    T, B, I = xs.shape
    g, V = np.zeros((B, len(w))), np.zeros((B, len(w)))
    of_g, of_V = np.zeros((B, I)), np.zeros((B, I))
    grad = np.zeros_like(w)
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        g = SLOW * g + x @ w.T
        V = LEAK * V + g
        of_g = SLOW * of_g + x
        of_V = LEAK * of_V + of_g
        credit = (2 * (np.tanh(V) @ w_out.T - target) / (T * B)) @ w_out * (1 - np.tanh(V) ** 2)
        grad += credit.T @ (of_V + of_g if twice else of_V)
    return {".w": grad}
