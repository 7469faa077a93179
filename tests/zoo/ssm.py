"""State-space models, linear attention, and other linear recurrences."""

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.zoo.check import model, weights


class ComplexLRU(eqx.Module):
    """Orvieto et al., 2023, with complex arrays as parameters."""

    eigenvalues: jax.Array
    B: jax.Array
    C: jax.Array

    def __init__(self, inputs, size, outputs, dtype=jnp.complex128):
        self.eigenvalues = jnp.linspace(0.5, 0.9, size).astype(dtype) * jnp.exp(0.7j).astype(dtype)
        self.B = (weights(size, inputs) + 1j * weights(size, inputs, seed=1)).astype(dtype)
        self.C = (weights(outputs, size) + 1j * weights(outputs, size, seed=1)).astype(dtype)

    def __call__(self, x, h):
        h = self.eigenvalues * h + self.B @ x.astype(h.dtype)
        return (self.C @ h).real, h


class Selective(eqx.Module):
    """The selective SSM of Mamba (Gu and Dao, 2023): the input chooses dt, B and C. State [d, n]."""

    A_log: jax.Array
    dt: eqx.nn.Linear
    BC: eqx.nn.Linear
    D: jax.Array

    def __init__(self, width, size, key):
        one, two = jax.random.split(key)
        self.A_log = jnp.log(jnp.tile(jnp.arange(1.0, size + 1), (width, 1)))
        self.dt = eqx.nn.Linear(width, width, key=one)
        self.BC = eqx.nn.Linear(width, 2 * size, use_bias=False, key=two)
        self.D = jnp.ones(width)

    def __call__(self, x, h):
        dt = jax.nn.softplus(self.dt(x))
        B, C = jnp.split(self.BC(x), 2)
        h = jnp.exp(-dt[:, None] * jnp.exp(self.A_log)) * h + (dt * x)[:, None] * B[None, :]
        return h @ C + self.D * x, h


class Mamba(eqx.Module):
    """A whole block: projection, causal depth-wise convolution, selective SSM, gate, projection."""

    enter: eqx.nn.Linear
    taps: jax.Array
    ssm: Selective
    leave: eqx.nn.Linear

    def __init__(self, inputs, width, size, key):
        one, two, three = jax.random.split(key, 3)
        self.enter = eqx.nn.Linear(inputs, 2 * width, use_bias=False, key=one)
        self.taps = weights(3, width)
        self.ssm = Selective(width, size, two)
        self.leave = eqx.nn.Linear(width, inputs, use_bias=False, key=three)

    def __call__(self, x, state):
        past, h = state
        u, z = jnp.split(self.enter(x), 2)
        recent = jnp.concatenate([past, u[None]])
        y, h = self.ssm(jax.nn.silu(jnp.sum(self.taps * recent, axis=0)), h)
        return self.leave(y * jax.nn.silu(z)), (recent[1:], h)


@model
def LinearAttention(x, state, qkv):
    """Katharopoulos et al., 2020: a matrix state and its normaliser for each head."""
    S, z = state
    q, k, v = jnp.einsum("phdi,i->phd", qkv, x)
    q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
    S = S + jnp.einsum("hd,he->hde", k, v)
    z = z + k
    y = jnp.einsum("hd,hde->he", q, S) / jnp.einsum("hd,hd->h", q, z)[:, None]
    return y, (S, z)


@model
def DeltaRule(x, S, qkv, beta, out):
    """DeltaNet (Schlag et al., 2021): writes what its matrix state does not yet recall."""
    q, k, v = jnp.einsum("phdi,i->phd", qkv, x)
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    missing = v - jnp.einsum("hde,he->hd", S, k)
    S = S + jax.nn.sigmoid(beta(x))[:, None, None] * jnp.einsum("hd,he->hde", missing, k)
    return jnp.einsum("ohd,hd->o", out, jnp.einsum("hde,he->hd", S, q)), S


@model
def CachedAttention(x, state, wq, wk, wv):
    """One head of attention over a cache of the last keys and values."""
    keys, values = state
    keys = jnp.concatenate([keys[1:], (wk @ x)[None]])
    values = jnp.concatenate([values[1:], (wv @ x)[None]])
    return jax.nn.softmax(keys @ (wq @ x)) @ values, (keys, values)


@model
def Spectral(x, h, kernel, decay):
    """A Fourier layer: the weights multiply the spectrum of the input."""
    current = jnp.fft.irfft(kernel * jnp.fft.rfft(x), n=x.shape[0])
    h = jax.nn.sigmoid(decay) * h + current
    return h, h
