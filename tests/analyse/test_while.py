"""Loops of unknown length on the way to a state.

JAX has no reverse mode of them. Gradients are held against its forward mode through the whole sequence, and each rule
against the same rule on the same model, in which the loop is a `scan` of fixed length with masks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc._jax import _loops
from tests.helpers import bptt, by_path, compiled, distance, loss, online, spike_vjp, weights
from tests.marks import few
from tests.zoo.check import T, normal, targets_of

N, LONGEST = 3, 14


def unknown(goes_on, body, start):
    return lax.while_loop(goes_on, body, start)


def masked(goes_on, body, start):
    """The same loop as a `scan` of fixed length."""

    def one(carry, _):
        more = goes_on(carry)
        return jax.tree.map(lambda a, b: jnp.where(more, a, b), body(carry), carry), None

    end, _ = lax.scan(one, start, None, length=LONGEST)
    return end


def newton(loop, m, x, v):
    """Backward Euler of a neuron, by Newton's method until the last neuron has converged."""
    drive, leak = m["w"] @ x + m["rec"] @ jnp.tanh(v), m["tau"] * v

    def body(carry):
        u, _ = carry
        step = (u - v - 0.4 * (drive - u**3 - leak)) / (1 + 1.2 * u**2)
        return u - step, jnp.abs(step).max()

    return loop(lambda carry: carry[1] > 1e-6, body, (v, jnp.asarray(1.0)))[0]


def heun(loop, m, x, state):
    """Adaptive steps over two coupled states, which each neuron chooses by itself."""
    drive = m["w"] @ x + m["rec"] @ jnp.tanh(state["v"])
    slope = lambda v, u, d: (v - v**3 / 3 - u + d, 0.3 * (v + 0.7 - 0.8 * u))

    def neuron(v, u, d):
        def body(carry):
            t, dt, v, u = carry
            dt = jnp.minimum(dt, 1.0 - t)
            (dv, du), ahead = slope(v, u, d), (v, u)
            dv2, du2 = slope(v + dt * dv, u + dt * du, d)
            ahead = v + 0.5 * dt * (dv + dv2), u + 0.5 * dt * (du + du2)
            error = 0.5 * dt * jnp.maximum(jnp.abs(dv2 - dv), jnp.abs(du2 - du))
            fits = error < 0.1
            v, u = (jnp.where(fits, a, b) for a, b in zip(ahead, (v, u), strict=True))
            grown = dt * jnp.clip(0.08 / (error + 0.01), 0.5, 2.0)
            return jnp.where(fits, t + dt, t), grown, v, u

        start = jnp.zeros_like(v), jnp.full_like(v, 0.5), v, u
        return loop(lambda carry: carry[0] < 0.999, body, start)[2:]

    v, u = jax.vmap(neuron)(state["v"], state["u"], drive)
    return {"v": v, "u": u * m["tau"]}


def mixing(loop, m, x, v):
    """All states mix until they are small."""
    drive, ring = m["w"] @ x + m["rec"] @ jnp.tanh(v), jnp.asarray(MIXED)
    body = lambda u: 0.7 * u + 0.1 * jnp.tanh(ring @ u)
    return loop(lambda u: (u**2).sum() > 0.5, body, m["tau"] * v + drive)


def gain_inside(loop, m, x, v):
    """Weights in the loop itself, with a counter beside the state."""
    drive = m["w"] @ x + m["rec"] @ jnp.tanh(v)
    body = lambda carry: (carry[0] + 1, jnp.sin(m["tau"] * carry[1]) + 0.3 * drive)
    return loop(lambda carry: carry[0] < 2 + (x[0] > 0), body, (0, v))[1]


def in_other_loops(loop, m, x, v):
    """In a branch of a scan; and one on the way to the output alone."""
    drive = m["w"] @ x + m["rec"] @ jnp.tanh(v)
    shrunk = lambda u: loop(lambda u: jnp.abs(u).max() > 0.3, lambda u: 0.8 * jnp.sin(u), u)
    one = lambda u, a: (lax.cond(a > 0, shrunk, jnp.tanh, u) + 0.5 * drive, None)
    return lax.scan(one, m["tau"] * v, jnp.asarray([1.0, -1.0, 1.0]))[0]


def turning(loop, m, x, z):
    """Complex states, which also enter by their size."""
    drive = m["w"] @ x + m["rec"] @ z.real
    body = lambda u: (0.6 + 0.3j) * u + 0.1 * jnp.abs(u) ** 2
    return loop(lambda u: jnp.abs(u).max() > 0.8, body, m["tau"] * z + drive)


MIXED = np.asarray(weights(N, N, seed=3))
MODEL = {
    "w": weights(N, 2, scale=2.0),
    "rec": weights(N, N, seed=1),
    "tau": jnp.linspace(0.5, 0.9, N),
    "out": weights(2, N, seed=2),
}
V = jnp.linspace(-0.5, 0.9, N)
CASES = {
    # the states, the largest block of D-RTRL, and of the same model with one neuron's weights alone
    "newton": (newton, V, 1),
    "heun": (heun, {"v": V, "u": V[::-1]}, 2),
    "mixing": (mixing, V, N),
    "gain inside": (gain_inside, V, 1),
    "in other loops": (in_other_loops, V, 1),
    "turning": (turning, V + 0.5j, 2),
}
XS = normal(2)


def step_of(function, loop):
    def step(m, x, state):
        state = function(loop, m, x, state)
        floats = sum(a.real for a in jax.tree.leaves(state))
        return m["out"] @ floats, state

    return step


