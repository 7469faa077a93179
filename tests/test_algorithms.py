"""SnAp's steps, what makes an algorithm, and where a weight has factors."""

import dataclasses
import inspect
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from etpc.algorithms import Full
from etpc.rules import CreditSubspace
from tests.helpers import bptt, distance, normal, online
from tests.zoo.check import model

T, N, IN = 6, 5, 3


XS = normal(T, IN, seed=1)


@model
def Ring(x, h, w, b):
    """Each unit reads itself and its left neighbour, so influence moves on by one unit a step."""
    h = jnp.tanh(0.6 * h + 0.5 * jnp.roll(h, 1) + w @ x + b)
    return h, h


@model
def Stack(x, state, w1, w2):
    """Two layers of independent units; the second reads the new state of the first."""
    a, b = state
    a = 0.6 * a + jnp.tanh(w1 @ x)
    b = 0.8 * b + jnp.tanh(w2 @ a)
    return b, (a, b)


RING = Ring(normal(N, IN), normal(N, seed=2))
STACK = Stack(normal(N, IN), normal(N, N, seed=2))
ZERO = jnp.zeros(N)


@pytest.mark.slow
def test_more_steps_change_the_gradient_until_nothing_leaves():
    programs = [
        etpc.compile(RING, etpc.SnAp(n), inputs=XS[0], state=ZERO, weights="all")
        for n in range(1, N + 1)
    ]
    targets = jnp.full((T, N), 0.3)
    found = [online(program, RING, XS, targets, program.init()) for program in programs]
    for one, other in itertools.pairwise(found):
        assert distance(one, other) > 1e-6
    assert all(op.exact for op in programs[-1].ops)
    assert [op.block for op in programs[-1].ops] == [N, N]
    assert distance(found[-1], bptt(RING, XS, targets, ZERO)) < 1e-9


def test_what_leaves_a_snap_trace_is_said():
    program = etpc.compile(RING, etpc.SnAp(2), inputs=XS[0], state=ZERO)
    assert [op.block for op in program.ops] == [2, 2]
    assert program.ops[0].escapes == ("hidden state -> hidden state, after 2 steps",)


def test_windows_of_snap():
    """They have one step where a trace holds less than its states reach."""
    window = lambda rule: etpc.compile(RING, rule, inputs=XS[0], state=ZERO).window_for(T)
    assert [window(etpc.SnAp(n)) for n in (1, N)] == [1, T]
    for rule in (etpc.SnAp(1, window=3, backprop="full"), etpc.SnAp(1, window=3, lookback=4)):
        assert window(rule) == 3
    with pytest.raises(etpc.AlgorithmError, match=r"SnAp\(n=1, window=3.*step by step"):
        etpc.SnAp(1, window=3)


def test_rtrl_blocks_follow_the_structure():
    """A unit of the first layer reaches itself and the second layer; one of the second, itself."""
    program = etpc.compile(STACK, "rtrl", inputs=XS[0], state=(ZERO, ZERO), weights="all")
    assert [op.block for op in program.ops] == [N + 1, 1]
    assert all(op.exact for op in program.ops)


# --- numbers of other types -----------------------------------------------------------------------


NUMBERS = [
    (etpc.D_RTRL, "window", 4),
    (etpc.SnAp, "n", 3),
    (etpc.ES_D_RTRL, "rank", 2),
    (etpc.ES_D_RTRL, "decay", 0.5),
    (etpc.ES_D_RTRL, "everywhere", True),
    (etpc.TBPTT, "steps", 7),
]
TYPES = {
    int: [np.int64, np.uint8, jnp.int32],
    float: [np.float64, np.float32, jnp.float32],
    bool: [np.bool_],
}


@pytest.mark.parametrize(("algorithm", "name", "value"), NUMBERS)
def test_scalars_of_numpy_and_jax_are_numbers(algorithm, name, value):
    """They make an algorithm that is equal, prints and hashes the same, and so compiles the same."""
    expected = algorithm(**{name: value})
    for kind in TYPES[type(value)]:
        found = object.__new__(algorithm)
        inspect.unwrap(algorithm.__init__)(found, **{name: kind(value)})
        assert type(getattr(found, name)) is type(value)
        assert (found, str(found), hash(found)) == (expected, str(expected), hash(expected))


