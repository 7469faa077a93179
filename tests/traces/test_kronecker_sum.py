"""Kronecker sums with the optimal unbiased reduction, as a form that a user writes.

Benzing et al., "Optimal Kronecker-sum approximation of real time recurrent learning", arXiv 1902.03993: the influence
of a weight matrix, nothing cut, is kept as R pairs of factors. Each step adds one, and R + 1 pairs are reduced to R at
random, such that the mean is their sum and the variance is the least possible (section 3 and its algorithm 1 there).
A window moves its pairs to its end, and they are added there one after the other.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.algorithms import Algorithm
from etpc.traces import Full, LowRank
from tests.traces.test_uoro import MODEL, TARGETS, XS, N, T, rtrl, step


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
class KroneckerSum(LowRank):
    """Also the number of windows, [B], which no reset sets back."""

    seed: int = 0
    left_out = (
        "after each step the trace is reduced to as many pairs of factors, at random and unbiased"
    )

    def settle(self, site):
        return self if site.factored else Full()

    def init(self, site, batch):
        return (*super().init(site, batch), jnp.zeros(batch, jnp.int32))

    def restart(self, site, carry, fresh):
        return (*super().restart(site, carry[:2], fresh), carry[2])

    def signs(self, number, shape):
        key = jax.random.fold_in(jax.random.key(self.seed), number[0])
        return jax.random.rademacher(key, shape)

    def advance(self, site, passage, carry, followed, start):
        a, b = self.all_pairs(site, passage, carry)  # [B, Q, G, I], [B, Q, m, G, O]
        a, b = jnp.moveaxis(a, 2, 1), jnp.moveaxis(b, 3, 1)
        flat = b.reshape(*b.shape[:3], -1)
        steps = a.shape[2] - self.rank
        signs = self.signs(carry[2], (*a.shape[:2], steps, self.rank + 1)).astype(a.dtype)

        def one(a, b, signs):
            kept = a[: self.rank], b[: self.rank]
            for n, now in enumerate(signs, self.rank):
                kept = reduced(
                    *(jnp.append(k, f[n : n + 1], 0) for k, f in zip(kept, (a, b), strict=True)),
                    now,
                )
                kept = tuple(k[:, : f.shape[1]] for k, f in zip(kept, (a, b), strict=True))
            return kept

        kept_a, kept_b = jax.vmap(jax.vmap(one))(a, flat, signs)
        kept_b = kept_b.reshape(*kept_b.shape[:3], *b.shape[3:])
        new = jnp.moveaxis(kept_a, 1, 2), jnp.moveaxis(kept_b, 1, 3)
        return (*(n.reshape(c.shape) for n, c in zip(new, carry, strict=False)), carry[2] + 1), None


@dataclasses.dataclass(frozen=True)
class OK(Algorithm):
    form: LowRank = KroneckerSum(2)
    cut: ClassVar[bool] = False

    def trace_form(self, kind):
        return self.form


class AllSigns(KroneckerSum):
    """Each example of a batch has signs of its own, and together they have all; the first sign is one."""

    def signs(self, number, shape):
        example, _, step, pair = jnp.indices(shape)
        bit = (number[0] * shape[2] + step) * self.rank + pair - 1
        return jnp.where(pair > 0, 1 - 2 * (example >> jnp.maximum(bit, 0) & 1), 1)


def online(algo, batch, count):
    program = etpc.compile(MODEL, algo, inputs=XS[0], state=jnp.zeros(N), step=step)
    xs, targets = (jnp.repeat(jnp.asarray(a[:count])[:, None], batch, 1) for a in (XS, TARGETS))
    run = program.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2), "sum")
    _, grads = run(MODEL, xs, targets, program.init(batch))
    return program, np.concatenate([grads["w"], grads["u"]], 1)


@pytest.mark.parametrize(("rank", "window"), [(1, 1), (2, 2)])
def test_the_mean_over_all_signs_is_rtrl(rank, window):
    count = T if rank == 1 else 6
    reductions = count - window  # those of the last window are not used
    _, mean = online(OK(AllSigns(rank), window=window), 2 ** (rank * reductions), count)
    np.testing.assert_allclose(mean, rtrl(count), rtol=0, atol=1e-9)
    program, one = online(OK(KroneckerSum(rank), window=window), 1, count)
    assert np.abs(one - rtrl(count)).max() > 1e-3
    assert "at random and unbiased" in str(program)


def test_the_variance_is_the_least():
    """`rest^2 / k` less the squares of the singular values that are mixed (theorem 1 there)."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 6)), rng.normal(size=(4, 5))
    b[0] *= 10  # so that one is kept as it is
    d, exact = np.linalg.svd(a.T @ b, compute_uv=False)[:4], a.T @ b
    first = next(m for m in range(3) if (3 - m) * d[m] <= d[m:].sum())
    assert 0 < first < 3
    signs = 1 - 2 * (np.arange(16)[:, None] >> np.arange(4) & 1)
    found = [
        np.asarray(x).T @ np.asarray(y)
        for x, y in (reduced(jnp.asarray(a), jnp.asarray(b), s) for s in jnp.asarray(signs))
    ]
    np.testing.assert_allclose(np.mean(found, 0), exact, rtol=0, atol=1e-12)
    variance = np.mean([((f - exact) ** 2).sum() for f in found])
    least = d[first:].sum() ** 2 / (3 - first) - (d[first:] ** 2).sum()
    np.testing.assert_allclose(variance, least, rtol=1e-10)
