"""The trace as pairs of factors that are reduced at random after each step, and unbiased."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..forms import WHOLE_TRACE, Carry, Full, LowRank, Meaning, Passage, Rows, Site, Trace

Pairs = tuple[Array, Array]
"""Factors of data, [B, G, n, I], and of states and outputs, [B, G, n, m O]."""


class RandomPairs(Trace):
    """The pairs of a `LowRank`, and the number of windows, [B], which no reset sets back.

    A window moves its pairs to its end, and they are added there one after the other, after its gradient was computed:
    what a step adds is exact in the gradient of its own window.
    """

    rank: int
    seed: int
    reduces = True
    drawn: ClassVar[str]
    """What reduces the pairs, by its name in a `Meaning`."""

    @property
    def held(self) -> str:
        return "one pair of factors" if self.rank == 1 else f"{self.rank} pairs of factors"

    @property
    def pairs(self) -> LowRank:
        return LowRank(self.rank)

    def meaning(self) -> Meaning:
        return dataclasses.replace(WHOLE_TRACE, rank=self.rank, drawn=self.drawn)

    def settle(self, site: Site) -> Trace:
        return self if site.factored else Full()

    def init(self, site: Site, batch: int) -> Carry:
        return (*self.pairs.init(site, batch), jnp.zeros(batch, jnp.int32))

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        return self.pairs.shapes(site)

    def past(self, site: Site, start: Array, carry: Carry) -> list[Rows]:
        return self.pairs.past(site, start, carry)

    def signs(self, number: Array, shape: tuple[int, ...]) -> Array:
        """-1 or 1 for each step and each pair of it, [B, G, W, R + 1]."""
        return random_signs(self.seed, number[0], shape)

    def reduced(self, kept: Pairs, new: Pairs, signs: Array) -> Pairs:
        """R pairs in the place of R and one more."""
        raise NotImplementedError

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        a, b = self.pairs.all_pairs(site, passage, carry)  # [B, Q, G, I], [B, Q, m, G, O]
        a, b = jnp.moveaxis(a, 1, 2), jnp.moveaxis(b, 3, 1)
        flat, rank = b.reshape(*b.shape[:3], -1), self.rank
        signs = self.signs(carry[2], (*a.shape[:2], a.shape[2] - rank, rank + 1)).astype(a.dtype)
        of_steps: Callable[[Array], Array] = lambda f: jnp.moveaxis(f, 2, 0)[:, :, :, None]

        def add(kept: Pairs, step: tuple[Array, Array, Array]) -> tuple[Pairs, None]:
            return self.reduced(kept, step[:2], step[2][:, :, 0]), None

        steps = of_steps(a[:, :, rank:]), of_steps(flat[:, :, rank:]), of_steps(signs)
        (a, flat), _ = lax.scan(add, (a[:, :, :rank], flat[:, :, :rank]), steps)
        b = flat.reshape(*flat.shape[:3], *b.shape[3:])
        new = jnp.moveaxis(a, 1, 2), jnp.moveaxis(b, 1, 3)
        return (*(n.reshape(c.shape) for n, c in zip(new, carry, strict=False)), carry[2] + 1)


@dataclasses.dataclass(frozen=True)
class KroneckerFactor(RandomPairs):
    """One pair, which the pair of each step is added to with random signs:
    `(c1 p1 a + c2 p2 x) (c1 b / p1 + c2 F / p2)^T`. Each p makes both factors of a pair equally long."""

    seed: int = 0
    rank = 1
    exact = False
    drawn = "signs"

    @property
    def left_out(self) -> str:
        return "at each step two pairs of factors become one, at random and unbiased"

    def reduced(self, kept: Pairs, new: Pairs, signs: Array) -> Pairs:
        (a, b), (x, f) = kept, new
        p1, p2 = _balance(a, b), _balance(x, f)
        c1, c2 = signs[..., :1, None], signs[..., 1:, None]
        return c1 * p1 * a + c2 * p2 * x, c1 * b / p1 + c2 * f / p2


@dataclasses.dataclass(frozen=True)
class KroneckerSum(RandomPairs):
    """R pairs, to which those of R and of a step are reduced with the least variance of all unbiased reductions."""

    rank: int = 2
    seed: int = 0
    exact = False
    drawn = "least_variance"

    @property
    def left_out(self) -> str:
        return "after each step the trace is reduced to as many pairs of factors, at random and unbiased"

    def reduced(self, kept: Pairs, new: Pairs, signs: Array) -> Pairs:
        a, b = (jnp.concatenate(pair, 2) for pair in zip(kept, new, strict=True))
        left, right = jax.vmap(jax.vmap(least_variance))(a, b, signs)
        return left[..., : a.shape[-1]], right[..., : b.shape[-1]]


def random_signs(seed: int, number: Array, shape: tuple[int, ...]) -> Array:
    """-1 or 1, the same in all precisions."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    return jnp.where(jax.random.bernoulli(key, jnp.float32(0.5), shape), 1, -1)


def _balance(a: Array, b: Array) -> Array:
    """What makes `a` as long as `b`, times a number and divided by it; one where one of them is zero."""
    long_a, long_b = (jnp.linalg.norm(f, axis=-1, keepdims=True) for f in (a, b))
    both = (long_a > 0) & (long_b > 0)
    return jnp.where(both, jnp.sqrt(jnp.where(both, long_b, 1) / jnp.where(both, long_a, 1)), 1)


def least_variance(a: Array, b: Array, signs: Array) -> tuple[Array, Array]:
    """n pairs, [n, I] and [n, K], as n - 1, whose product has the same mean over `signs`, [n]. Short factors are padded
    with zeros to a length of n."""
    n = len(a)
    a, b = (jnp.pad(f, [(0, 0), (0, max(n - f.shape[1], 0))]) for f in (a, b))
    (qa, ra), (qb, rb) = jnp.linalg.qr(a.T), jnp.linalg.qr(b.T)
    u, d, vt = jnp.linalg.svd(ra @ rb.T)
    rest = jnp.cumsum(d[::-1])[::-1]  # the sum of d from each on
    fit = jnp.arange(n - 1, 0, -1) * d[:-1] <= rest[:-1]
    first = jnp.argmax(fit)  # what is before it is kept as it is
    k, rest, mixed = n - 1 - first, rest[first], jnp.arange(n) >= first
    share = jnp.where(rest > 0, d * k / jnp.where(rest > 0, rest, 1), 0)
    unit = jnp.eye(n, dtype=d.dtype)
    z = jnp.where(mixed, jnp.sqrt(jnp.maximum(1 - share, 0)), 0)  # of length one
    across = z - unit[-1]
    square = jnp.sum(across**2)
    mirror = unit - jnp.outer(across, across) * jnp.where(square > 0, 2 / square, 0)
    scale = jnp.where(mixed, signs * jnp.sqrt(rest / k), jnp.sqrt(d))
    mix = scale[:, None] * mirror[:, :-1]  # its columns are orthogonal to z
    return (qa @ u @ mix).T, (qb @ vt.T @ mix).T
