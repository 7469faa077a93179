"""One-line steps: whatever operation the state, the data and the weights may meet in.

Each reads the parameters of its signature; those of `EXACT`, and others that say so, must be said to be exact. Where a
step is one expression, it is the new state and the output; a state or inputs of another shape follow it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.marks import few
from tests.zoo.check import check, integers, normal, weights

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


def step(state=H, inputs=None, exact=False):
    """Register a step `(x, h, *parameters) -> (y, h)`; by default the state has 3 numbers, the input 2."""

    def register(function, name=None):
        name = name or function.__name__
        assert name not in STEPS
        _, _, *names = inspect.signature(function).parameters
        call = lambda m, x, h: function(x, h, **m)
        parameters = {name: PARAMETERS[name] for name in names}
        xs = normal(2) if inputs is None else inputs
        STEPS[name] = Step(call, parameters, state, xs, exact)
        return function

    return register


def x3(x):
    """Three numbers of two."""
    return jnp.concatenate([x, x[:1]])


def conv(kernel, x, padding=((1, 1),)):
    return lax.conv_general_dilated(x[None, None], kernel, (1,), padding)[0, 0]


FIXED = np.arange(8.0).reshape(2, 2, 2) / 8
EXACT = {
    "logcumsum": lambda x, h, W: 0.5 * lax.cumlogsumexp(h) + W @ x,
    "interp_state": lambda x, h, W: (
        0.5 * jnp.interp(h, np.linspace(-2, 2, 5), np.linspace(-1, 1, 5) ** 3) + W @ x
    ),
    "onehot_time": lambda x, h, W: 0.5 * h + jax.nn.one_hot(jnp.argmax(h), 3) * (W @ x),
    "weight_norm_of_state": lambda x, h, W: 0.5 * h / jnp.maximum(1.0, jnp.linalg.norm(h)) + W @ x,
    "weight_max_data": lambda x, h, W, w: jnp.maximum(0.5 * h + W @ x, w),
    "weight_where": lambda x, h, w, W: jnp.where(x[0] > 0, w, 0.5 * h) + W @ x,
    "weight_pow_state": lambda x, h, w, W: jnp.abs(h + 0.1) ** jax.nn.softplus(w) + W @ x,
    "weight_atan2": lambda x, h, w, W: jnp.arctan2(h, w + 2) + W @ x,
    "erf_gamma": lambda x, h, w, W: (
        jax.scipy.special.erf(w * h) + 0.1 * jax.scipy.special.gammaln(1.5 + h**2) + W @ x
    ),
    "weight_pad": lambda x, h, W: 0.5 * h + jnp.pad(W @ x, (1, 0))[:3] + W @ x,
    "weight_scatter_mul": lambda x, h, w, W: (0.5 * h).at[jnp.argmax(x)].multiply(w[0]) + W @ x,
    "weight_scatter_set": lambda x, h, w, W: (0.5 * h).at[jnp.argmax(x)].set(w[0]) + W @ x,
    "stop_grad_weight_path": lambda x, h, w, W: 0.5 * h + (lax.stop_gradient(w) + w) * x[0] + W @ x,
    "two_matmuls_same_weight_diff_data": lambda x, h, W: 0.5 * h + jnp.tanh(W @ x) * (W @ (x * x)),
    "emb_matmul": (lambda x, h, E, v5: 0.5 * h + E[x] + v5 @ E, H, integers(5)),
    "onehot_emb": (lambda x, h, E: 0.5 * h + jax.nn.one_hot(x, 5) @ E + E[x], H, integers(5)),
    "diag_and_whole": lambda x, h, R: 0.5 * h + R @ x3(x) + jnp.diag(R) * x[0],
    "row_as_bias": lambda x, h, R: 0.5 * h + R @ x3(x) + R[0],
    "both_sides_leak": lambda x, h, R: 0.5 * h + R @ x3(x) + x3(x) @ R,
    "both_sides_explicit_T": lambda x, h, R: 0.5 * h + R @ x3(x) + R.T @ x3(x),
    "gain_of_gain": lambda x, h, w, W: w * (w * h + x[0]) + W @ x,
    "gain_permuted": lambda x, h, w: w * h + w[::-1] * x[0] + jnp.roll(w, 1) * x[1],
    "vmap_over_data_mean": (
        lambda x, h, W, w: 0.5 * h + jax.vmap(lambda x: jnp.tanh(W @ x + w))(x).mean(0),
        H,
        normal(4, 2),
    ),
    "group_and_shared": (
        lambda x, S, B2: (
            0.5 * S
            + jnp.einsum("gij,j->gi", B2, x)
            + jnp.einsum("gij,gj->gi", B2, jnp.stack([x, x[::-1]]))
        ),
        jnp.zeros((2, 2)),
    ),
    "weight_reshape_slices": lambda x, h, R: (
        0.5 * h + (w := R.reshape(-1))[:3] * x[0] + w[3:6] * x[1] + w[::3]
    ),
    "weight_index_by_state": lambda x, h, R, W: (
        0.5 * h + R[jnp.clip(jnp.floor(h[0] * 2).astype(int), 0, 2)] * x[0] + W @ x
    ),
    "weight_dus": lambda x, h, w: (
        0.5 * h + lax.dynamic_update_slice(jnp.zeros(4) + x[0], w, (jnp.argmax(x),))[:3] * x[1]
    ),
    "nested_vmap_scan": lambda x, h, w, W: jax.vmap(
        lambda v, w, i: lax.fori_loop(0, 3, lambda _, v: 0.5 * v + w * i, v)
    )(h, w, W @ x),
    "complex_inside": lambda x, h, W: 0.5 * h + (z := jnp.exp(1j * h) * (W @ x)).real + z.imag,
    "state_einsum_fixed": (
        lambda x, S, v, w: 0.3 * jnp.einsum("abc,bd->ad", FIXED[:, :, :1], S) + jnp.outer(v * x, w),
        jnp.zeros((2, 3)),
    ),
    "fori_at_set": lambda x, h, w, W: (
        lax.fori_loop(0, 3, lambda i, c: c.at[i].set(0.5 * c[i] + w[i] * x[0]), h) + W @ x
    ),
    "reduce_custom": lambda x, h, W: 0.5 * h - 0.1 * lax.reduce(h, -jnp.inf, lax.max, (0,)) + W @ x,
    "prefix_two_params": lambda x, h, w, s, W: (
        (a := jax.nn.sigmoid(w * s)) * h + jnp.sqrt(1 - a**2) * ((W * s) @ x)
    ),
    "attention_over_input": (
        lambda x, h, W, W2: 0.5 * h + jax.nn.softmax((x @ W.T) @ h) @ (x @ W2.T),
        *(H, normal(4, 2)),
    ),
    "same_leaf_twice": (
        lambda x, s, W: (n := 0.5 * s[0] + 0.2 * s[1] + W @ x, n),
        (H, H),
    ),
    "two_states_one_weight": (
        lambda x, s, W: (0.5 * s[0] + W @ x, 0.8 * s[1] + W @ (x * x)),
        (H, H),
    ),
    "different_sizes_one_weight": (
        lambda x, s, W: (0.5 * s[0] + W @ x, 0.8 * s[1] + x3(x) @ W),
        (H, jnp.zeros(2)),
    ),
    "one_bias_two_states": (
        lambda x, s, w: (0.5 * s[0] + w + x[0], 0.8 * s[1] + w * x[1] + 0.3 * s[0]),
        (H, H),
    ),
    "perm_state": (
        lambda x, s, W: (0.5 * s[0][s[1]] + W @ x, s[1][::-1]),
        (H, jnp.array([2, 0, 1])),
    ),
    "conv_and_transpose": (
        lambda x, h, K1: (
            0.5 * h
            + conv(K1, x)
            + lax.conv_transpose(
                x[None, None], K1, (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH")
            )[0, 0]
        ),
        *(H, normal(3)),
    ),
    "conv_batch_group_count": (
        lambda x, h, C3: (
            0.5 * h
            + lax.conv_general_dilated(
                jnp.stack([x[:2], x[:2] * 2]), C3, (1,), [(1, 1)], batch_group_count=2
            )[0]
        ),
        *(jnp.zeros((2, 4)), normal(2, 4)),
    ),
    "a kernel for each channel": (
        lambda x, h, VK: 0.5 * h + jax.vmap(conv)(VK, x),
        *(jnp.zeros((2, 4)), normal(2, 4)),
    ),
    "the input as kernel of a weight": (
        lambda x, h, image: 0.5 * h + conv(x[None, None, :2], image, "VALID")[:3],
        *(H, normal(4)),
    ),
}
INEXACT = {
    "weight_squared": lambda x, h, R, W: jnp.tanh(R @ (R @ h) + W @ x),
    "complex_state_conj_rec": (
        lambda x, z, R, W: 0.3 * jnp.conj(z) + R @ z.real * 1j + W @ x,
        H.astype(complex),
    ),
    "both_sides_rec": lambda x, h, R: jnp.tanh(R @ h + h @ R) + x3(x),
    "left_right_matrix_rec": (
        lambda x, S, R: jnp.tanh(R @ S @ R.T + jnp.outer(x3(x), x3(x))),
        jnp.zeros((3, 3)),
    ),
    "merged_then_bias": lambda x, h, R, W, w: 0.5 * h + R @ (W @ x + w),
    "merged_rec": lambda x, h, A, B, W: jnp.tanh(A @ (B @ h)) + W @ x,
    "merged_A_elsewhere": lambda x, h, A, B: 0.5 * h + A @ (B @ x3(x)) + A @ x,
    "merged_three": lambda x, h, R, A, B: 0.5 * h + R @ (A @ (B @ x3(x))),
    "merged_same": lambda x, h, R: 0.5 * h + R @ (R @ x3(x)),
    "merged_same_rec": lambda x, h, R: jnp.tanh(R @ (R @ h)) + x3(x),
    "merged_gain_between": lambda x, h, A, v, B: 0.5 * h + A @ (v * (B @ x3(x))),
    "merged_sum": lambda x, h, A, B, D: 0.5 * h + A @ (B @ x3(x) + D @ x3(x)),
    "elementwise_after": lambda x, h, w, W: 0.5 * h + w * (W @ x),
    "elementwise_before": lambda x, h, W, v: 0.5 * h + W @ (v * x),
    "mixing_group_rec": (
        lambda x, S, B2: jnp.tanh(jnp.einsum("gij,gj->ig", B2, S)) + x[None],
        jnp.zeros((2, 2)),
    ),
    "sym_rec": lambda x, h, R: jnp.tanh((R + R.T) @ h + x3(x)),
    "conv_rec_and_in": (lambda x, h, K1: jnp.tanh(conv(K1, h) + conv(K1, x)), H, normal(3)),
    "conv_after_conv": (lambda x, h, K1: 0.5 * h + conv(K1, conv(K1, x)), H, normal(3)),
    "merged_state_between": (
        lambda x, s, B, A: (0.5 * s[0] + A @ (t := B @ x3(x)), 0.5 * s[1] + t),
        (H, jnp.zeros(2)),
    ),
    "bam": (
        lambda x, s, W: (jnp.tanh(W @ s[1] + x[0]), jnp.tanh(W.T @ s[0] + x)),
        (H, jnp.zeros(2)),
    ),
    "merged_B_elsewhere": lambda x, h, B, A: 0.5 * h + A @ (t := B @ x3(x)) + t[0],
}


@step(state=jnp.eye(2) * 1.0)
def eigh_state(x, S, v):
    w, _ = jnp.linalg.eigh(S + jnp.diag(np.array([0.0, 1.0])) + jnp.outer(x, x))
    S = 0.5 * S + jnp.diag(w * v)
    return w, S


@step(exact=True, state=H.astype(complex))
def complex_state_abs(x, z, W):
    z = 0.5 * jnp.exp(0.3j) * z / (1 + jnp.abs(z + 1)) + W @ x
    return jnp.abs(z + 1), z


@step(exact=True)
def weight_in_output_and_state(x, h, W):
    h = 0.5 * h + W @ x
    return h + W @ (x + 1), h


@step(exact=True)
def scan_reverse(x, h, W, w):
    def b(c, t):
        c = 0.5 * c + (W @ x) * t
        return c, c * w

    h, hs = lax.scan(b, h, jnp.arange(3.0), reverse=True)
    return hs.sum(0), h


@step(exact=True)
def scan_int_carry(x, h, W):
    def b(c, _):
        i, c = c
        return (i + 1, jnp.where(i % 2 == 0, 0.5 * c, c + W @ x)), None

    (_, h), _ = lax.scan(b, (0, h), None, length=4)
    return h, h


@step(inputs=integers(5))
def emb_recurrent(x, h, R, E):
    h = jnp.tanh(R @ h + E[x])
    return E @ h, h


@step(exact=True)
def overlapping_slices(x, h, R):
    h = 0.5 * h
    return h, h.at[:2].add(R[:2] @ x3(x)).at[1:].add(R[1:] @ x3(x[::-1]))


@step()
def merged_output_also(x, h, B, A):
    t = B @ x3(x)
    h = 0.5 * h + A @ t
    return (h, t), h


@step(exact=True)
def gain_twice(x, h, w, W):
    h = w * h + w * (W @ x) + w
    return w * h, h


@step(exact=True, state=(jnp.zeros((3, 3)), jnp.zeros((), jnp.int32)))
def ring_col(x, s, W):
    B, i = s
    r = lax.dynamic_index_in_dim(B, i, 1, keepdims=False)
    B = lax.dynamic_update_index_in_dim(B, 0.5 * r + W @ x, (i + 2) % 3, 1)
    return r, (B, (i + 1) % 3)


def _register(table, exact):
    for name, entry in table.items():
        function, *state_and_inputs = entry if isinstance(entry, tuple) else (entry,)
        both = functools.wraps(function)(lambda *args, f=function, **m: (f(*args, **m),) * 2)
        step(*state_and_inputs, exact=exact)(both, name)


_register(EXACT, True)
_register(INEXACT, False)

SIZE = 8
OFTEN = ("complex_state_conj_rec", "emb_recurrent", "conv_rec_and_in", "weight_squared")


def groups():
    """Steps that are checked as parts of one model, so that less is compiled: all are exact, or none is."""
    found = {"often": OFTEN}
    for exact in (True, False):
        names = [n for n, step in STEPS.items() if step.exact == exact and n not in OFTEN]
        for start in range(0, len(names), SIZE):
            found[f"{'exact' if exact else 'others'} {start}"] = names[start : start + SIZE]
    return found


GROUPS = groups()


def together(names):
    """The parameters, inputs, state and step of a model of independent parts."""
    parts = {name: STEPS[name] for name in names}

    def step(m, x, h):
        both = {n: part.function(m[n], x[n], h[n]) for n, part in parts.items()}
        return {n: y for n, (y, _) in both.items()}, {n: new for n, (_, new) in both.items()}

    fields = ("parameters", "inputs", "state")
    return *({n: getattr(p, field) for n, p in parts.items()} for field in fields), step


@pytest.mark.parametrize("group", few(GROUPS, "often"))
def test_steps(group):
    names = GROUPS[group]
    check(*together(names), exact=STEPS[names[0]].exact)


@pytest.mark.long
@pytest.mark.parametrize("group", GROUPS)
def test_windows_of_steps(group):
    names = GROUPS[group]
    check(*together(names), exact=STEPS[names[0]].exact, every=True)
