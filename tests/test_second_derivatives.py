"""Derivatives of what a program gives: those of a gradient raise an error where they would be wrong."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
import etpc.run._runner
from tests.marks import few
from tests.test_online import PLAIN, RULES, B, T, data, loss, program_of

XS, TARGETS = data()
CUT = {name: RULES[name] for name in ("D", "rank")} | {"credit": etpc.CreditRTRL(q=2, window=2)}
WHOLE = etpc.D_RTRL(window=T, backprop="full")


def float_leaves(tree):
    return eqx.filter(tree, eqx.is_inexact_array)


def dot(one, other):
    pairs = zip(*map(jax.tree.leaves, map(float_leaves, (one, other))), strict=True)
    return sum(jnp.vdot(a, b) for a, b in pairs)


DIRECTION = jax.tree.map(jnp.cos, float_leaves(PLAIN))


def moved(by):
    """The model, moved along a direction."""
    return eqx.apply_updates(PLAIN, jax.tree.map(lambda a: by * a, DIRECTION))


def losses_of(algo):
    """The loss of a sequence by `program.scan`, as a function of the model and the targets."""
    program = program_of(PLAIN, algo)

    def mean(model, targets=TARGETS):
        ys, _ = program.scan(model, XS, program.init(B))
        return jax.vmap(jax.vmap(loss))(ys, targets).mean()

    return mean


def by_program(algo, model=PLAIN, xs=XS, targets=TARGETS, state=None, mask=None):
    program = program_of(PLAIN, algo)
    carry = program.init(B)
    carry = carry if state is None else eqx.tree_at(lambda c: c.state, carry, state)
    (value, _), grads = program.value_and_grad(loss)(model, xs, targets, carry, mask=mask)
    return value, grads


STATE = program_of().init(B).state
ENTERS = {
    "model": (lambda a: {"model": moved(a)}, 0.1),
    "input": (lambda a: {"xs": a}, XS),
    "targets": (lambda a: {"targets": a}, TARGETS),
    "state": (lambda a: {"state": a}, STATE),
    "mask": (lambda a: {"mask": a}, jnp.ones((T, B))),
}
UNDER = {
    "grad": jax.grad,
    "grad, jit": lambda f: jax.jit(jax.grad(f)),
    "grad, checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "grad, vmap": lambda f: lambda a: jax.vmap(jax.grad(f))(jax.tree.map(lambda a: jnp.stack([a]), a)),
    "jvp": lambda f: lambda a: jax.jvp(f, (a,), (a,)),
    "jvp, jit": lambda f: jax.jit(lambda a: jax.jvp(f, (a,), (a,))),
    "in a loop": lambda f: jax.grad(lambda a: jax.lax.scan(lambda s, _: (s + f(a), None), 0.0, None, 2)[0]),
}  # fmt: skip


def refused(under, function, at):
    at = jax.tree.map(jnp.asarray, at)
    with pytest.raises(etpc.UnsupportedError, match=r"gradient of a program.*`etpc\.bptt`"):
        UNDER[under](function)(at)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTERS)
def test_a_gradient_has_no_derivative_by_what_enters_it(name):
    change, at = ENTERS[name]
    refused("grad", lambda a: dot(by_program(RULES["D"], **change(a))[1], DIRECTION), at)


@pytest.mark.slow
@pytest.mark.parametrize("under", UNDER)
def test_under_transformations(under):
    refused(under, lambda a: dot(by_program(RULES["D"], moved(a))[1], DIRECTION), 0.1)


@pytest.mark.parametrize("algo", few([*CUT.values(), WHOLE], CUT["credit"], WHOLE))
def test_under_all_rules(algo):
    refused("grad", lambda a: dot(by_program(algo, moved(a))[1], DIRECTION), 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "under"), [("D", "grad"), ("rank", "jvp")])
def test_twice_through_a_scan(name, under):
    mean = losses_of(RULES[name])
    refused(under, lambda a: dot(eqx.filter_grad(mean)(moved(a)), DIRECTION), 0.1)


@pytest.mark.slow
def test_twice_through_a_scan_where_nothing_is_cut():
    def along(gradient):
        return jax.grad(lambda a: dot(gradient(moved(a)), DIRECTION))(0.1)

    got = along(eqx.filter_grad(losses_of(WHOLE)))
    expected = along(lambda m: etpc.bptt(m, XS, TARGETS, loss, batch_size=B)[1])
    assert abs(expected) > 1e-2
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    program = program_of(PLAIN, WHOLE)

    def of_second_call(a):  # whose traces depend on the model
        _, carry = program.scan(moved(a), XS, program.init(B))
        mean = lambda m: program.scan(m, XS, carry)[0].mean()
        return dot(eqx.filter_grad(mean)(PLAIN), DIRECTION)

    refused("grad", of_second_call, 0.1)


@pytest.mark.parametrize(
    "under",
    few(
        ["grad", "grad, jit", "grad, checkpoint", "grad, vmap", "in a loop"],
        "grad, vmap",
        "in a loop",
    ),
)
def test_a_loss_has_the_derivative_of_bptt(under):
    factor = 2 if under == "in a loop" else 1
    got = UNDER[under](lambda a: by_program(RULES["D"], moved(a))[0])(jnp.asarray(0.1))
    expected = jax.grad(lambda a: etpc.bptt(moved(a), XS, TARGETS, loss, batch_size=B)[0])(0.1)
    assert abs(expected) > 1e-2
    np.testing.assert_allclose(np.squeeze(got), factor * expected, rtol=1e-10)


@pytest.mark.slow
def test_a_gradient_by_scan_is_linear_in_the_cotangents():
    mean = losses_of(RULES["D"])
    got = jax.grad(lambda t: dot(eqx.filter_grad(mean)(PLAIN, t), DIRECTION))(TARGETS)
    tangent = jnp.sin(TARGETS)
    ahead, behind = (
        dot(eqx.filter_grad(mean)(PLAIN, TARGETS + sign * tangent), DIRECTION) for sign in (1, -1)
    )
    assert abs(ahead - behind) > 1e-2
    np.testing.assert_allclose(jnp.vdot(got, tangent), (ahead - behind) / 2, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("under", ["grad", "grad, checkpoint"])
def test_the_derivative_by_a_learning_rate(under):
    def after(rate):
        grads = by_program(RULES["D"])[1]
        model = eqx.apply_updates(PLAIN, jax.tree.map(lambda g: -rate * g, grads))
        return etpc.bptt(model, XS, TARGETS, loss, batch_size=B)[0]

    grads = by_program(RULES["D"])[1]
    model = eqx.apply_updates(PLAIN, jax.tree.map(lambda g: -0.1 * g, grads))
    expected = -dot(etpc.bptt(model, XS, TARGETS, loss, batch_size=B)[1], grads)
    np.testing.assert_allclose(
        np.squeeze(UNDER[under](after)(jnp.asarray(0.1))), expected, rtol=1e-10
    )


@pytest.mark.slow
def test_updates():
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    learner = etpc.online(program_of(), loss, optimizer, T // 2)
    opt_state, carry = learner.init(PLAIN, B)

    def after(model, rate, updates):
        state = opt_state._replace(hyperparams={"learning_rate": rate})
        steps = updates * T // 2
        model, _, _, losses = learner.update(model, state, carry, XS[:steps], TARGETS[:steps])
        return dot(model, DIRECTION), losses

    rate = jnp.asarray(0.1)
    got = jax.grad(lambda rate: after(PLAIN, rate, 1)[0])(rate)
    grads = program_of().value_and_grad(loss)(PLAIN, XS[: T // 2], TARGETS[: T // 2], carry)[1]
    np.testing.assert_allclose(got, -dot(grads, DIRECTION), rtol=1e-10)
    refused("grad", lambda rate: after(PLAIN, rate, 2)[0], rate)
    refused("grad", lambda a: after(moved(a), rate, 1)[0], 0.1)
    refused("grad", lambda a: after(moved(a), rate, 2)[1].sum(), 0.1)


@pytest.mark.slow
def test_it_costs_nothing(monkeypatch):
    def compiled():
        program = etpc.compile(PLAIN, RULES["D"], inputs=jnp.zeros(XS.shape[-1]))
        run = jax.jit(lambda xs: program.value_and_grad(loss)(PLAIN, xs, TARGETS, program.init(B)))
        return run.lower(XS).compile().as_text()

    guarded = compiled()
    calls = []
    monkeypatch.setattr(
        etpc.run._runner, "without_derivative", lambda tree, _: calls.append(1) or tree
    )
    plain = compiled()
    assert calls

    def instructions(text):
        return [line.split(", metadata=")[0] for line in text.splitlines() if " = " in line]

    assert len(instructions(guarded)) > 100
    assert instructions(guarded) == instructions(plain)
