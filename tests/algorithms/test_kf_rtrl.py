"""KF-RTRL: unbiased, and one draw against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import KFRTRL
from etpc.rules import KroneckerFactor
from tests.algorithms.test_uoro import MODEL, TARGETS, XS, I, N, T, rtrl, step


def all_signs(form, number, shape):
    """Each example of a batch has signs of its own, and together they have all; the first of a pair is one."""
    example, _, step, pair = jnp.indices(shape)
    bit = number[0] * shape[2] + step
    return jnp.where(pair > 0, 1 - 2 * (example >> bit & 1), 1)


def online(algo, batch):
    program = etpc.compile(MODEL, algo, inputs=XS[0], state=jnp.zeros(N), step=step)
    xs, targets = (jnp.repeat(jnp.asarray(a)[:, None], batch, 1) for a in (XS, TARGETS))
    run = program.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2), "sum")
    (_, carry), grads = run(MODEL, xs, targets, program.init(batch))
    return program, np.concatenate([grads["w"], grads["u"]], 1), carry


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_mean_over_all_signs_is_rtrl(window, monkeypatch):
    reductions = T - window  # those of the last window are not used
    with monkeypatch.context() as patched:
        patched.setattr(KroneckerFactor, "signs", all_signs)
        program, mean, _ = online(KFRTRL(window=window), 2**reductions)
    np.testing.assert_allclose(mean, rtrl(), rtol=0, atol=1e-9)
    assert not program.exact
    _, one, _ = online(KFRTRL(window=window), 1)
    _, other, _ = online(KFRTRL(seed=1, window=window), 1)
    assert np.abs(one - rtrl()).max() > 1e-2
    assert np.abs(one - other).max() > 1e-2
    assert "at random and unbiased" in str(program)


@pytest.mark.slow
def test_one_draw_is_that_of_the_source(monkeypatch):
    """Algorithm 1 in loops, with the same signs; its pair at the end, for each of the two matrices."""
    example = 0b0110101
    monkeypatch.setattr(KroneckerFactor, "signs", all_signs)
    program, _, carry = online(KFRTRL(window=1), 2 ** (T - 1))
    h = np.zeros(N)
    pairs = {"w": (np.zeros(N), np.zeros((N, N))), "u": (np.zeros(I), np.zeros((N, N)))}
    for t, x in enumerate(XS):
        read = {"w": h, "u": x}
        h = np.tanh(MODEL["w"] @ h + MODEL["u"] @ x)
        slope, sign = np.diag(1 - h**2), 1 - 2 * (example >> t & 1)
        for name, (a, b) in pairs.items():
            b = slope @ MODEL["w"] @ b
            p1, p2 = (
                np.sqrt(np.linalg.norm(right) / np.linalg.norm(left))
                if left.any() and right.any()
                else 1
                for left, right in ((a, b), (read[name], slope))
            )
            pairs[name] = p1 * a + sign * p2 * read[name], b / p1 + sign * slope / p2
    found = {a.shape[-1]: (a[example, 0], b[example, 0]) for a, b, _ in carry.traces}
    for a, b in pairs.values():
        got = np.einsum("i,so->sio", *found[len(a)])
        np.testing.assert_allclose(got, np.einsum("i,so->sio", a, b), rtol=0, atol=1e-12)
        assert np.abs(got).max() > 0.1
    again = program.reset(carry, jnp.ones(2 ** (T - 1), bool))
    for a, b, number in again.traces:  # signs go on
        assert not a.any()
        assert not b.any()
        assert (number == T).all()
