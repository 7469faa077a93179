"""Kronecker sums with the optimal unbiased reduction, as a form that a user writes.

Benzing et al., "Optimal Kronecker-sum approximation of real time recurrent learning", arXiv 1902.03993: the influence
of a weight matrix, nothing cut, is kept as R pairs of factors. Each step adds one, and R + 1 pairs are reduced to R at
random, such that the mean is their sum and the variance is the least possible.
A window moves its pairs to its end, and they are added there one after the other.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from etpc.algorithms import Algorithm
from etpc.forms import Full, LowRank, Trace


def reduced(a, b, signs):
    """n pairs, [n, I] and [n, K], to n - 1, whose product has the same mean over `signs`, [n]."""
    n = len(a)
    a, b = (jnp.pad(f, [(0, 0), (0, max(n - f.shape[1], 0))]) for f in (a, b))
    (qa, ra), (qb, rb) = jnp.linalg.qr(a.T), jnp.linalg.qr(b.T)
    u, d, vt = jnp.linalg.svd(ra @ rb.T)
    rest = jnp.cumsum(d[::-1])[::-1]  # the sum of d from each on
    fit = jnp.arange(n - 1, 0, -1) * d[:-1] <= rest[:-1]
    first = jnp.argmax(fit)  # what is before it is kept as it is
    k, rest, mixed = n - 1 - first, rest[first], jnp.arange(n) >= first
    share = jnp.where(rest > 0, d * k / jnp.where(rest > 0, rest, 1), 0)
    z = jnp.where(mixed, jnp.sqrt(jnp.maximum(1 - share, 0)), 0)  # of length one
    across = z - jnp.eye(n)[-1]
    square = jnp.sum(across**2)
    mirror = jnp.eye(n) - jnp.outer(across, across) * jnp.where(square > 0, 2 / square, 0)
    scale = jnp.where(mixed, signs * jnp.sqrt(rest / k), jnp.sqrt(d))
    mix = scale[:, None] * mirror[:, :-1]  # its columns are orthogonal to z
    return (qa @ u @ mix).T, (qb @ vt.T @ mix).T


@dataclasses.dataclass(frozen=True)
class KroneckerSum(Trace):
    """Pairs of factors, and the number of windows, [B], which no reset sets back."""

    pairs: LowRank = LowRank(2)
    seed: int = 0
    exact = False
    reduces = True

    @property
    def held(self):
        return f"{self.pairs.rank} pairs of factors"

    @property
    def left_out(self):
        return "after each step the trace is reduced to as many pairs of factors, at random and unbiased"

    def settle(self, site):
        return self if site.factored else Full()

    def init(self, site, batch):
        return (*self.pairs.init(site, batch), jnp.zeros(batch, jnp.int32))

    def shapes(self, site):
        return self.pairs.shapes(site)

    def past(self, site, start, carry):
        return self.pairs.past(site, start, carry)

    def signs(self, number, shape):
        key = jax.random.fold_in(jax.random.key(self.seed), number[0])
        return jax.random.rademacher(key, shape)

    def move(self, site, passage, path, carry, start):
        a, b = self.pairs.all_pairs(site, passage, carry)  # [B, Q, G, I], [B, Q, m, G, O]
        a, b = jnp.moveaxis(a, 2, 1), jnp.moveaxis(b, 3, 1)
        flat = b.reshape(*b.shape[:3], -1)
        rank = self.pairs.rank
        signs = self.signs(carry[2], (*a.shape[:2], a.shape[2] - rank, rank + 1)).astype(a.dtype)

        def one(a, b, signs):
            kept_a, kept_b = a[:rank], b[:rank]
            for n, now in enumerate(signs, rank):
                more = (jnp.append(k, f[n : n + 1], 0) for k, f in ((kept_a, a), (kept_b, b)))
                kept_a, kept_b = reduced(*more, signs=now)
                kept_a, kept_b = kept_a[:, : a.shape[1]], kept_b[:, : b.shape[1]]
            return kept_a, kept_b

        kept_a, kept_b = jax.vmap(jax.vmap(one))(a, flat, signs)
        kept_b = kept_b.reshape(*kept_b.shape[:3], *b.shape[3:])
        new = jnp.moveaxis(kept_a, 1, 2), jnp.moveaxis(kept_b, 1, 3)
        return (*(n.reshape(c.shape) for n, c in zip(new, carry, strict=False)), carry[2] + 1)


@dataclasses.dataclass(frozen=True)
class OK(Algorithm):
    form: KroneckerSum = KroneckerSum()
    cut: ClassVar[bool] = False

    def trace_form(self, kind):
        return self.form