def forward(function, model, xs, targets, state):
    """The gradient of a sequence by forward mode."""
    step = step_of(function, unknown)

    def total(model):
        def body(state, data):
            y, state = step(model, data[0], state)
            return state, loss(y, data[1])

        return lax.scan(body, state, (xs, targets))[1].sum()

    return jax.jacfwd(total)(model)


RULES = {
    "D-RTRL, 1": etpc.D_RTRL(window=1),
    "D-RTRL, 4": etpc.D_RTRL(window=4),
    "D-RTRL, all": etpc.D_RTRL(window=T),
    "full": etpc.D_RTRL(window=2, backprop="full"),
    "lookback": etpc.D_RTRL(window=2, backprop="full", lookback=2),
    "decay": etpc.ES_D_RTRL(decay=0.7, window=2),
    "rank": etpc.ES_D_RTRL(rank=2, window=2),
    "RTRL": etpc.RTRL(window=2),
    "SnAp": etpc.SnAp(n=2),
    "credit": etpc.CreditRTRL(q=2, window=2),
    "TBPTT": etpc.TBPTT(3),
}
EXACT = {"RTRL": etpc.RTRL(window=4), "whole": etpc.D_RTRL(window=T, backprop="full")}


def program_of(function, loop, state, algo):
    step = step_of(function, loop)
    return etpc.compile(MODEL, algo, inputs=XS[0], state=state, step=step)


def assert_close(found, expected):
    assert min(np.abs(g).max() for g in by_path(expected).values()) > 1e-3
    assert distance(found, expected) < 1e-9


@pytest.mark.parametrize("case", few(CASES, "newton"))
def test_gradients_are_those_of_forward_mode(case):
    """Of RTRL, of a whole window, of BPTT, and of programs on a batch, whose loops end at different times."""
    function, state, block = CASES[case]
    programs = {name: program_of(function, unknown, state, rule) for name, rule in EXACT.items()}
    cut = program_of(function, unknown, state, etpc.D_RTRL(window=2))
    assert max(op.block for op in cut.ops) == block
    assert all(op.exact for op in programs["RTRL"].plan.ops)
    targets = targets_of(XS)

    def gradients(model, xs, targets):
        one = functools.partial(forward, function, state=state)
        batch = jnp.stack([xs, xs[::-1]], 1), jnp.stack([targets, targets], 1)
        back = one(model, xs[::-1], targets)
        found = {"forward": one(model, xs, targets)}
        found["mean"] = jax.tree.map(lambda a, b: (a + b) / 2, found["forward"], back)
        for name, p in programs.items():
            found[name] = online(p, model, xs, targets, p.init())
            found[f"{name}, batch"] = online(p, model, *batch, p.init(2))
        step = step_of(function, unknown)
        options = dict(state=state, step=step, reduction="sum")
        found["bptt"] = etpc.bptt(model, xs, targets, loss, **options)[1]
        return found

    found = compiled(gradients, MODEL, XS, targets)
    for name in ("RTRL", "whole", "bptt"):
        assert_close(found[name], found["forward"])
    for name in EXACT:
        assert_close(found[f"{name}, batch"], found["mean"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "rule"),
    [(case, rule) for case in CASES for rule in RULES],
)
def test_a_rule_does_the_same_to_a_loop_of_known_length(case, rule):
    function, state, _ = CASES[case]
    targets = targets_of(XS)
    programs = [program_of(function, loop, state, RULES[rule]) for loop in (unknown, masked)]
    claims = [[(op.path, op.block, op.exact) for op in p.plan.ops] for p in programs]
    if case != "gain inside":  # written out, it has an operation for each iteration
        assert claims[0] == claims[1]

    def gradients(model, xs, targets):
        return [online(p, model, xs, targets, p.init()) for p in programs]

    assert_close(*compiled(gradients, MODEL, XS, targets))


def test_neurons_by_themselves_share_tangents(monkeypatch):
    """One for each value of a neuron that enters, and not one for each neuron."""
    counts, seeds = [], _loops._seeds
    monkeypatch.setattr(
        _loops,
        "_seeds",
        lambda colour, parts: counts.append(colour.max() + 1) or seeds(colour, parts),
    )
    program_of(newton, unknown, V, etpc.D_RTRL(window=2))
    assert max(counts) == 4  # the potential, also as the first guess, the drive and the leak
    counts.clear()
    program_of(mixing, unknown, V, etpc.D_RTRL(window=2))
    assert max(counts) == N


def spiking(loop, m, x, v):
    """Spikes whose surrogate is a backward rule."""
    drive = m["w"] @ x + m["rec"] @ jnp.tanh(v)
    body = lambda u: 0.9 * u - 0.3 * spike_vjp(u - 0.4)
    return loop(lambda u: jnp.abs(u).max() > 0.5, body, m["tau"] * v + drive)


def test_backward_rules_in_a_loop():
    program = program_of(spiking, unknown, V, etpc.RTRL(window=2))
    targets = targets_of(XS)

    def gradients(model, xs, targets):
        found = online(program, model, xs, targets, program.init())
        return found, bptt(model, xs, targets, V, step_of(spiking, masked))

    assert_close(*compiled(gradients, MODEL, XS, targets))


@pytest.mark.slow
def test_second_derivatives():
    """Of BPTT, forward."""
    targets, direction = targets_of(XS), jax.tree.map(jnp.cos, MODEL)
    options = dict(state=V, step=step_of(newton, unknown), reduction="sum")
    gradient = lambda model: etpc.bptt(model, XS, targets, loss, **options)[1]
    of_scan = lambda model: bptt(model, XS, targets, V, step_of(newton, masked))
    found, expected = (jax.jvp(g, (MODEL,), (direction,))[1] for g in (gradient, of_scan))
    assert_close(found, expected)