@pytest.mark.parametrize(
    ("algorithm", "name"), [(etpc.D_RTRL, "window"), (etpc.SnAp, "n"), (etpc.TBPTT, "steps")]
)
@pytest.mark.parametrize("value", [True, np.bool_(True), np.float64(2), 2.5, np.int64(0)])
def test_scalars_that_count_nothing(algorithm, name, value):
    with pytest.raises(etpc.EtpcError, match=rf"{name} must be .*an int >= 1"):
        inspect.unwrap(algorithm.__init__)(object.__new__(algorithm), **{name: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    "algo",
    [
        etpc.D_RTRL(),
        etpc.ES_D_RTRL(decay=0.9),
        etpc.ES_D_RTRL(rank=1),
        etpc.SnAp(1),
        etpc.SnAp(2),
        etpc.RTRL(rank=2),
        etpc.CreditRTRL(1, 1, window=4),
        etpc.D_RTRL(window=4, lookback=6),
    ],
    ids=str,
)
def test_jax_grad_of_a_window_is_the_gradient_of_the_program(algo):
    """What the backward pass keeps of the forward one goes through `jax.grad` and `jax.jit`."""
    w, xs = normal(3, 3), normal(8, 3, seed=1)
    step = lambda w, x, h: (jnp.tanh(w @ h + x),) * 2
    program = etpc.compile(w, algo, inputs=xs[0], state=jnp.zeros(3), step=step)
    run = program.value_and_grad(lambda y, t: jnp.sum(y**2), "sum")

    def loss(w, xs, carry):
        ys, carry = program.scan(w, xs, carry)
        return jnp.sum(ys**2), carry

    carry = by_jax = program.init()
    for part in (xs[:4], xs[4:]):
        (_, carry), wanted = run(w, part, part, carry)
        (_, by_jax), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(w, part, by_jax)
        if isinstance(algo, etpc.CreditRTRL):  # a call knows no loss, and the directions stay
            by_jax = carry
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", [etpc.D_RTRL, etpc.ES_D_RTRL, etpc.RTRL, etpc.SnAp])
def test_backprop_is_one_of_two(rule):
    assert rule().backprop == "cut"
    assert etpc.CreditRTRL().backprop == "full"
    with pytest.raises(etpc.AlgorithmError, match=r'"cut" or "full", not .half'):
        inspect.unwrap(rule.__init__)(object.__new__(rule), backprop="half")


@pytest.mark.slow
def test_a_choice_that_is_none():
    """A rule of a user that forgets an operation, or follows directions in windows that are cut."""

    @dataclasses.dataclass(frozen=True)
    class Forgetful(etpc.algorithms.Algorithm):
        def choose(self, context):
            return etpc.algorithms.Choice({op.number: Full() for op in context.ops[1:]})

    @dataclasses.dataclass(frozen=True)
    class Following(etpc.algorithms.Algorithm):
        def choose(self, context):
            forms = {op.number: Full() for op in context.ops}
            return etpc.algorithms.Choice(forms, extension=CreditSubspace(1))

    gru = nn.Sequential([eqx.nn.GRUCell(3, 4, key=jax.random.key(0))])
    with pytest.raises(etpc.AlgorithmError, match=r"Forgetful.choose gives no form for \S"):
        etpc.compile(gru, Forgetful(), inputs=jnp.zeros(3))
    with pytest.raises(etpc.AlgorithmError, match='Set backprop="full"'):
        etpc.compile(gru, Following(), inputs=jnp.zeros(3))
    assert etpc.compile(gru, Following(backprop="full"), inputs=jnp.zeros(3)).ir.extends


def test_an_operation_without_a_trace_says_which_gradient_it_gets():
    @dataclasses.dataclass(frozen=True)
    class Half(etpc.algorithms.Algorithm):
        def trace_form(self, kind):
            return Full() if kind.data is None else None

    gru = nn.Sequential([eqx.nn.GRUCell(3, 4, key=jax.random.key(0))])
    reasons = {p.path: p.reason for p in etpc.compile(gru, Half(), inputs=jnp.zeros(3)).plan.ops}
    assert any(reasons.values())
    assert all("Half gives it none" in r and "current step" in r for r in reasons.values() if r)
    exact = etpc.compile(gru, Half(backprop="full"), inputs=jnp.zeros(3))
    assert all("the last 16 steps" in p.reason for p in exact.plan.ops if p.reason)


# --- factors, and whole traces where these take no more memory ------------------------------------


LAYERS = {
    "large": normal(8, 6),
    "small": normal(8, 1, seed=2),
    "readout": normal(4, 8, seed=3),
    "ends": normal(8, 8, seed=4),
    "from": normal(8, 8, seed=5),
}


def layered(m, x, state):
    """A layer whose last output the next step reads through a matrix alone, and a leaky readout."""
    h, last, r = state
    h = jnp.tanh(0.9 * h + m["large"] @ x + m["small"] @ x[:1] + m["from"] @ last)
    last = jnp.sin(m["ends"] @ h)
    r = 0.9 * r + m["readout"] @ last
    return r, (h, last, r)


@pytest.mark.parametrize(
    ("rule", "whole"),
    [
        (etpc.ES_D_RTRL(decay=0.9), {"small", "readout", "ends"}),
        (etpc.ES_D_RTRL(rank=2), {"small", "readout", "ends"}),
        (etpc.RTRL(rank=2), {"small", "readout"}),
        (etpc.ES_D_RTRL(decay=0.9, everywhere=True), set()),
        (etpc.ES_D_RTRL(rank=2, everywhere=True), {"small"}),  # of which there is no more than that
    ],
)
def test_a_weight_has_factors_where_they_save_memory(rule, whole):
    state = jnp.zeros(8), jnp.zeros(8), jnp.zeros(4)
    program = etpc.compile(LAYERS, rule, inputs=jnp.zeros(6), state=state, step=layered)
    assert {p.path[2:-2] for p in program.plan.ops if p.form is None or p.form.exact} == whole
    for p in program.ops:
        is_chosen = "the whole trace, which takes no more memory than" in p.choice
        assert is_chosen == (p.path[2:-2] in whole and not getattr(rule, "everywhere", False))


def test_everywhere():
    rule = etpc.ES_D_RTRL(decay=0.9, everywhere=True)
    assert rule.short == "ES_D_RTRL(decay=0.9, everywhere=True)"
    assert repr(rule) == "ES_D_RTRL(decay=0.9, everywhere=True, window='auto', backprop='cut')"
    assert "everywhere" not in repr(etpc.ES_D_RTRL(decay=0.9))
    for value in (1, "yes", None):
        with pytest.raises(etpc.InputTypeError, match="everywhere must be True or False"):
            inspect.unwrap(etpc.ES_D_RTRL.__init__)(
                object.__new__(etpc.ES_D_RTRL), everywhere=value
            )


def test_two_decays_by_hand():
    """`eps_x' = a eps_x + x`, `eps_f' = b D eps_f + F`, over a normaliser with `sqrt(a b)`, in loops."""
    a, b, leak = 0.6, 0.9, 0.8
    w, xs, targets = normal(N, IN), normal(T, IN, seed=1), normal(T, N, seed=2)

    def step(w, x, v):
        v = jnp.sin(leak * v + w @ x)
        return v, v

    rule = etpc.ES_D_RTRL(decay=(a, b), everywhere=True, window=2)
    program = etpc.compile(w, rule, inputs=xs[0], state=jnp.zeros(N), step=step)
    got = online(program, w, xs, targets, program.init())
    v, eps_x, eps_f, norm, want = np.zeros(N), np.zeros(IN), np.zeros(N), 0.0, 0.0
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        before = leak * v + np.asarray(w) @ x
        v = np.sin(before)
        eps_x, norm = a * eps_x + x, np.sqrt(a * b) * norm + 1
        eps_f = b * leak * np.cos(before) * eps_f + np.cos(before)
        want = want + np.outer(2 * (v - target) * eps_f, eps_x) / norm
    assert distance(got, want) < 1e-12
    assert "decay 0.6, 0.9" in str(program)
    assert rule.short == "ES_D_RTRL(decay=(0.6, 0.9), everywhere=True)"
