"""Cells of the literature that stress one thing each."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.check import weights


class SLSTM(eqx.Module):
    """xLSTM's scalar memory (Beck et al., 2024): exponential gates with a stabiliser."""

    w: jax.Array
    r: jax.Array

    def __call__(self, x, state):
        h, c, n, m = state
        z, i, f, o = jnp.split(self.w @ x + self.r @ h, 4)
        m_after = jnp.maximum(f + m, i)
        i, f = jnp.exp(i - m_after), jnp.exp(f + m - m_after)
        c, n = f * c + i * jnp.tanh(z), f * n + i
        h = jax.nn.sigmoid(o) * c / n
        return h, (h, c, n, m_after)


class MLSTM(eqx.Module):
    """xLSTM's matrix memory."""

    qkv: jax.Array
    gates: jax.Array

    def __call__(self, x, state):
        C, n, m = state
        q, k, v = self.qkv @ x
        i, f = self.gates @ x
        m_after = jnp.maximum(jax.nn.log_sigmoid(f) + m, i)
        i, f = jnp.exp(i - m_after), jnp.exp(jax.nn.log_sigmoid(f) + m - m_after)
        C, n = f * C + i * jnp.outer(v, k), f * n + i * k
        return C @ q / jnp.maximum(jnp.abs(n @ q), jnp.exp(-m_after)), (C, n, m_after)


class RWKV(eqx.Module):
    """RWKV-4 time mixing: token shift, and a numerically stable weighted mean."""

    mix: jax.Array
    wk: jax.Array
    wv: jax.Array
    wr: jax.Array
    decay: jax.Array
    bonus: jax.Array

    def __call__(self, x, state):
        last, a, b, p = state
        mixed = self.mix * x + (1 - self.mix) * last
        k, v, r = self.wk @ mixed, self.wv @ mixed, jax.nn.sigmoid(self.wr @ mixed)
        q = jnp.maximum(p, self.bonus + k)
        old, new = jnp.exp(p - q), jnp.exp(self.bonus + k - q)
        y = r * (old * a + new * v) / (old * b + new)
        q = jnp.maximum(p - jnp.exp(self.decay), k)
        old, new = jnp.exp(p - jnp.exp(self.decay) - q), jnp.exp(k - q)
        return y, (x, old * a + new * v, old * b + new, q)


class RGLRU(eqx.Module):
    """Griffin's recurrent unit (De et al., 2024): gates by blocks, a square root in the drive."""

    wa: jax.Array
    wx: jax.Array
    log_a: jax.Array

    def __call__(self, x, h):
        blocks = x.reshape(2, -1)
        r = jax.nn.sigmoid(jnp.einsum("gij,gj->gi", self.wa, blocks)).ravel()
        i = jax.nn.sigmoid(jnp.einsum("gij,gj->gi", self.wx, blocks)).ravel()
        a = jnp.exp(-4.0 * r * jax.nn.softplus(self.log_a))
        h = a * h + jnp.sqrt(1 - a**2) * i * x
        return h, h


class LMU(eqx.Module):
    """Legendre memory (Voelker et al., 2019): fixed matrices that the model closes over."""

    encode: jax.Array
    decode: jax.Array

    def __call__(self, x, m):
        m = LEGENDRE_A @ m + LEGENDRE_B * jnp.dot(self.encode, x)
        return jnp.tanh(self.decode @ m), m


LEGENDRE_A = np.eye(4) + 0.1 * np.tril(np.array([[-1.0, -1, -1, -1]] * 4) + np.eye(4))
LEGENDRE_B = 0.1 * np.array([1.0, -3.0, 5.0, -7.0])


class Reservoir(eqx.Module):
    """An echo-state network: its reservoir is fixed by `stop_gradient`, its readout is trained."""

    enter: jax.Array
    reservoir: jax.Array
    gain: jax.Array
    out: jax.Array

    def __call__(self, x, h):
        recurrent = lax.stop_gradient(self.reservoir) @ h
        h = 0.5 * h + 0.5 * jnp.tanh(recurrent + self.gain * (lax.stop_gradient(self.enter) @ x))
        return self.out @ h, h


class CoRNN(eqx.Module):
    """Coupled oscillators (Rusch and Mishra, 2021)."""

    w: jax.Array
    v: jax.Array
    gamma: jax.Array
    epsilon: jax.Array

    def __call__(self, x, state):
        y, z = state
        force = jnp.tanh(self.w @ jnp.concatenate([y, z]) + self.v @ x)
        z = z + 0.1 * (force - self.gamma * y - self.epsilon * z)
        y = y + 0.1 * z
        return y, (y, z)


class Antisymmetric(eqx.Module):
    """Chang et al., 2019: stable by construction of the effective weight."""

    w: jax.Array
    v: jax.Array

    def __call__(self, x, h):
        skew = self.w - self.w.T - 0.1 * jnp.eye(len(self.w))
        h = h + 0.3 * jnp.tanh(skew @ h + self.v @ x)
        return h, h


class Clockwork(eqx.Module):
    """Modules tick with periods of their own; an integer state is the clock."""

    w: jax.Array
    r: jax.Array
    periods: np.ndarray

    def __call__(self, x, state):
        h, t = state
        new = jnp.tanh(self.w @ x + jnp.tril(self.r) @ h)
        h = jnp.where(t % self.periods == 0, new, h)
        return h, (h, t + 1)


class Liquid(eqx.Module):
    """A liquid time constant (Hasani et al., 2021): fused steps, gates of input and state."""

    gate: eqx.nn.Linear
    tau: jax.Array
    target: jax.Array

    def __call__(self, x, h):
        for _ in range(2):
            f = jax.nn.sigmoid(self.gate(jnp.concatenate([x, h])))
            h = (h + 0.2 * f * self.target) / (1 + 0.2 * (1 / self.tau + f))
        return h, h


