"""OK: unbiased, and with the least variance."""

import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import OK
from etpc.rules import KroneckerSum, least_variance
from tests.algorithms.test_uoro import MODEL, TARGETS, XS, N, T, rtrl, step


def all_signs(form, number, shape):
    """Each example of a batch has signs of its own, and together they have all; the first sign is one."""
    example, _, step, pair = jnp.indices(shape)
    bit = (number[0] * shape[2] + step) * form.rank + pair - 1
    return jnp.where(pair > 0, 1 - 2 * (example >> jnp.maximum(bit, 0) & 1), 1)


def online(algo, batch, count):
    program = etpc.compile(MODEL, algo, inputs=XS[0], state=jnp.zeros(N), step=step)
    xs, targets = (jnp.repeat(jnp.asarray(a[:count])[:, None], batch, 1) for a in (XS, TARGETS))
    run = program.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2), "sum")
    _, grads = run(MODEL, xs, targets, program.init(batch))
    return program, np.concatenate([grads["w"], grads["u"]], 1)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "window"), [(1, 1), (2, 2)])
def test_the_mean_over_all_signs_is_rtrl(rank, window, monkeypatch):
    count = T if rank == 1 else 6
    reductions = count - window  # those of the last window are not used
    rule = OK(rank, window=window)
    with monkeypatch.context() as patched:
        patched.setattr(KroneckerSum, "signs", all_signs)
        _, mean = online(rule, 2 ** (rank * reductions), count)
    np.testing.assert_allclose(mean, rtrl(count), rtol=0, atol=1e-9)
    program, one = online(rule, 1, count)
    assert np.abs(one - rtrl(count)).max() > 1e-3
    assert "at random and unbiased" in str(program)


@pytest.mark.slow
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
        for x, y in (least_variance(jnp.asarray(a), jnp.asarray(b), s) for s in jnp.asarray(signs))
    ]
    np.testing.assert_allclose(np.mean(found, 0), exact, rtol=0, atol=1e-12)
    variance = np.mean([((f - exact) ** 2).sum() for f in found])
    least = d[first:].sum() ** 2 / (3 - first) - (d[first:] ** 2).sum()
    np.testing.assert_allclose(variance, least, rtol=1e-10)
