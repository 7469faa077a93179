"""State-space models, linear attention, and other linear recurrences."""

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.zoo.check import model, weights


class LRU(eqx.Module):
    """Orvieto et al., 2023, with real and imaginary parts as parameters and a complex state."""

    nu_log: jax.Array
    theta_log: jax.Array
    gamma_log: jax.Array
    B: tuple[jax.Array, jax.Array]
    C: tuple[jax.Array, jax.Array]
    D: jax.Array

    def __init__(self, inputs, size, outputs):
        self.nu_log = jnp.log(-jnp.log(jnp.linspace(0.5, 0.9, size)))
        self.theta_log = jnp.log(jnp.linspace(0.3, 1.2, size))
        self.gamma_log = jnp.linspace(-0.5, -0.1, size)
        self.B = (weights(size, inputs), weights(size, inputs, seed=1))
        self.C = (weights(outputs, size), weights(outputs, size, seed=1))
        self.D = weights(outputs)

    def __call__(self, x, h):
        eigenvalues = jnp.exp(-jnp.exp(self.nu_log) + 1j * jnp.exp(self.theta_log))
        B = (self.B[0] + 1j * self.B[1]) * jnp.exp(self.gamma_log)[:, None]
        C = self.C[0] + 1j * self.C[1]
        h = eigenvalues * h + B @ x
        return jnp.real(C @ h) + self.D * x[:1], h


class ComplexLRU(eqx.Module):
    """The same with complex arrays as parameters."""

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


@model
def RealLRU(x, state, eigenvalues, B, C):
    """The same with the real and the imaginary part of the state as two leaves."""
    (a, b), (re, im) = eigenvalues, state
    re, im = a * re - b * im + B[0] @ x, a * im + b * re + B[1] @ x
    return C[0] @ re - C[1] @ im, (re, im)


class S4D(eqx.Module):
    """A diagonal SSM block (Gu et al., 2022; S5): zero-order hold, skip, gate and residual."""

    log_dt: jax.Array
    A_log: jax.Array
    A_im: jax.Array
    B: jax.Array
    C: jax.Array
    D: jax.Array
    norm: eqx.nn.LayerNorm
    gate: eqx.nn.Linear

    def __init__(self, width, size, key):
        self.log_dt = jnp.log(jnp.linspace(0.1, 0.5, width))
        self.A_log = jnp.log(0.5 * jnp.ones((width, size)))
        self.A_im = jnp.pi * jnp.tile(jnp.arange(size, dtype=float), (width, 1))
        self.B = jnp.ones((width, size), complex)
        self.C = (weights(width, size) + 1j * weights(width, size, seed=1)).astype(complex)
        self.D = weights(width)
        self.norm = eqx.nn.LayerNorm(width)
        self.gate = eqx.nn.Linear(width, width, key=key)

    def __call__(self, x, h):
        A = -jnp.exp(self.A_log) + 1j * self.A_im
        dt = jnp.exp(self.log_dt)[:, None]
        A_bar = jnp.exp(dt * A)
        B_bar = (A_bar - 1) / A * self.B
        u = self.norm(x)
        h = A_bar * h + B_bar * u[:, None]
        y = jax.nn.gelu(2 * jnp.sum(self.C * h, axis=1).real + self.D * u)
        return x + y * jax.nn.sigmoid(self.gate(y)), h


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


class DeltaRule(eqx.Module):
    """DeltaNet (Schlag et al., 2021): writes what its matrix state does not yet recall."""

    qkv: jax.Array
    beta: eqx.nn.Linear
    out: jax.Array

    def __call__(self, x, S):
        q, k, v = jnp.einsum("phdi,i->phd", self.qkv, x)
        k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
        beta = jax.nn.sigmoid(self.beta(x))
        missing = v - jnp.einsum("hde,he->hd", S, k)
        S = S + beta[:, None, None] * jnp.einsum("hd,he->hde", missing, k)
        return jnp.einsum("ohd,hd->o", self.out, jnp.einsum("hde,he->hd", S, q)), S


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
