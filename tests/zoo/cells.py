"""Recurrent cells beyond those of Equinox, networks of them, state-space models and other linear recurrences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.check import model


@model
def NormalisedLSTM(x, state, weight_ih, weight_hh, gates, cell):
    """An LSTM with layer normalisation of its gates and of its cell."""
    h, c = state
    i, f, g, o = jnp.split(gates(weight_ih(x) + weight_hh(h)), 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(cell(c))
    return h, (h, c)


@model
def Sandwich(x, h, before, cell, after):
    """A perceptron, a cell, and another perceptron."""
    y, h = cell(before(x), h)
    return after(y), h


@model
def ResidualStack(x, state, cells):
    """Cells of one kind with their parameters stacked, as for a scan over layers."""
    arrays, rest = eqx.partition(cells, eqx.is_array)

    def layer(x, given):
        arrays, h = given
        y, h = eqx.combine(arrays, rest)(x, h)
        return x + y, h

    return jax.lax.scan(layer, x, (arrays, state))


@model
def FastWeights(x, h, w, u, v):
    """A recurrent cell that multiplies its input by its state (second order)."""
    h = jnp.tanh(jnp.einsum("ijk,j,k->i", w, x, h) + u @ x + v @ h)
    return h, h


@model
def SLSTM(x, state, w, r):
    """xLSTM's scalar memory (Beck et al., 2024): exponential gates with a stabiliser."""
    h, c, n, m = state
    z, i, f, o = jnp.split(w @ x + r @ h, 4)
    m_after = jnp.maximum(f + m, i)
    i, f = jnp.exp(i - m_after), jnp.exp(f + m - m_after)
    c, n = f * c + i * jnp.tanh(z), f * n + i
    h = jax.nn.sigmoid(o) * c / n
    return h, (h, c, n, m_after)


@model
def MLSTM(x, state, qkv, gates):
    """xLSTM's matrix memory."""
    C, n, m = state
    q, k, v = qkv @ x
    i, f = gates @ x
    m_after = jnp.maximum(jax.nn.log_sigmoid(f) + m, i)
    i, f = jnp.exp(i - m_after), jnp.exp(jax.nn.log_sigmoid(f) + m - m_after)
    C, n = f * C + i * jnp.outer(v, k), f * n + i * k
    return C @ q / jnp.maximum(jnp.abs(n @ q), jnp.exp(-m_after)), (C, n, m_after)


@model
def Reservoir(x, h, enter, reservoir, gain, out):
    """An echo-state network: its reservoir is fixed by `stop_gradient`, its readout is trained."""
    recurrent = lax.stop_gradient(reservoir) @ h
    h = 0.5 * h + 0.5 * jnp.tanh(recurrent + gain * (lax.stop_gradient(enter) @ x))
    return out @ h, h


@model
def Plastic(x, state, w, alpha, eta, enter):
    """Differentiable plasticity (Miconi et al., 2018): a Hebbian trace is part of the weight."""
    h, hebb = state
    after = jnp.tanh((w + alpha * hebb) @ h + enter @ x)
    hebb = (1 - eta) * hebb + eta * jnp.outer(after, h)
    return after, (after, hebb)


@model
def InputDependentTransition(x, h, make, enter):
    """The input makes the transition matrix."""
    h = jnp.einsum("ijk,k->ij", make, x) @ h + enter @ x
    return h, h


@model
def Memory(x, memory, key, erase, add):
    """A content-addressed memory (Graves et al., 2014), with a controller that reads it."""
    norm = jnp.linalg.norm(memory, axis=1) + 1e-3
    address = jax.nn.softmax(memory @ (key @ x) / norm)
    kept = 1 - jnp.outer(address, jax.nn.sigmoid(erase @ x))
    memory = memory * kept + jnp.outer(address, add @ x)
    return address @ memory, memory


@model
def LearnedStart(x, state, start, weight):
    """At the first step the state is set to a parameter; a flag in the input starts anew."""
    x, anew = x
    h, t = state
    h = jnp.where((t == 0) | anew, start, h)
    h = 0.7 * h + weight @ x
    return h, (h, t + 1)


@model
def Scalars(x, h, weight, decay, gain):
    """Parameters without axes, that all neurons share, also on both sides of a product."""
    h = jax.nn.sigmoid(decay) * h + gain * (weight @ (gain * x))
    return decay * h, h


@model
def Competition(x, h, enter, inhibit):
    """Learned self-excitation and inhibition by the sum of all: element-wise weights, dense blocks."""
    h = 0.6 * h + enter @ x - inhibit * (jnp.sum(h) - h)
    return h, h


@model
def TwiceACell(x, h, cell):
    """One cell is used twice in a step, and once more with its state read out."""
    h = cell(x, cell(-x, h))
    return cell(x, h), h


@model
def Everything(x, h, layers, norm, prelu, key, count, mask, unused, activation, name, nothing):
    """Leaves of every kind: keys, integers, flags, functions, text, arrays that nothing reads."""
    noise = jax.random.normal(key, h.shape)
    drive = jnp.where(mask, layers(x), noise)
    h = 0.5 * h + count * prelu(drive)
    return activation(norm(h)), h


@model
def ThreeFactors(x, h, a, b):
    """One einsum over two weights and the data."""
    h = 0.7 * h + jnp.einsum("or,ri,i->o", a, b, x)
    return h, h


@model
def GatedProduct(x, h, w, v):
    """Products of the outputs of weights: `(W x) * (V x) * h`."""
    h = 0.5 * h + jnp.tanh((w @ x) * (v @ x) * (1 + h))
    return h, h


@model
def GapJunctions(x, v, weight, conductance):
    """Learned symmetric coupling on the edges of a graph: gathers and scatters of the state."""
    flow = conductance * (v[EDGES[1]] - v[EDGES[0]])
    v = 0.9 * v + weight @ x
    v = v.at[EDGES[0]].add(0.2 * flow).at[EDGES[1]].add(-0.2 * flow)
    return v, v


EDGES = np.array([[0, 1, 0], [1, 2, 3]])


@model
def ComplexLRU(x, h, eigenvalues, B, C):
    """Orvieto et al., 2023, with complex arrays as parameters."""
    h = eigenvalues * h + B @ x.astype(h.dtype)
    return (C @ h).real, h


@model
def Selective(x, h, A_log, dt, BC, D):
    """The selective SSM of Mamba (Gu and Dao, 2023): the input chooses dt, B and C. State [d, n]."""
    dt = jax.nn.softplus(dt(x))
    B, C = jnp.split(BC(x), 2)
    h = jnp.exp(-dt[:, None] * jnp.exp(A_log)) * h + (dt * x)[:, None] * B[None, :]
    return h @ C + D * x, h


@model
def Mamba(x, state, enter, taps, ssm, leave):
    """A whole block: projection, causal depth-wise convolution, selective SSM, gate, projection."""
    past, h = state
    u, z = jnp.split(enter(x), 2)
    recent = jnp.concatenate([past, u[None]])
    y, h = ssm(jax.nn.silu(jnp.sum(taps * recent, axis=0)), h)
    return leave(y * jax.nn.silu(z)), (recent[1:], h)


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
