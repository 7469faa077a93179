"""Kronecker-factored RTRL (KF-RTRL), as a form that a user writes.

Mujika et al., "Approximating real-time recurrent learning with random Kronecker factors", NeurIPS 2018, algorithm 1:
the influence of a weight matrix, nothing cut, is kept as one pair of factors: a [I], which is like the data, and
b [S O], one number for each state and output. Each step moves b through the transition of all states, and has a pair of
its own, the data and F. The two pairs become one with random signs, `(c1 p1 a + c2 p2 x) (c1 b / p1 + c2 F / p2)^T`,
whose mean is their sum; p makes both factors of a pair equally long, which gives the least variance.

A window moves its pairs to its end, and they are added there one after the other, after its gradient was computed: what
a step adds is exact in the gradient of that step, while in the source it is already mixed. Each weight matrix has
signs of its own, and one that is not multiplied with data, such as a bias, has its whole influence.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from etpc.algorithms import Algorithm
from etpc.forms import Carry, Full, LowRank, Passage, Rows, Site, Trace
from etpc.ops import Kind


@dataclasses.dataclass(frozen=True)
class KroneckerFactor(Trace):
    """A pair of factors, and the number of windows, [B], which no reset sets back."""

    seed: int = 0
    pair: LowRank = LowRank(1)
    exact = False
    reduces = True

    @property
    def left_out(self) -> str:
        return "at each step two pairs of factors become one, at random and unbiased"

    @property
    def held(self) -> str:
        return "one pair of factors"

    def settle(self, site: Site) -> Trace:
        return self if site.factored else Full()

    def init(self, site: Site, batch: int) -> Carry:
        return (*self.pair.init(site, batch), jnp.zeros(batch, jnp.int32))

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        return self.pair.shapes(site)

    def past(self, site: Site, start: Array, carry: Carry) -> list[Rows]:
        return self.pair.past(site, start, carry)

    def signs(self, number: Array, shape: tuple[int, ...]) -> Array:
        """-1 or 1 for the two pairs of each step, [B, G, W, 2]."""
        key = jax.random.fold_in(jax.random.key(self.seed), number[0])
        return jax.random.rademacher(key, shape)

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        a, b = self.pair.all_pairs(site, passage, carry)  # [B, 1 + W, G, I], [B, 1 + W, m, G, O]
        a, b = jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0).swapaxes(2, 3)
        flat = b.reshape(*b.shape[:3], -1)  # [1 + W, B, G, m O]
        signs = self.signs(carry[2], (*a.shape[1:3], len(a) - 1, 2)).astype(a.dtype)

        def add(pair: tuple[Array, Array], step: tuple[Array, Array, Array]):
            (a, b), (x, f, signs) = pair, step
            p1, p2 = balance(a, b), balance(x, f)
            c1, c2 = signs[..., :1], signs[..., 1:]
            return (c1 * p1 * a + c2 * p2 * x, c1 * b / p1 + c2 * f / p2), None

        steps = a[1:], flat[1:], jnp.moveaxis(signs, 2, 0)
        (a, flat), _ = lax.scan(add, (a[0], flat[0]), steps)
        new_b = flat.reshape(b.shape[1:]).swapaxes(1, 2)  # [B, m, G, O]
        return a.reshape(carry[0].shape), new_b.reshape(carry[1].shape), carry[2] + 1


def balance(a: Array, b: Array) -> Array:
    """What makes `a` as long as `b`, times a number and divided by it; one where one of them is zero."""
    long_a, long_b = (jnp.linalg.norm(f, axis=-1, keepdims=True) for f in (a, b))
    both = (long_a > 0) & (long_b > 0)
    return jnp.where(both, jnp.sqrt(jnp.where(both, long_b, 1) / jnp.where(both, long_a, 1)), 1)


@dataclasses.dataclass(frozen=True)
class KF_RTRL(Algorithm):
    form: KroneckerFactor = KroneckerFactor()
    cut: ClassVar[bool] = False

    def trace_form(self, kind: Kind) -> KroneckerFactor:
        return self.form
