"""Whole traces carried in bfloat16, against references that round at the same points."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc import nn
from etpc.algorithms import Full, Rounded
from etpc.traces._bits import BITS, numbers, written
from tests.marks import few
from tests.traces.test_user_form import normal

T, B, I, N = 9, 3, 4, 5
W = 0.6 * normal(N, I + N)
XS, TARGETS = normal(T, B, I, seed=2), normal(T, B, N, seed=3)
BF16 = jnp.bfloat16


def step(m, x, v):
    v = 0.9 * v + m["w"] @ jnp.concatenate([x, jnp.tanh(v)]) + m["b"]
    return jnp.sin(v), v


def loss(y, target):
    return jnp.sum((y - target) ** 2)


def model(dtype=jnp.float64):
    return {"w": W.astype(dtype), "b": 0.1 * normal(N, seed=1).astype(dtype)}


def compiled(algo, dtype=jnp.float64):
    return etpc.compile(
        model(dtype), algo, inputs=XS[0, 0].astype(dtype), state=jnp.zeros(N, dtype), step=step
    )


def rounded(a):
    return np.asarray(a, np.float32).astype(BF16).astype(a.dtype)


def by_hand(window):
    """The sum of L_t eps_t, a mean over the batch, with traces that are rounded after each window, in loops."""
    w, b = (np.asarray(a) for a in model().values())
    grad, bias = np.zeros((N, I + N)), np.zeros(N)
    last = []
    for n in range(B):
        v, trace, trace_b = np.zeros(N), np.zeros((N, I + N)), np.zeros(N)
        for t in range(T):
            read = np.concatenate([np.asarray(XS[t, n]), np.tanh(v)])
            trace, trace_b = 0.9 * trace + read, 0.9 * trace_b + 1
            v = 0.9 * v + w @ read + b
            signal = 2 * (np.sin(v) - np.asarray(TARGETS[t, n])) * np.cos(v)
            grad += signal[:, None] * trace / B
            bias += signal * trace_b / B
            if t % window == window - 1 or t == T - 1:
                trace, trace_b = rounded(trace), rounded(trace_b)
        last.append(trace.T)
    return grad, bias, np.stack(last)


@pytest.mark.parametrize("window", few([1, 2, 4, T], 1, 4))
def test_gradient_is_that_of_a_trace_rounded_after_each_window(window):
    program = compiled(etpc.D_RTRL(window=window, trace_dtype="bfloat16"))
    run = program.value_and_grad(loss, "sum")
    (_, carry), grads = run(model(), XS, TARGETS, program.init(B))
    grad, bias, last = by_hand(window)
    np.testing.assert_allclose(grads["w"], grad, rtol=0, atol=1e-12)
    np.testing.assert_allclose(grads["b"], bias, rtol=0, atol=1e-12)
    held = carry.traces[0][0]
    assert held.dtype == jnp.uint16
    np.testing.assert_array_equal(jax.lax.bitcast_convert_type(held, BF16), last.astype(BF16))


def test_it_differs_from_the_whole_trace_by_rounding_alone():
    grads = []
    for given in (None, BF16):
        program = compiled(etpc.D_RTRL(window=1, trace_dtype=given))
        run = program.value_and_grad(loss, "sum")
        grads.append(np.asarray(run(model(), XS, TARGETS, program.init(B))[1]["w"]))
    error = np.linalg.norm(grads[1] - grads[0]) / np.linalg.norm(grads[0])
    assert 1e-5 < error < 2e-2


def test_bits_are_those_of_a_conversion():
    a = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    ties = np.float32([1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256, 1 + 1 / 256 + 1e-6])
    odd = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-40])
    a = jnp.asarray(np.concatenate([a, a * np.float32(1e30), ties, odd]))
    got = numbers(written(a, BITS))
    np.testing.assert_array_equal(got, np.asarray(a.astype(BF16).astype(jnp.float32)))
    np.testing.assert_array_equal(written(got, BITS), written(a, BITS))
    assert written(a, a.dtype) is a
    assert numbers(a) is a


def sparse_step(m, x, v):
    v = 0.9 * v + m(jnp.concatenate([x, jnp.tanh(v)]))
    return v, v


def many_states(m, x, state):
    v, a = state
    v, a = 0.9 * v + m @ x - 0.2 * a, 0.8 * a + 0.3 * v
    return jnp.sin(v), (v, a)


def sparse():
    outputs, inputs = [0, 1, 2, 3, 4, 0], [1, 0, 4, 8, 2, 6]
    return nn.SparseLinear(I + N, N, (outputs, inputs), key=jax.random.key(0))


def others():
    state = jnp.zeros(N)
    return {
        "links": (sparse, state, sparse_step),
        "two states": (lambda: W[:, :I], (state, state), many_states),
        "gates": (lambda: nn.GRU(I, N, key=jax.random.key(0)), None, None),
    }


@pytest.mark.parametrize("window", few([1, 3], 3))
@pytest.mark.parametrize("name", ["links", "two states", "gates"])
def test_every_kind_of_trace_is_carried_rounded(name, window, monkeypatch):
    """That of `Full`, converted by hand between calls of one window each."""
    make, state, by = others()[name]
    given = {} if by is None else {"state": state, "step": by}
    total, programs = {}, {}
    for dtype in (None, "bfloat16"):
        m = make()
        program = etpc.compile(
            m, etpc.D_RTRL(window=window, trace_dtype=dtype), inputs=XS[0, 0], **given
        )
        programs[dtype] = program
        run, carry, sums = program.value_and_grad(loss, "sum"), program.init(B), 0.0
        for t in range(0, T, window):
            (_, carry), grads = run(m, XS[t : t + window], TARGETS[t : t + window], carry)
            sums = sums + np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
            if dtype is None:
                traces = jax.tree.map(lambda a: jnp.asarray(rounded(np.asarray(a))), carry.traces)
                carry = eqx.tree_at(lambda c: c.traces, carry, traces)
        total[dtype] = sums
    np.testing.assert_allclose(total["bfloat16"], total[None], rtol=0, atol=1e-11)
    assert np.abs(sums).max() > 0.1
    whole, half = (programs[d].memory(B).traces for d in (None, "bfloat16"))
    assert [(path, 4 * size) for path, size in half] == list(whole)  # of float64


def test_bytes_and_claims_say_so():
    one = etpc.D_RTRL(window=1, trace_dtype="bfloat16")
    program = compiled(one, jnp.float32)
    assert program.memory(B).traces[0] == ("['w']", B * N * (I + N) * 2)
    assert f"{N * (I + N) * 2}  bfloat16" in str(program)
    assert "after each window the trace is rounded to bfloat16" in str(program)
    assert f"9x5 of bfloat16: {N * (I + N) * 2} bytes" in program.explain("['w']")
    assert not program.exact
    claim = program.claims["['b']"]
    assert claim.claim == "approximate"
    assert claim.reasons[0].kind == "form"
    assert claim.reasons[0].text == "after each window the trace is rounded to bfloat16"
    assert repr(one) == "D_RTRL(trace_dtype='bfloat16', window=1, in_window='truncated')"
    assert one.short == "D_RTRL(trace_dtype='bfloat16')"
    assert one == etpc.D_RTRL(window=1, trace_dtype=BF16)
    assert "trace_dtype" not in str(etpc.D_RTRL())


def test_checkpoints_and_resets(tmp_path):
    program = compiled(etpc.D_RTRL(window=2, trace_dtype="bfloat16"), jnp.float32)
    run = program.value_and_grad(loss)
    xs, targets = XS.astype(jnp.float32), TARGETS.astype(jnp.float32)
    (_, carry), _ = run(model(jnp.float32), xs, targets, program.init(B))
    etpc.save(tmp_path / "carry.etpc", carry)
    again = etpc.load(tmp_path / "carry.etpc", like=program.init(B))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(carry), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    fresh = program.reset(carry, jnp.asarray([True, False, False])).traces[0][0]
    assert not np.any(fresh[0])
    np.testing.assert_array_equal(fresh[1:], carry.traces[0][0][1:])
    with pytest.raises(etpc.EtpcError):
        etpc.load(tmp_path / "carry.etpc", like=compiled(etpc.D_RTRL(), jnp.float32).init(B))
    shown = program.plan.carried[0].form.shown(
        program.plan.carried[0].site, jax.tree.map(lambda a: a[0], carry.traces[0])
    )
    assert shown["trace"].dtype == jnp.float32


def test_training_step_by_step():
    losses = []
    xs, targets = XS.astype(jnp.float32), TARGETS.astype(jnp.float32)
    for dtype in (None, "bfloat16"):
        program = compiled(etpc.D_RTRL(trace_dtype=dtype), jnp.float32)
        learner = etpc.online(program, loss, optax.sgd(1e-3), 1)
        start = model(jnp.float32)
        *_, carry, found = learner.update(start, *learner.init(start, B), xs, targets)
        assert jax.tree.map(jnp.shape, carry.traces) == jax.tree.map(
            jnp.shape, program.init(B).traces
        )
        losses.append(found)
    np.testing.assert_allclose(*losses, rtol=1e-2)
    assert not np.array_equal(*losses)


@pytest.mark.parametrize(
    "rule", [etpc.SnAp(1, trace_dtype="bfloat16"), etpc.RTRL(trace_dtype="bfloat16")]
)
def test_the_other_rules_with_whole_traces(rule):
    program = compiled(rule)
    assert all(isinstance(p.form, Rounded) for p in program.plan.traced)
    assert all(a.dtype == BITS for a in jax.tree.leaves(program.init(B).traces))
    unrounded = compiled(type(rule)())
    grads = [
        p.value_and_grad(loss)(model(), XS, TARGETS, p.init(B))[1]["w"]
        for p in (program, unrounded)
    ]
    np.testing.assert_allclose(*grads, rtol=0.05, atol=0.01)


def test_errors():
    with pytest.raises(etpc.AlgorithmError, match="float16 holds no number above 65,504"):
        etpc.D_RTRL(trace_dtype="float16")
    with pytest.raises(etpc.InputTypeError, match='None or "bfloat16", not'):
        etpc.D_RTRL(trace_dtype="half a number")
    with pytest.raises(etpc.AlgorithmError, match="for whole traces"):
        etpc.RTRL(2, trace_dtype="bfloat16")

    def turning(m, x, v):
        v = 0.9j * v + m @ x
        return v.real, v

    with pytest.raises(etpc.AlgorithmError, match=r"is complex128 .* Leave trace_dtype= out"):
        etpc.compile(
            W[:, :I] + 0j,
            etpc.D_RTRL(trace_dtype="bfloat16"),
            inputs=XS[0, 0],
            state=jnp.zeros(N, complex),
            step=turning,
        )


def test_traces_of_one_weight_are_one_where_both_are_rounded():
    site = compiled(etpc.D_RTRL()).plan.carried[0].site
    assert Rounded().same(site) == Rounded().same(site)
    assert Rounded().same(site) != Full().same(site)