class Plastic(eqx.Module):
    """Differentiable plasticity (Miconi et al., 2018): a Hebbian trace is part of the weight."""

    w: jax.Array
    alpha: jax.Array
    eta: jax.Array
    enter: jax.Array

    def __call__(self, x, state):
        h, hebb = state
        after = jnp.tanh((self.w + self.alpha * hebb) @ h + self.enter @ x)
        hebb = (1 - self.eta) * hebb + self.eta * jnp.outer(after, h)
        return after, (after, hebb)


class InputDependentTransition(eqx.Module):
    """The input makes the transition matrix."""

    make: jax.Array
    enter: jax.Array

    def __call__(self, x, h):
        h = jnp.einsum("ijk,k->ij", self.make, x) @ h + self.enter @ x
        return h, h


class Memory(eqx.Module):
    """A content-addressed memory (Graves et al., 2014), with a controller that reads it."""

    key: jax.Array
    erase: jax.Array
    add: jax.Array

    def __call__(self, x, memory):
        norm = jnp.linalg.norm(memory, axis=1) + 1e-3
        address = jax.nn.softmax(memory @ (self.key @ x) / norm)
        erase = jax.nn.sigmoid(self.erase @ x)
        memory = memory * (1 - jnp.outer(address, erase)) + jnp.outer(address, self.add @ x)
        return address @ memory, memory


class LearnedStart(eqx.Module):
    """At the first step the state is set to a parameter; a flag in the input starts anew."""

    start: jax.Array
    weight: jax.Array

    def __call__(self, x, state):
        x, anew = x
        h, t = state
        h = jnp.where((t == 0) | anew, self.start, h)
        h = 0.7 * h + self.weight @ x
        return h, (h, t + 1)


class Scalars(eqx.Module):
    """Parameters without axes, that all neurons share, also on both sides of a product."""

    weight: jax.Array
    decay: jax.Array
    gain: jax.Array

    def __call__(self, x, h):
        h = jax.nn.sigmoid(self.decay) * h + self.gain * (self.weight @ (self.gain * x))
        return self.decay * h, h


class Competition(eqx.Module):
    """Learned self-excitation and inhibition by the sum of all: element-wise weights, dense blocks."""

    enter: jax.Array
    inhibit: jax.Array

    def __call__(self, x, h):
        h = 0.6 * h + self.enter @ x - self.inhibit * (jnp.sum(h) - h)
        return h, h


class TwiceACell(eqx.Module):
    """One cell is used twice in a step, and once more with its state read out."""

    cell: eqx.nn.GRUCell

    def __call__(self, x, h):
        h = self.cell(x, self.cell(-x, h))
        return self.cell(x, h), h


class Everything(eqx.Module):
    """Leaves of every kind: keys, integers, flags, functions, text, arrays that nothing reads."""

    layers: eqx.nn.Sequential
    norm: eqx.nn.RMSNorm
    prelu: eqx.nn.PReLU
    key: jax.Array
    count: jax.Array
    mask: jax.Array
    unused: jax.Array
    activation: Callable
    name: str = "net"
    nothing: None = None

    def __init__(self, key):
        self.layers = eqx.nn.Sequential(
            [eqx.nn.Linear(2, 3, key=key), eqx.nn.Lambda(jnp.tanh), eqx.nn.Identity()]
        )
        self.norm = eqx.nn.RMSNorm(3)
        self.prelu = eqx.nn.PReLU(0.3)
        self.key = key
        self.count = jnp.asarray(2, jnp.int32)
        self.mask = jnp.array([True, False, True])
        self.unused = weights(2)
        self.activation = jax.nn.silu

    def __call__(self, x, h):
        noise = jax.random.normal(self.key, h.shape)
        drive = jnp.where(self.mask, self.layers(x), noise)
        h = 0.5 * h + self.count * self.prelu(drive)
        return self.activation(self.norm(h)), h


class ThreeFactors(eqx.Module):
    """One einsum over two weights and the data."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x, h):
        h = 0.7 * h + jnp.einsum("or,ri,i->o", self.a, self.b, x)
        return h, h


class GatedProduct(eqx.Module):
    """Products of the outputs of weights: `(W x) * (V x) * h`."""

    w: jax.Array
    v: jax.Array

    def __call__(self, x, h):
        h = 0.5 * h + jnp.tanh((self.w @ x) * (self.v @ x) * (1 + h))
        return h, h


class Tsodyks(eqx.Module):
    """Short-term plasticity of each synapse, and dendrites in a tree with learned conductances."""

    weight: jax.Array
    release: jax.Array
    axial: jax.Array

    def __call__(self, x, state):
        resource, v = state
        used = jax.nn.sigmoid(self.release) * resource * x
        resource = resource + 0.1 * (1 - resource) - 0.5 * used
        current = self.weight @ used
        flow = self.axial * (v[1:] - v[:-1])
        v = 0.8 * v + jnp.pad(flow, (0, 1)) - jnp.pad(flow, (1, 0))
        v = v.at[-1].add(jnp.tanh(current[0])) + 0.1 * current
        return v[:1], (resource, v)


class GapJunctions(eqx.Module):
    """Learned symmetric coupling on the edges of a graph: gathers and scatters of the state."""

    weight: jax.Array
    conductance: jax.Array

    def __call__(self, x, v):
        flow = self.conductance * (v[EDGES[1]] - v[EDGES[0]])
        v = 0.9 * v + self.weight @ x
        v = v.at[EDGES[0]].add(0.2 * flow).at[EDGES[1]].add(-0.2 * flow)
        return v, v


EDGES = np.array([[0, 1, 0], [1, 2, 3]])
