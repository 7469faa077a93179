"""One-line steps: whatever operation the state, the data and the weights may meet in.

Each is registered with the names of the parameters that it reads, and says whether it must be exact.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.check import integers, normal, weights

H = jnp.zeros(3)
PARAMETERS = {
    "W": weights(3, 2),
    "W2": weights(3, 2, seed=11),
    "R": weights(3, 3),
    "A": weights(3, 2, seed=7),
    "B": weights(2, 3, seed=8),
    "D": weights(2, 3, seed=9),
    "E": weights(5, 3),
    "w": weights(3),
    "v": weights(2),
    "v5": weights(5),
    "s": jnp.asarray(0.6),
    "t": ((weights(3, seed=5),), jnp.asarray(0.4)),
    "B2": weights(2, 2, 2),
    "C3": weights(2, 2, 3),
    "K1": weights(1, 1, 3),
    "VK": weights(2, 1, 1, 3),
    "image": weights(4),
}
STEPS = {}


@dataclasses.dataclass(frozen=True)
class Step:
    function: Callable
    parameters: dict[str, Any]
    state: Any
    inputs: Any
    exact: bool
    often: bool
    """Whether it is part of every run."""


def step(names, *, state=H, inputs=None, exact=False, often=True):
    """Register a step `(m, x, h) -> (y, h)`; by default the state has 3 numbers, the input 2."""

    def register(function):
        assert function.__name__ not in STEPS
        parameters = {name: PARAMETERS[name] for name in names.split()}
        xs = normal(2) if inputs is None else inputs
        STEPS[function.__name__] = Step(function, parameters, state, xs, exact, often)
        return function

    return register


def x3(x):
    """Three numbers of two."""
    return jnp.concatenate([x, x[:1]])


@step("W", often=False, exact=True)
def cumprod(m, x, h):
    h = 0.5 * jnp.cumprod(h) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def logcumsum(m, x, h):
    h = 0.5 * lax.cumlogsumexp(h) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def topk(m, x, h):
    v, i = lax.top_k(h, 2)
    h = 0.5 * jnp.zeros(3).at[i].set(v) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def median(m, x, h):
    h = 0.5 * h - 0.3 * jnp.median(h) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def argsort(m, x, h):
    i = jnp.argsort(h)
    h = 0.5 * h[i] + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def prod(m, x, h):
    h = 0.5 * h + 0.1 * jnp.prod(1 + h) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def nanmean(m, x, h):
    h = 0.5 * h - 0.2 * jnp.nanmean(h) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def outer_state(m, x, h):
    h = 0.5 * h + 0.1 * jnp.outer(h, h).sum(0) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def cross(m, x, h):
    h = 0.5 * jnp.cross(h, np.array([1.0, 2, 3])) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def interp_state(m, x, h):
    h = 0.5 * jnp.interp(h, np.linspace(-2, 2, 5), np.linspace(-1, 1, 5) ** 3) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def onehot_time(m, x, h):
    h = 0.5 * h + jax.nn.one_hot(jnp.argmax(h), 3) * (m["W"] @ x)
    return h, h


@step("w W", often=False, exact=True, state=(H, jnp.zeros((), int)))
def time_modulated(m, x, s):
    h, t = s
    h = 0.5 * h + jnp.sin(t * m["w"]) * (m["W"] @ x)
    return h, (h, t + 1)


@step("w W", often=False, exact=True, state=(H, jnp.zeros(())))
def float_time(m, x, s):
    h, t = s
    h = 0.5 * h + jnp.sin(t * m["w"]) + (m["W"] @ x)
    return h, (h, t + 1.0)


@step("W", exact=True)
def weight_norm_of_state(m, x, h):
    h = 0.5 * h / jnp.maximum(1.0, jnp.linalg.norm(h)) + m["W"] @ x
    return h, h


@step("R W")
def weight_squared(m, x, h):
    h = jnp.tanh(m["R"] @ (m["R"] @ h) + m["W"] @ x)
    return h, h


@step("R", often=False, exact=True)
def weight_reshape_slices(m, x, h):
    w = m["R"].reshape(-1)
    h = 0.5 * h + w[:3] * x[0] + w[3:6] * x[1] + w[::3]
    return h, h


@step("R", exact=True)
def dyn_weight_index(m, x, h):
    i = jnp.argmax(x)
    h = 0.5 * h + lax.dynamic_index_in_dim(m["R"], i, keepdims=False) * x[0]
    return h, h


@step("R W", exact=True)
def weight_index_by_state(m, x, h):
    i = jnp.clip(jnp.floor(h[0] * 2).astype(int), 0, 2)
    h = 0.5 * h + m["R"][i] * x[0] + m["W"] @ x
    return h, h


@step("w W", often=False, exact=True)
def weight_sorted_with_data(m, x, h):
    h = 0.5 * h + jnp.sort(m["w"] * x[0] + m["W"] @ x)
    return h, h


@step("W w", often=False, exact=True)
def weight_max_data(m, x, h):
    h = jnp.maximum(0.5 * h + m["W"] @ x, m["w"])
    return h, h


@step("w", often=False, exact=True)
def weight_concat_data(m, x, h):
    v = jnp.concatenate([m["w"], x])
    h = 0.5 * h + jnp.cumsum(v)[2:]
    return h, h


@step("w W", often=False, exact=True)
def weight_stack_data(m, x, h):
    v = jnp.stack([m["w"], h])
    h = 0.5 * v.mean(0) + m["W"] @ x
    return h, h


@step("w W", often=False, exact=True)
def weight_where(m, x, h):
    h = jnp.where(x[0] > 0, m["w"], 0.5 * h) + m["W"] @ x
    return h, h


@step("w W", often=False, exact=True)
def weight_pow_state(m, x, h):
    h = jnp.abs(h + 0.1) ** jax.nn.softplus(m["w"]) + m["W"] @ x
    return h, h


@step("w W", often=False, exact=True)
def weight_atan2(m, x, h):
    h = jnp.arctan2(h, m["w"] + 2) + m["W"] @ x
    return h, h


@step("w W", often=False, exact=True)
def erf_gamma(m, x, h):
    h = jax.scipy.special.erf(m["w"] * h) + 0.1 * jax.scipy.special.gammaln(1.5 + h**2) + m["W"] @ x
    return h, h


@step("w", exact=True)
def weight_dus(m, x, h):
    z = lax.dynamic_update_slice(jnp.zeros(4) + x[0], m["w"], (jnp.argmax(x),))
    h = 0.5 * h + z[:3] * x[1]
    return h, h


@step("W", often=False, exact=True)
def weight_pad(m, x, h):
    h = 0.5 * h + jnp.pad(m["W"] @ x, (1, 0))[:3] + m["W"] @ x
    return h, h


@step("w W", exact=True)
def weight_scatter_mul(m, x, h):
    h = (0.5 * h).at[jnp.argmax(x)].multiply(m["w"][0]) + m["W"] @ x
    return h, h


@step("w W", exact=True)
def weight_scatter_set(m, x, h):
    h = (0.5 * h).at[jnp.argmax(x)].set(m["w"][0]) + m["W"] @ x
    return h, h


@step("w W", often=False, exact=True)
def softmax_weight_data(m, x, h):
    h = 0.5 * h + jax.nn.softmax(m["w"] + (m["W"] @ x))
    return h, h


@step("W", often=False, exact=True)
def state_solve(m, x, h):
    A = np.array([[2.0, 1, 0], [0, 3, 1], [1, 0, 2]])
    h = jnp.linalg.solve(A, h) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def triangular(m, x, h):
    A = np.array([[2.0, 0, 0], [1, 3, 0], [1, 1, 2]])
    h = jax.scipy.linalg.solve_triangular(A, h, lower=True) + m["W"] @ x
    return h, h


@step("R W", often=False)
def chol_weight(m, x, h):
    A = m["R"] @ m["R"].T + jnp.eye(3)
    h = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(A), True), h) + m["W"] @ x
    return h, h


@step("v", often=False, state=jnp.eye(2) * 1.0)
def state_inverse(m, x, S):
    S = jnp.linalg.inv(S + 2 * jnp.eye(2) + 0.1 * jnp.outer(m["v"] * x, m["v"] * x))
    return S @ x, S


@step("v", often=False, state=jnp.eye(2) * 1.0)
def eigh_state(m, x, S):
    w, _ = jnp.linalg.eigh(S + jnp.diag(np.array([0.0, 1.0])) + jnp.outer(x, x))
    S = 0.5 * S + jnp.diag(w * m["v"])
    return w, S


@step("w W", often=False, exact=True)
def vmapped_neurons(m, x, h):
    f = lambda v, w, i: jnp.tanh(w * v + i)
    h = jax.vmap(f)(h, m["w"], m["W"] @ x)
    return h, h


@step("w W", often=False, exact=True)
def nested_vmap_scan(m, x, h):
    def one(v, w, i):
        return lax.fori_loop(0, 3, lambda _, v: 0.5 * v + w * i, v)

    h = jax.vmap(one)(h, m["w"], m["W"] @ x)
    return h, h


@step("w W", often=False, exact=True)
def vmap_cond(m, x, h):
    f = lambda v, w, i: lax.cond(v > 0, lambda: w * v + i, lambda: 0.3 * v + i * w)
    h = jax.vmap(f)(h, m["w"], m["W"] @ x)
    return h, h


@step("w W", exact=True)
def grad_inside(m, x, h):
    # a step that takes a gradient itself (energy-based)
    E = lambda h: 0.5 * jnp.sum(m["w"] ** 2 * h**2) - jnp.sum(h * (m["W"] @ x))
    h = h - 0.3 * jax.grad(E)(h)
    return h, h


@step("R W")
def hopfield_energy(m, x, h):
    E = lambda h: -0.5 * h @ m["R"] @ h + 0.5 * h @ h - h @ (m["W"] @ x)
    h = h - 0.3 * jax.grad(E)(h)
    return h, h


@step("w W", often=False, exact=True)
def jvp_inside(m, x, h):
    f = lambda h: jnp.tanh(m["w"] * h)
    y, dy = jax.jvp(f, (h,), (jnp.ones(3),))
    h = 0.5 * y + 0.1 * dy + m["W"] @ x
    return h, h


@step("w W", often=False, exact=True)
def jacfwd_inside(m, x, h):
    J = jax.jacfwd(lambda h: jnp.tanh(m["w"] * h) * h[::-1])(h)
    h = 0.5 * h + 0.1 * J @ np.ones(3) + m["W"] @ x
    return h, h


@step("W R", exact=True)
def stop_grad_state(m, x, h):
    h = 0.5 * h + m["W"] @ x + m["R"] @ lax.stop_gradient(h)
    return h, h


@step("w W", often=False, exact=True)
def stop_grad_weight_path(m, x, h):
    h = 0.5 * h + (lax.stop_gradient(m["w"]) + m["w"]) * x[0] + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def complex_inside(m, x, h):
    z = jnp.exp(1j * h) * (m["W"] @ x)
    h = 0.5 * h + z.real + z.imag
    return h, h


@step("W", often=False, exact=True)
def fft_state(m, x, h):
    h = jnp.real(jnp.fft.ifft(jnp.fft.fft(h) * np.array([0.5, 0.4, 0.4]))) + m["W"] @ x
    return h, h


@step("W", often=False, state=H.astype(complex), exact=True)
def complex_state_abs(m, x, z):
    z = 0.5 * jnp.exp(0.3j) * z / (1 + jnp.abs(z + 1)) + m["W"] @ x
    return jnp.abs(z + 1), z


@step("R W", state=H.astype(complex))
def complex_state_conj_rec(m, x, z):
    z = 0.3 * jnp.conj(z) + m["R"] @ z.real * 1j + m["W"] @ x
    return z, z


@step("w W", often=False, state=H.astype(complex), exact=True)
def modrelu(m, x, z):
    r = jnp.abs(z + 1e-2)
    z = 0.8 * jax.nn.relu(r + m["w"]) * (z + 1e-2) / r + m["W"] @ x
    return z.imag + z.real, z


@step("v w", often=False, state=jnp.zeros((2, 3)), exact=True)
def state_einsum_fixed(m, x, S):
    K = np.arange(8.0).reshape(2, 2, 2) / 8
    S = 0.3 * jnp.einsum("abc,bd->ad", K[:, :, :1], S) + jnp.outer(m["v"] * x, m["w"])
    return S, S


@step("R", often=False, state=jnp.zeros((2, 3)), exact=True)
def swapaxes(m, x, S):
    S = 0.5 * S.T.reshape(2, 3) + m["R"][:2] * x[0]
    return S, S


@step("v", often=False, state=jnp.zeros((2, 2, 2)), exact=True)
def moveaxis(m, x, S):
    S = 0.5 * jnp.moveaxis(S, 0, 2) + m["v"][:, None, None] * x[None, :, None] * np.ones((1, 1, 2))
    return S, S


@step("W", often=False, exact=True)
def repeat_tile(m, x, h):
    h = 0.5 * jnp.tile(h[:2], 2)[:3] + 0.1 * jnp.repeat(h[1:], 2)[:3] + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def segment(m, x, h):
    h = (
        0.5 * jax.ops.segment_max(h, np.array([0, 0, 1]), 3, indices_are_sorted=True).clip(-9)
        + m["W"] @ x
    )
    return h, h


@step("W w", often=False, exact=True)
def unused_output_state(m, x, h):
    h = 0.5 * h + m["W"] @ x
    return x.sum() + (m["w"] * x[0]).sum() + 0 * h.sum() + h[0], h


@step("w", often=False, exact=True)
def x_unused(m, x, h):
    h = 0.5 * h + m["w"]
    return h, h


@step("W", often=False, state=(H, H), exact=True)
def identity_copy(m, x, s):
    a, b = s
    return b, (0.5 * a + m["W"] @ x, a)


@step("W", often=False, state=(H, H), exact=True)
def same_leaf_twice(m, x, s):
    a, b = s
    n = 0.5 * a + 0.2 * b + m["W"] @ x
    return n, (n, n)


@step("W w", often=False, state=(H, jnp.zeros(())), exact=True)
def batchnorm_like(m, x, s):
    h, mu = s
    c = m["W"] @ x
    mu = 0.9 * mu + 0.1 * c.mean()
    h = 0.5 * h + (c - mu) * m["w"]
    return h, (h, mu)


@step("W", often=False, exact=True)
def two_matmuls_same_weight_diff_data(m, x, h):
    h = 0.5 * h + jnp.tanh(m["W"] @ x) * (m["W"] @ (x * x))
    return h, h


@step("W", often=False, exact=True)
def weight_in_output_and_state(m, x, h):
    h = 0.5 * h + m["W"] @ x
    return h + m["W"] @ (x + 1), h


@step("R")
def weight_out_reads_state(m, x, h):
    h = 0.5 * h + m["R"] @ x3(x)
    return m["R"] @ h, h


@step("W", often=False, exact=True)
def round_ste(m, x, h):
    z = h + lax.stop_gradient(jnp.round(h) - h)
    h = 0.5 * z + m["W"] @ x
    return h, h


@step("W w R", exact=True)
def switch_by_state_int(m, x, h):
    i = jnp.clip(jnp.sum(h > 0), 0, 2)
    h = 0.5 * h + lax.switch(i, [lambda: m["W"] @ x, lambda: m["w"] * x[0], lambda: m["R"] @ x3(x)])
    return h, h


@step("W", often=False, exact=True)
def scan_ys_collect(m, x, h):
    def b(c, t):
        c = 0.5 * c + m["W"] @ x * t
        return c, c

    h, hs = lax.scan(b, h, jnp.arange(3.0))
    return hs, h


@step("W w", often=False, exact=True)
def scan_reverse(m, x, h):
    def b(c, t):
        c = 0.5 * c + (m["W"] @ x) * t
        return c, c * m["w"]

    h, hs = lax.scan(b, h, jnp.arange(3.0), reverse=True)
    return hs.sum(0), h


@step("W", exact=True)
def scan_unroll_xs_state(m, x, h):
    # a scan over the neurons: couples neighbours
    def b(c, v):
        c = 0.5 * c + v
        return c, c

    _, hs = lax.scan(b, jnp.zeros(()), h)
    h = 0.4 * hs + m["W"] @ x
    return h, h


@step("w", often=False, exact=True)
def scan_weights_xs(m, x, h):
    def b(c, w):
        c = 0.5 * c + w * x[0]
        return c, c

    _, hs = lax.scan(b, h[0], m["w"])
    h = 0.5 * h + hs
    return h, h


@step("W", often=False, exact=True)
def scan_int_carry(m, x, h):
    def b(c, _):
        i, c = c
        return (i + 1, jnp.where(i % 2 == 0, 0.5 * c, c + m["W"] @ x)), None

    (_, h), _ = lax.scan(b, (0, h), None, length=4)
    return h, h


@step("R W", often=False)
def scan_in_scan(m, x, h):
    def outer(c, _):
        def inner(d, _):
            return jnp.tanh(0.5 * d + m["R"] @ d * 0.1 + m["W"] @ x), None

        return lax.scan(inner, c, None, length=2)[0], None

    h = lax.scan(outer, h, None, length=2)[0]
    return h, h


@step("W w", exact=True)
def cond_in_scan(m, x, h):
    def b(c, i):
        return lax.cond(i % 2 == 0, lambda c: 0.5 * c + m["W"] @ x, lambda c: m["w"] * c, c), None

    h = lax.scan(b, h, jnp.arange(3))[0]
    return h, h


@step("w W", exact=True)
def fori_at_set(m, x, h):
    def b(i, c):
        return c.at[i].set(0.5 * c[i] + m["w"][i] * x[0])

    h = lax.fori_loop(0, 3, b, h) + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def reduce_custom(m, x, h):
    s = lax.reduce(h, -jnp.inf, lax.max, (0,))
    h = 0.5 * h - 0.1 * s + m["W"] @ x
    return h, h


@step("W", often=False, exact=True)
def logsumexp(m, x, h):
    h = 0.5 * h - 0.3 * jax.nn.logsumexp(h) + m["W"] @ x
    return h, h


@step("W t", often=False, exact=True)
def parameter_dict_tuple(m, x, h):
    h = 0.5 * h + m["W"] @ x + m["t"][0][0] * m["t"][1]
    return h, h


@step("W", often=False, exact=True, state=jnp.zeros((1, 3)))
def leading_one(m, x, h):
    h = 0.5 * h + x[None] @ m["W"].T
    return h, h


@step("E", inputs=integers(5))
def tied_embedding(m, x, h):
    h = jnp.tanh(0.5 * h + m["E"][x])
    return m["E"] @ h, h


@step("E", often=False, inputs=integers(5, 2), exact=True)
def emb_two_indices(m, x, h):
    h = 0.5 * h + m["E"][x[0]] + 2 * m["E"][x[1]]
    return h, h


@step("R E", inputs=integers(5))
def emb_then_proj(m, x, h):
    h = 0.5 * h + m["R"] @ m["E"][x]
    return h, h


@step("E v5", inputs=integers(5), exact=True)
def emb_matmul(m, x, h):
    h = 0.5 * h + m["E"][x] + m["v5"] @ m["E"]
    return h, h


@step("E", often=False, inputs=integers(5), exact=True)
def onehot_emb(m, x, h):
    h = 0.5 * h + jax.nn.one_hot(x, 5) @ m["E"] + m["E"][x]
    return h, h


@step("R E", inputs=integers(5))
def emb_recurrent(m, x, h):
    h = jnp.tanh(m["R"] @ h + m["E"][x])
    return m["E"] @ h, h


@step("R", exact=True)
def overlapping_slices(m, x, h):
    h = 0.5 * h
    return h, h.at[:2].add(m["R"][:2] @ x3(x)).at[1:].add(m["R"][1:] @ x3(x[::-1]))


@step("R", often=False, exact=True)
def slice_and_whole(m, x, h):
    h = 0.5 * h + m["R"] @ x3(x)
    h = h.at[:2].add(m["R"][:2, :2] @ x)
    return h, h


@step("R", exact=True)
def diag_and_whole(m, x, h):
    h = 0.5 * h + m["R"] @ x3(x) + jnp.diag(m["R"]) * x[0]
    return h, h


@step("R", often=False)
def diag_rec(m, x, h):
    h = 0.5 * h * jnp.diag(m["R"]) + m["R"] @ x3(x)
    return h, h


@step("R", often=False, exact=True)
def row_as_bias(m, x, h):
    h = 0.5 * h + m["R"] @ x3(x) + m["R"][0]
    return h, h


@step("R", often=False, exact=True)
def sum_of_weight(m, x, h):
    h = 0.5 * h + m["R"] @ x3(x) + m["R"].sum(1) * x[0]
    return h, h


@step("R")
def both_sides_rec(m, x, h):
    h = jnp.tanh(m["R"] @ h + h @ m["R"]) + x3(x)
    return h, h


@step("R", exact=True)
def both_sides_leak(m, x, h):
    h = 0.5 * h + m["R"] @ x3(x) + x3(x) @ m["R"]
    return h, h


@step("R", exact=True)
def both_sides_explicit_T(m, x, h):
    h = 0.5 * h + m["R"] @ x3(x) + m["R"].T @ x3(x)
    return h, h


@step("R")
def sym_rec(m, x, h):
    S = m["R"] + m["R"].T
    h = jnp.tanh(S @ h + x3(x))
    return h, h


@step("R", often=False, exact=True, state=jnp.zeros((3, 3)))
def left_right_matrix_state(m, x, S):
    X = jnp.outer(x3(x), x3(x))
    S = 0.5 * S + m["R"] @ X + X @ m["R"]
    return S, S


@step("R", state=jnp.zeros((3, 3)))
def left_right_matrix_rec(m, x, S):
    S = jnp.tanh(m["R"] @ S @ m["R"].T + jnp.outer(x3(x), x3(x)))
    return S, S


@step("K1", exact=True, inputs=normal(4))
def conv_two_strides(m, x, h):
    c = lambda s, p, x: lax.conv_general_dilated(x[None, None], m["K1"], (s,), p)[0, 0]
    h = 0.5 * h + c(2, [(1, 2)], x)[:3].sum() + c(1, [(1, 1)], x)[:3]
    return h, h


@step("K1", exact=True, inputs=normal(3))
def conv_and_transpose(m, x, h):
    c = lax.conv_general_dilated(x[None, None], m["K1"], (1,), [(1, 1)])[0, 0]
    d = lax.conv_transpose(
        x[None, None], m["K1"], (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH")
    )[0, 0]
    h = 0.5 * h + c + d
    return h, h


@step("K1", inputs=normal(3))
def conv_rec_and_in(m, x, h):
    c = lambda x: lax.conv_general_dilated(x[None, None], m["K1"], (1,), [(1, 1)])[0, 0]
    h = jnp.tanh(c(h) + c(x))
    return h, h


@step("K1", often=False, inputs=normal(3))
def conv_after_conv(m, x, h):
    c = lambda x: lax.conv_general_dilated(x[None, None], m["K1"], (1,), [(1, 1)])[0, 0]
    h = 0.5 * h + c(c(x))
    return h, h


@step("K1", often=False, exact=True, inputs=normal(3))
def conv_batch_as_time(m, x, h):
    X = jnp.stack([x, 2 * x[::-1]])
    c = lax.conv_general_dilated(X[:, None], m["K1"], (1,), [(1, 1)])[:, 0]
    h = 0.5 * h + c[0] * c[1]
    return h, h


@step("C3", exact=True, inputs=normal(2, 4), state=jnp.zeros((2, 4)))
def conv_batch_group(m, x, h):
    c = lax.conv_general_dilated(jnp.stack([x, x * 2]), m["C3"], (1,), [(1, 1)]).sum(0)
    h = 0.5 * h + c
    return h, h


@step("C3", exact=True, inputs=normal(2, 4), state=jnp.zeros((2, 4)))
def conv_batch_group_count(m, x, h):
    c = lax.conv_general_dilated(
        jnp.stack([x[:2], x[:2] * 2]), m["C3"], (1,), [(1, 1)], batch_group_count=2
    )[0]
    h = 0.5 * h + c
    return h, h


@step("VK", exact=True, inputs=normal(2, 4), state=jnp.zeros((2, 4)))
def vmapped_conv_kernel(m, x, h):
    # a kernel for each channel by vmap
    f = lambda k, x: lax.conv_general_dilated(x[None, None], k, (1,), [(1, 1)])[0, 0]
    h = 0.5 * h + jax.vmap(f)(m["VK"], x)
    return h, h


@step("image", exact=True, inputs=normal(4))
def data_as_kernel(m, x, h):
    # the input is the kernel, the weight is the image
    c = lax.conv_general_dilated(m["image"][None, None], x[None, None, :2], (1,), "VALID")[0, 0]
    h = 0.5 * h + c[:3]
    return h, h


@step("R W w", often=False)
def merged_then_bias(m, x, h):
    h = 0.5 * h + m["R"] @ (m["W"] @ x + m["w"])
    return h, h


@step("A B W", often=False)
def merged_rec(m, x, h):
    h = jnp.tanh(m["A"] @ (m["B"] @ h)) + m["W"] @ x
    return h, h


@step("B A")
def merged_B_elsewhere(m, x, h):
    t = m["B"] @ x3(x)
    h = 0.5 * h + m["A"] @ t + t[0]
    return h, h


@step("A B")
def merged_A_elsewhere(m, x, h):
    h = 0.5 * h + m["A"] @ (m["B"] @ x3(x)) + m["A"] @ x
    return h, h


@step("R A B", often=False)
def merged_three(m, x, h):
    h = 0.5 * h + m["R"] @ (m["A"] @ (m["B"] @ x3(x)))
    return h, h


@step("R", often=False)
def merged_same(m, x, h):
    h = 0.5 * h + m["R"] @ (m["R"] @ x3(x))
    return h, h


@step("R")
def merged_same_rec(m, x, h):
    h = jnp.tanh(m["R"] @ (m["R"] @ h)) + x3(x)
    return h, h


@step("A v B", often=False)
def merged_gain_between(m, x, h):
    h = 0.5 * h + m["A"] @ (m["v"] * (m["B"] @ x3(x)))
    return h, h


@step("A B D", often=False)
def merged_sum(m, x, h):
    h = 0.5 * h + m["A"] @ (m["B"] @ x3(x) + m["D"] @ x3(x))
    return h, h


@step("B A")
def merged_output_also(m, x, h):
    t = m["B"] @ x3(x)
    h = 0.5 * h + m["A"] @ t
    return (h, t), h


@step("B A", state=(H, jnp.zeros(2)), inputs=normal(2))
def merged_state_between(m, x, s):
    h, p = s
    t = m["B"] @ x3(x)
    h = 0.5 * h + m["A"] @ t
    return h, (h, 0.5 * p + t)


@step("w W", often=False)
def elementwise_after(m, x, h):
    h = 0.5 * h + m["w"] * (m["W"] @ x)
    return h, h


@step("w R W")
def elementwise_after_rec(m, x, h):
    h = jnp.tanh(m["w"] * (m["R"] @ h) + m["W"] @ x)
    return h, h


@step("W v", often=False)
def elementwise_before(m, x, h):
    h = 0.5 * h + m["W"] @ (m["v"] * x)
    return h, h


@step("R w W", often=False)
def elementwise_before_state(m, x, h):
    h = jnp.tanh(m["R"] @ (m["w"] * h)) + m["W"] @ x
    return h, h


@step("w W", exact=True)
def gain_twice(m, x, h):
    h = m["w"] * h + m["w"] * (m["W"] @ x) + m["w"]
    return m["w"] * h, h


@step("w W", often=False, exact=True)
def gain_of_gain(m, x, h):
    h = m["w"] * (m["w"] * h + x[0]) + m["W"] @ x
    return h, h


@step("w", often=False, exact=True)
def gain_permuted(m, x, h):
    h = m["w"] * h + m["w"][::-1] * x[0] + jnp.roll(m["w"], 1) * x[1]
    return h, h


@step("s W", often=False, exact=True)
def scalar_many(m, x, h):
    h = m["s"] * h + m["W"] @ x + m["s"]
    return m["s"] + h, h


@step("w W", often=False, exact=True)
def prefix_shared(m, x, h):
    a = jax.nn.sigmoid(m["w"])
    h = a * h + (1 - a) * (m["W"] @ x)
    return h, h


@step("w s W", often=False, exact=True)
def prefix_two_params(m, x, h):
    a = jax.nn.sigmoid(m["w"] * m["s"])
    h = a * h + jnp.sqrt(1 - a**2) * ((m["W"] * m["s"]) @ x)
    return h, h


@step("W", exact=True)
def weight_in_both_branches(m, x, h):
    d = lax.cond(x[0] > 0, lambda: m["W"] @ x, lambda: m["W"] @ (2 * x))
    h = 0.5 * h + d + m["W"] @ x
    return h, h


@step("R")
def branch_rec(m, x, h):
    h = lax.cond(x[0] > 0, lambda: jnp.tanh(m["R"] @ h), lambda: jnp.tanh(m["R"].T @ h)) + x3(x)
    return h, h


@step("R W")
def unrolled_scan_rec(m, x, h):
    h = lax.scan(
        lambda c, a: (jnp.tanh(m["R"] @ c + a * m["W"] @ x), None), h, jnp.array([1.0, -1, 0.5])
    )[0]
    return h, h


@step("W", exact=True)
def scan_weight_data_steps(m, x, h):
    d = lax.scan(
        lambda c, a: (c + m["W"] @ (a * x), m["W"] @ a),
        jnp.zeros(3),
        jnp.stack([x, x[::-1], x * x]),
    )
    h = 0.5 * h + d[0] + d[1].sum(0)
    return h, h


@step("R", often=False, exact=True)
def scan_weight_slices(m, x, h):
    d = lax.scan(lambda c, w: (c + w * x[0], w.sum() * x[1]), jnp.zeros(3), m["R"])
    h = 0.5 * h + d[0] + d[1]
    return h, h


@step("W", often=False, exact=True)
def vmap_over_rows(m, x, h):
    h = 0.5 * h + jax.vmap(lambda w: w @ x)(m["W"]) + jax.vmap(lambda w: w.sum())(m["W"]) * x[0]
    return h, h


@step("W w", often=False, exact=True, inputs=normal(4, 2))
def vmap_over_data_mean(m, x, h):
    h = 0.5 * h + jax.vmap(lambda x: jnp.tanh(m["W"] @ x + m["w"]))(x).mean(0)
    return h, h


@step("W W2", exact=True, inputs=normal(4, 2))
def attention_over_input(m, x, h):
    k = x @ m["W"].T
    a = jax.nn.softmax(k @ h)
    h = 0.5 * h + a @ (x @ m["W2"].T)
    return h, h


@step("B2", often=False, state=jnp.zeros((2, 2)), exact=True)
def batched_matmul(m, x, S):
    S = 0.5 * S + jnp.matmul(m["B2"], jnp.stack([x, x[::-1]])[:, :, None])[:, :, 0]
    return S, S


@step("B2", state=jnp.zeros((2, 2)))
def mixing_group_rec(m, x, S):
    S = jnp.tanh(jnp.einsum("gij,gj->ig", m["B2"], S)) + x[None]
    return S, S


@step("B2", state=jnp.zeros((2, 2)), exact=True)
def group_and_shared(m, x, S):
    S = (
        0.5 * S
        + jnp.einsum("gij,j->gi", m["B2"], x)
        + jnp.einsum("gij,gj->gi", m["B2"], jnp.stack([x, x[::-1]]))
    )
    return S, S


@step("w", often=False, exact=True)
def layernorm_linear(m, x, h):
    z = (x3(x) - x3(x).mean()) / jnp.sqrt(x3(x).var() + 1e-3)
    h = 0.5 * h + m["w"] * z + m["w"][::-1]
    return h, h


@step("R w W")
def ln_then_linear(m, x, h):
    z = (h - h.mean()) / jnp.sqrt(h.var() + 1e-1)
    h = jnp.tanh(m["R"] @ (m["w"] * z) + m["W"] @ x)
    return h, h


@step("W", often=False, exact=True, state=(H, H))
def two_states_one_weight(m, x, s):
    a, b = s
    return a, (0.5 * a + m["W"] @ x, 0.8 * b + m["W"] @ (x * x))


@step("W", exact=True, state=(H, jnp.zeros(2)))
def different_sizes_one_weight(m, x, s):
    a, b = s
    return (a, b), (0.5 * a + m["W"] @ x, 0.8 * b + x3(x) @ m["W"])


@step("W", state=(H, jnp.zeros(2)))
def bam(m, x, s):
    a, b = s
    na = jnp.tanh(m["W"] @ b + x[0])
    nb = jnp.tanh(m["W"].T @ a + x)
    return na, (na, nb)


@step("W", often=False, state=(H, jnp.zeros(2)))
def bam_noT(m, x, s):
    a, b = s
    na = jnp.tanh(m["W"] @ b + x[0])
    nb = jnp.tanh(a @ m["W"] + x)
    return na, (na, nb)


@step("w", exact=True, state=(H, H))
def one_bias_two_states(m, x, s):
    a, b = s
    return a * b, (0.5 * a + m["w"] + x[0], 0.8 * b + m["w"] * x[1] + 0.3 * a)


@step("v", exact=True, state=(H, jnp.zeros((), jnp.int32)))
def ring_weight(m, x, s):
    h, i = s
    h = (0.8 * h).at[i].add(m["v"] @ x)
    return h, (h, (i + 1) % 3)


@step("W", exact=True, state=(jnp.zeros((3, 3)), jnp.zeros((), jnp.int32)))
def ring_col(m, x, s):
    B, i = s
    r = lax.dynamic_index_in_dim(B, i, 1, keepdims=False)
    B = lax.dynamic_update_index_in_dim(B, 0.5 * r + m["W"] @ x, (i + 2) % 3, 1)
    return r, (B, (i + 1) % 3)


@step(
    "v",
    often=False,
    exact=True,
    state=(jnp.zeros((4,)), jnp.zeros((), jnp.int32)),
    inputs=normal(2),
)
def ring_roll(m, x, s):
    B, i = s
    B = jnp.roll(B, -i)
    B = B.at[0].set(0.5 * B[3] + m["v"] @ x)
    B = jnp.roll(B, i)
    return B, (B, (i + 1) % 4)


@step("W", often=False, exact=True, state=(H, jnp.zeros((), jnp.int32)))
def int_scale(m, x, s):
    h, i = s
    h = jnp.where(i % 2 == 0, 0.5 * h + m["W"] @ x, h[::-1])
    return h, (h, i + 1)


@step("W w", exact=True, state=(H, jnp.zeros((), jnp.int32)))
def switch_int_state(m, x, s):
    h, i = s
    h = lax.switch(
        i % 3,
        [lambda: 0.5 * h + m["W"] @ x, lambda: m["w"] * h, lambda: h[::-1] + m["W"] @ x[::-1]],
    )
    return h, (h, i + 1)


@step("W", exact=True, state=(H, jnp.array([2, 0, 1])))
def perm_state(m, x, s):
    h, p = s
    h = 0.5 * h[p] + m["W"] @ x
    return h, (h, p[::-1])
