"""OTPE, the postsynaptic extension of OTTT, as a form that a user writes.

Online training with postsynaptic estimates (Summe, Schaefer and Joshi, "Estimating post-synaptic effects for online
training of feed-forward SNNs", arXiv 2311.16151): a spike acts on the membrane of the next layer for as long as that
remembers, so the credit of a spike now is multiplied with `R' = a R + ds/dw`, not with the `ds/dw` of this step. As in
OTTT, `ds/dw` is the surrogate derivative times the low-passed input, which holds where the leak is the only transition
of a membrane. Spikes are states here, so that their credit is known. Their average of the surrogate derivative, in
the credit of the layer below, is not part of this, and changes nothing with one hidden layer.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc.algorithms import Algorithm
from etpc.forms import Full, Trace, zeros
from tests.forms.test_user_form import Presynaptic, loss, normal

T, B, I, N, O, A = 8, 3, 4, 5, 2, 0.8


@dataclasses.dataclass(frozen=True)
class Postsynaptic(Trace):
    """`p' = a p + x` and `R' = a R + F p'`: [B, m, O, I] and [B, I]. For cut windows."""

    decay: float
    inner: Full = Full()
    exact = False
    left_out = "the trace is the low-passed influence on spikes"
    verdict = "postsynaptic"

    def settle(self, site):
        assert (site.kind.groups, site.kind.links) == (1, None), "dense weights alone"
        return self if site.block > 1 else Presynaptic(self.decay)  # of what does not spike

    def init(self, site, batch):
        return (*self.inner.init(site, batch), *zeros(batch, [(site.kind.inputs,)], site.dtype))

    def follow(self, site, factors, carry):
        return factors.immediate

    def read(self, site, signals, immediate, carry):
        if signals.at_start is not None:
            return None, jnp.pad(signals.at_start, [(0, 0), (0, 1), (0, 0)])

        def back(after, given):
            (r, p), (new, f) = after, given
            r = new + self.decay * r
            p = self.decay * p + jnp.sum(r * f, 1)
            return (r, p), p

        none = jnp.zeros_like(immediate[0]), jnp.zeros_like(immediate[0, :, 0])
        (r, p), here = lax.scan(back, none, (signals.new(), immediate), reverse=True)
        return here, self.decay * jnp.concatenate([r, p[:, None]], 1)

    def past(self, site, start, carry):
        of_p = site.kind.contract(carry[1][None, :, None], start[None, :, None, -1])
        return self.inner.past(site, start[:, :-1], carry) + of_p

    def move(self, site, passage, immediate, carry, start):
        def step(now, given):
            (r, p), (x, f) = now, given
            p = self.decay * p + x.reshape(p.shape)
            return (self.decay * r + p[:, None, None] * f[..., None], p), None

        return lax.scan(step, carry, (passage.xs[0], immediate))[0]


@dataclasses.dataclass(frozen=True)
class OTPE(Algorithm):
    decay: float = A

    def trace_form(self, kind):
        return Full() if kind.data is None else Postsynaptic(self.decay)


MODEL = {"w": normal(N, I), "out": normal(O, N, seed=1)}
XS, TARGETS = normal(T, B, I, seed=2), normal(T, B, O, seed=3)


def step(m, x, state):
    v, before, r = state
    v = A * v + m["w"] @ x
    s = jnp.tanh(v)  # in the place of a spike with its surrogate derivative
    r = A * r + m["out"] @ s
    return (jnp.sin(r), before), (v, s, r)  # a state that no output reads would not be followed


def by_hand():
    w, out = map(np.asarray, (MODEL["w"], MODEL["out"]))
    of_w, of_out = np.zeros_like(w), np.zeros_like(out)
    for b in range(B):
        v, r, p, q, R = np.zeros(N), np.zeros(O), np.zeros(I), np.zeros(N), np.zeros((N, I))
        for x, target in zip(np.asarray(XS[:, b]), np.asarray(TARGETS[:, b]), strict=True):
            v, p = A * v + w @ x, A * p + x
            q, r = A * q + np.tanh(v), A * r + out @ np.tanh(v)
            R = A * R + np.outer(1 - np.tanh(v) ** 2, p)
            error = 2 * (np.sin(r) - target) * np.cos(r)
            of_w += (out.T @ error)[:, None] * R / B
            of_out += np.outer(error, q) / B
    return of_w, of_out


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 5])
def test_otpe(window):
    state = jnp.zeros(N), jnp.zeros(N), jnp.zeros(O)
    program = etpc.compile(MODEL, OTPE(window=window), inputs=XS[0, 0], state=state, step=step)
    run, carry, total = (
        program.value_and_grad(lambda y, t: loss(y[0], t), "sum"),
        program.init(B),
        [0.0, 0.0],
    )
    for part in (slice(0, 4), slice(4, T)):
        (_, carry), grads = run(MODEL, XS[part], TARGETS[part], carry)
        total = [a + np.asarray(grads[k]) for a, k in zip(total, ("w", "out"), strict=True)]
    for got, want in zip(total, by_hand(), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
        assert np.abs(want).max() > 0.1
    assert program.claims["['w']"].claim == "approximate"
    assert "postsynaptic" in str(program)
    assert "presynaptic" in str(program)
    # the readout leaks as the estimate does, so this is the gradient
    _, exact = etpc.bptt(
        *(MODEL, XS, TARGETS, lambda y, t: loss(y[0], t)),
        state=state,
        step=step,
        batch_size=B,
        reduction="sum",
    )
    np.testing.assert_allclose(total[0], exact["w"], rtol=0, atol=1e-12)
