"""A critic that gives credit to the states at the end of a window, against dense matrices and BPTT."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from tests import models, oracle
from tests.marks import few
from tests.traces.test_credit import B, Case, T, distance

W = 3
RULES = {
    "d_rtrl": etpc.D_RTRL(window=W, in_window="exact"),
    "decay": etpc.ES_D_RTRL(decay=0.9, window=W, in_window="exact"),
    "rank": etpc.ES_D_RTRL(rank=1, window=W, in_window="exact"),
    "credit": etpc.CreditRTRL(2, 2, window=W),
    "snap": etpc.SnAp(1, window=W, in_window="exact"),
    "tbptt": etpc.TBPTT(W),
}


class Linear(eqx.Module):
    """The credit of each state is a number that depends on how many steps are left."""

    weights: jax.Array

    def __call__(self, state, left):
        return (1.0 + left) * self.weights @ oracle.flat(state)[0]


class Oracle(eqx.Module):
    """The credit that BPTT would give, [T, ...] by step."""

    credit: jax.Array

    def __call__(self, state, left):
        leaves = jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
        credit = [c[T - 1 - left] for c in self.credit]
        return sum(jnp.sum((c * a).real) for c, a in zip(credit, leaves, strict=True))


def credit_of_bptt(model, xs, targets, state):
    """By each float leaf of the state after each step: the derivative of the losses of later steps, [T, ...]."""
    floats = eqx.filter(state, eqx.is_inexact_array)
    ends = jax.tree.map(lambda a: jnp.zeros((T, *a.shape), a.dtype), floats)

    def total(shifts):
        def body(state, inputs):
            x, target, shift = inputs
            y, state = model(x, state)
            return eqx.apply_updates(state, shift), models.loss(y, target)

        return lax.scan(body, state, (xs, targets, shifts))[1].sum()

    return jax.tree.leaves(jax.grad(total)(ends))


def by_equations(case: Case, weights):
    """`d(sum l + c s_W)/dw, uncut, + credit_0 eps_0 - c eps_W` in each window, with dense matrices."""
    grads = None
    for steps in case.pieces:
        names, size = list(steps[0].F), len(steps[0].D)
        eps = {k: np.zeros((size, steps[0].F_full[k].shape[1])) for k in names}
        of_one = dict.fromkeys(names, 0.0)
        for begin in range(0, T, W):
            inside = steps[begin : begin + W]
            end = (1.0 + T - begin - len(inside)) * weights
            credit = end
            for p in reversed(inside):
                for k in names:
                    of_one[k] = of_one[k] + p.l_w_full[k] + credit @ p.F_full[k]
                credit = p.l_s_full + credit @ p.D_full
            for k in names:
                of_one[k] = of_one[k] + credit @ eps[k]
                for p in inside:
                    eps[k] = p.D @ eps[k] + oracle.immediate(p.F, p, k)
                of_one[k] = of_one[k] - end @ eps[k]
        scaled = {k: g / B for k, g in of_one.items()}
        grads = scaled if grads is None else {k: grads[k] + scaled[k] for k in names}
    return case.pull_back(grads)


def gradient(case: Case, algo, critic, batch=B):
    program = case.program(algo)
    run = program.value_and_grad(models.loss, "sum", critic=critic)
    return run(case.model, case.xs, case.targets, program.init(batch))


@pytest.mark.parametrize("name", few(models.ALL_NAMED, "lstm"))
def test_equals_its_equations(name):
    case = Case(name)
    weights = np.random.default_rng(0).normal(size=len(case.pieces[0][0].D))
    (_, _), grads = gradient(case, RULES["d_rtrl"], Linear(jnp.asarray(weights)))
    assert distance(grads, by_equations(case, weights)) < 1e-9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", few(models.ALL_NAMED, "two_layer_lif"))
def test_with_the_credit_of_bptt_it_is_bptt(name, rule):
    """Whatever the traces leave out."""
    case = Case(name)
    case.xs, case.targets = oracle.at((case.xs, case.targets), (slice(None), 0))
    credit = credit_of_bptt(case.model, case.xs, case.targets, case.state)
    program = etpc.compile(case.model, RULES[rule], inputs=case.xs[0])
    run = program.value_and_grad(models.loss, "sum", critic=Oracle(credit))
    (loss, _), grads = run(case.model, case.xs, case.targets, program.init())
    expected = etpc.bptt(case.model, case.xs, case.targets, models.loss, reduction="sum")
    assert distance(grads, expected[1]) < 1e-9
    np.testing.assert_allclose(loss, expected[0], rtol=1e-12)


@pytest.mark.parametrize("name", few(["cascade", "mingru", "delay"], "mingru"))
def test_where_the_trace_is_exact_it_changes_nothing(name):
    case = Case(name)
    critic = Linear(jnp.ones(len(oracle.flat(case.state)[0])))
    plain, other = (gradient(case, RULES["d_rtrl"], c)[1] for c in (None, critic))
    assert distance(plain, other) < 1e-12


@pytest.mark.parametrize("rule", few(RULES, "credit"))
def test_a_critic_without_credit_changes_nothing(rule):
    case = Case("gru")
    (_, carry), grads = gradient(case, RULES[rule], None)
    (_, with_critic), same = gradient(case, RULES[rule], lambda state, left: 0.0 * left)
    assert distance(grads, same) < 1e-13
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(with_critic), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_a_critic_that_learns_is_not_compiled_again():
    case, calls = Case("gru"), []

    class Counted(Linear):
        def __call__(self, state, left):
            calls.append(left)
            return super().__call__(state, left)

    size, program = len(case.pieces[0][0].D), case.program(RULES["d_rtrl"])
    different = []
    for scale in (1.0, 2.0):
        run = program.value_and_grad(models.loss, critic=Counted(scale * jnp.ones(size)))
        different.append(run(case.model, case.xs, case.targets, program.init(B))[1])
        traced = len(calls)
    assert len(calls) == traced
    assert distance(*different) > 1e-3


NO_CRITIC = [
    etpc.D_RTRL(),
    etpc.D_RTRL(window=2, lookback=4),
    etpc.TBPTT(4, every=2),
    etpc.ES_D_RTRL(rank=1, in_window="exact", certificate=True),
]


@pytest.mark.parametrize("algo", NO_CRITIC)
def test_rules_that_take_no_critic(algo):
    program = Case("gru").program(algo)
    with pytest.raises(etpc.InputError, match=r"takes no critic.*Compile with"):
        program.value_and_grad(models.loss, critic=lambda state, left: 0.0)


@pytest.mark.parametrize(
    ("critic", "error"),
    [
        (lambda state, left: jnp.zeros(2), r"one float.*float\d+\[2\]"),
        (lambda state, left: left, "one float.*int32"),
    ],
)
def test_mistakes(critic, error):
    case = Case("gru")
    with pytest.raises(etpc.InputError, match=error):
        gradient(case, RULES["d_rtrl"], critic)


class Recorded(eqx.Module):
    """Writes down a norm, which nothing reads and whose derivative is infinite at first."""

    w: jax.Array

    def init_state(self):
        return jnp.zeros(3), jnp.zeros(()), "a static leaf"

    def __call__(self, x, state):
        h = jnp.tanh(0.5 * state[0] + self.w @ jnp.concatenate([x, jnp.tanh(state[0])]))
        return h, (h, jnp.sqrt(jnp.sum(h**2)), state[2])


def test_without_a_critic_a_state_that_nothing_reads_gives_no_nan():
    model, xs = Recorded(jnp.ones((3, 5))), jnp.zeros((4, 2)).at[2:].set(1.0)
    for algo in (etpc.TBPTT(2), etpc.D_RTRL(window=4, in_window="exact")):
        program = etpc.compile(model, algo, inputs=xs[0])
        run = lambda model, program=program: program.scan(model, xs, program.init())[0].sum()
        assert jnp.isfinite(jax.grad(run)(model).w).all()
    program = etpc.compile(model, etpc.TBPTT(2), inputs=xs[0])
    run = program.value_and_grad(models.loss)
    assert jnp.isfinite(run(model, xs, jnp.ones((4, 3)), program.init())[1].w).all()


def test_a_state_with_a_leaf_that_is_no_array():
    model, xs = Recorded(jnp.ones((3, 5))), jnp.ones((4, 2))
    program = etpc.compile(model, RULES["d_rtrl"], inputs=xs[0])
    run = program.value_and_grad(models.loss, critic=lambda state, left: left * state[0].sum())
    assert jnp.isfinite(run(model, xs, jnp.ones((4, 3)), program.init())[1].w).all()
