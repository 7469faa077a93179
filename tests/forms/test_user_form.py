"""OTTT, whose form touches nothing of the compiler, and a form that a user writes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc import OTTT
from etpc.algorithms import Algorithm
from etpc.forms import Full, Trace, zeros
from etpc.rules import Presynaptic
from tests.helpers import loss, normal
from tests.marks import few

T, B, I, N = 8, 3, 4, 5


W, BIAS = 0.5 * normal(N, I + N), 0.1 * normal(N, seed=1)
XS, TARGETS = normal(T, B, I, seed=2), normal(T, B, N, seed=3)


def step(m, x, v):
    v = 0.8 * v + m["w"] @ jnp.concatenate([x, jnp.tanh(v)]) + m["b"]
    return jnp.sin(v), v


def by_hand(decay):
    """The sum of L_t F_t and the low-passed input, in loops."""
    grad = np.zeros((N, I + N))
    for b in range(B):
        v, trace = np.zeros(N), np.zeros(I + N)
        for x, target in zip(np.asarray(XS[:, b]), np.asarray(TARGETS[:, b]), strict=True):
            read = np.concatenate([x, np.tanh(v)])
            trace = decay * trace + read
            v = 0.8 * v + np.asarray(W) @ read + np.asarray(BIAS)
            grad += np.outer(2 * (np.sin(v) - target) * np.cos(v), trace) / B
    return grad


@pytest.mark.parametrize("window", few([1, 2, 5], 2))
@pytest.mark.parametrize("decay", [0.5, 0.8])
def test_ottt(decay, window):
    model = {"w": W, "b": BIAS}
    program = etpc.compile(
        model, OTTT(decay, window=window), inputs=XS[0, 0], state=jnp.zeros(N), step=step
    )
    run, carry, total = program.value_and_grad(loss, "sum"), program.init(B), 0.0
    for part in (slice(0, 4), slice(4, T)):
        (_, carry), grads = run(model, XS[part], TARGETS[part], carry)
        total = total + np.asarray(grads["w"])
    np.testing.assert_allclose(total, by_hand(decay), rtol=0, atol=1e-12)
    assert np.abs(total).max() > 0.1
    claim = program.claims["['w']"]
    assert claim.claim == "approximate"
    assert [reason.kind for reason in claim.reasons] == ["form", "escape"]
    assert "presynaptic" in str(program)
    assert program.memory(B).traces[0] == ("['w']", B * (I + N) * 8)
    fresh = program.reset(carry, jnp.asarray([True, False, False]))
    assert not np.any(fresh.traces[0][0][0])
    assert np.any(fresh.traces[0][0][1])


def test_a_form_that_is_exact_by_chance_is_not_called_so():
    """Where the decay is that of the neurons and nothing recurs, this trace is that of D-RTRL."""

    def feedforward(m, x, v):
        v = 0.8 * v + m @ x
        return jnp.sin(v), v

    model = W[:, :I]
    grads = []
    for algo in (OTTT(0.8, window=2), etpc.D_RTRL(window=2)):
        program = etpc.compile(model, algo, inputs=XS[0, 0], state=jnp.zeros(N), step=feedforward)
        grads.append(program.value_and_grad(loss)(model, XS, TARGETS, program.init(B))[1])
        assert program.exact == isinstance(algo, etpc.D_RTRL)
    np.testing.assert_allclose(*grads, rtol=0, atol=1e-12)


def test_pictures_and_checkpoints_need_nothing_of_a_form(tmp_path):
    model = {"w": W, "b": BIAS}
    program = etpc.compile(model, OTTT(0.5), inputs=XS[0, 0], state=jnp.zeros(N), step=step)
    assert "presynaptic" in str(program.draw())
    carry = program.init(B)
    etpc.save(tmp_path / "carry.etpc", carry)
    again = etpc.load(tmp_path / "carry.etpc", like=program.init(B))
    assert jax.tree.structure(again) == jax.tree.structure(carry)


def test_a_form_is_not_derived_from_another():
    class Shared(Trace):
        """No form, as it does not say whether it is exact."""

        def init(self, site, batch):
            return zeros(batch, [(*site.group, site.kind.inputs)], site.dtype)

    class Derived(Shared):
        exact = False

    class Mixin:
        pass

    for base in (Full, Presynaptic, Derived):
        with pytest.raises(
            etpc.AlgorithmError, match=rf"Own cannot.* {base.__name__},.*`inner: {base.__name__}`"
        ):
            type("Own", (Mixin, base), {})


# --- a form whose transitions are others ----------------------------------------------------------------------------


def slower(passage, g):
    """The passage by `g D` in place of D."""

    def discounted(part):
        powers = g ** np.arange(len(part) - 1.0, -1, -1)
        return part * powers.reshape(-1, 1, 1, 1)

    def moved():
        return [[discounted(part) for part in parts] for parts in passage.moved()]

    def whole():
        return g ** len(passage.moved()[0][0]) * passage.whole()

    return dataclasses.replace(passage, moved=moved, whole=whole)


@dataclasses.dataclass(frozen=True)
class Discounted(Trace):
    g: float = 0.7
    inner: Full = Full()
    exact = False
    left_out = "older influence is discounted"

    def init(self, site, batch):
        return self.inner.init(site, batch)

    def past(self, site, start, carry):
        return self.inner.past(site, start, carry)

    def move(self, site, passage, path, carry, start):
        return self.inner.move(site, slower(passage, self.g), path, carry, start)


@dataclasses.dataclass(frozen=True)
class DiscountedRTRL(Algorithm):
    def trace_form(self, kind):
        return Discounted()


@jax.jit
def of_window(model, v, xs, targets):
    """The gradient of the loss of a window by the model and the state at its start, and the last state."""

    def run(model, v):
        def one(v, data):
            y, v = step(model, data[0], v)
            return v, loss(y, data[1])

        last, losses = lax.scan(one, v, (xs, targets))
        return losses.sum(), last

    return jax.grad(run, (0, 1), has_aux=True)(model, v)


def discounted_by_hand(model, window, g):
    """Plain reverse mode in each window, and what the discounted trace at its start gives, in loops."""
    total = jax.tree.map(jnp.zeros_like, model)
    for b in range(B):
        v, trace_w, trace_b = jnp.zeros(N), np.zeros((N, I + N)), np.zeros(N)
        for t in range(0, T, window):
            xs, targets = XS[t : t + window, b], TARGETS[t : t + window, b]
            (grads, credit), last = of_window(model, v, xs, targets)
            total["w"] += (grads["w"] + credit[:, None] * trace_w) / B
            total["b"] += (grads["b"] + credit * trace_b) / B
            for x in xs:
                trace_w = g * 0.8 * trace_w + np.concatenate([x, jnp.tanh(v)])
                trace_b = g * 0.8 * trace_b + 1
                v = step(model, x, v)[1]
            np.testing.assert_allclose(v, last, rtol=1e-12)
    return total


@pytest.mark.parametrize("window", few([1, 4, 5], 4))
@pytest.mark.parametrize("traced", few(["w", "b", "wb"], "b"))
def test_a_form_that_wraps_the_passage(traced, window):
    """Also where no other operation has the same blocks, so that nothing else asks for their transitions."""
    model = {"w": W, "b": BIAS}
    program = etpc.compile(
        model,
        DiscountedRTRL(window=window, backprop="full"),
        inputs=XS[0, 0],
        state=jnp.zeros(N),
        step=step,
        weights=lambda m: [m[name] for name in traced],
    )
    run = program.value_and_grad(loss, "sum")
    _, grads = run(model, XS, TARGETS, program.init(B))
    expected, undiscounted = (discounted_by_hand(model, window, g) for g in (0.7, 1.0))
    for name in traced:
        np.testing.assert_allclose(grads[name], expected[name], rtol=0, atol=1e-12)
        assert np.abs(expected[name] - undiscounted[name]).max() > 1e-3
