"""UORO, in windows, as directions that a user writes: the influence that escapes from the traces, as an unbiased
estimate of rank one.

Tallec and Ollivier, "Unbiased online recurrent optimization", arXiv 1702.05043, algorithm 1: with random signs nu,
`s' = rho_0 J s + rho_1 nu` and `theta' = theta / rho_0 + nu^T F / rho_1`, whose product has the influence as its mean.
Here, J and F are those of a window and `nu^T F` is a backward pass from its end; the block of each output is in the
trace of D-RTRL, and so known without noise; rho_1 is 1, and rho_0 keeps `J s` as long as nu. (Theirs balance the
lengths of s and theta. The mean is the same for all that do not depend on the signs of nu.)
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import etpc
from etpc.algorithms import Algorithm, Choice, InWindow
from etpc.traces import Directions, Full

T, I, N, W = 7, 2, 3, 2


@dataclasses.dataclass(frozen=True)
class RandomDirection(Directions):
    """The batch shares the number of windows; each example has s, [B, S]."""

    count: int = 1
    seed: int = 0
    left_out = "carried as an unbiased estimate of rank one"

    def init(self, size, dtype):
        return (jnp.zeros((), jnp.int32),)

    def each(self, size, batch, dtype):
        return (jnp.zeros((batch, size), dtype),)

    def signs(self, number, shape):
        key = jax.random.fold_in(jax.random.key(self.seed), number)
        return jax.random.rademacher(key, shape)

    def ends(self, shared, each):
        return self.signs(shared[0], each[0].shape).astype(each[0].dtype)[:, None], None

    def coefficients(self, shared, each, credit):
        return jnp.sum(credit * each[0], 1, keepdims=True)

    def advance(self, shared, each, ends, chosen, starts, credit, push):
        moved = push(each[0][:, None])
        length = jnp.linalg.norm(moved, axis=2, keepdims=True)
        some = length > 0
        rho = jnp.where(some, ends.shape[2] ** 0.5 / jnp.where(some, length, 1), 1)
        return 1 / rho, (shared[0] + 1,), ((rho * moved + ends)[:, 0],)


@dataclasses.dataclass(frozen=True)
class UORO(Algorithm):
    directions: Directions = RandomDirection()
    in_window: InWindow = dataclasses.field(default="exact", kw_only=True)
    follows: ClassVar[bool] = True

    def choose(self, context):
        return Choice({op.number: Full() for op in context.ops}, directions=self.directions)


class AllSigns(RandomDirection):
    """Each example of a batch has signs of its own, and together they have all."""

    def signs(self, number, shape):
        example, state = jnp.indices(shape)
        return 1 - 2 * (example >> (shape[1] * number + state) & 1)


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


MODEL = {"w": normal(N, N, seed=0), "u": normal(N, I, seed=1)}
XS, TARGETS = normal(T, I, seed=2), normal(T, N, seed=3)


def step(m, x, h):
    h = jnp.tanh(m["w"] @ h + m["u"] @ x)
    return h, h


def online(algo, batch):
    program = etpc.compile(MODEL, algo, inputs=XS[0], state=jnp.zeros(N), step=step)
    xs, targets = (jnp.repeat(jnp.asarray(a)[:, None], batch, 1) for a in (XS, TARGETS))
    run = program.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2), "sum")
    (_, carry), grads = run(MODEL, xs, targets, program.init(batch))
    return program, np.concatenate([grads["w"], grads["u"]], 1), carry


def rtrl(count=T):
    """By hand: the influence of `[w, u]` on h, [N, N, N + I]."""
    h, influence, grad = np.zeros(N), np.zeros((N, N, N + I)), 0.0
    for x, target in zip(XS[:count], TARGETS[:count], strict=True):
        read = np.concatenate([h, x])
        h = np.tanh(MODEL["w"] @ h + MODEL["u"] @ x)
        influence = np.einsum("ij,jkl->ikl", MODEL["w"], influence)
        influence += np.eye(N)[:, :, None] * read
        influence *= (1 - h**2)[:, None, None]
        grad = grad + np.einsum("i,ikl->kl", 2 * (h - target), influence)
    return grad


def test_the_mean_over_all_signs_is_rtrl():
    windows_that_count = -(-T // W) - 1
    algo = UORO(AllSigns(), window=W)
    program, mean, carry = online(algo, 2 ** (N * windows_that_count))
    np.testing.assert_allclose(mean, rtrl(), rtol=0, atol=1e-9)
    assert not program.exact
    assert int(carry.shared[0]) == windows_that_count + 1


def test_one_draw_is_not():
    program, one, _ = online(UORO(window=W), 1)
    _, other, _ = online(UORO(RandomDirection(seed=1), window=W), 1)
    assert "unbiased estimate" in str(program)
    assert np.abs(one - rtrl()).max() > 1e-2
    assert np.abs(one - other).max() > 1e-2
