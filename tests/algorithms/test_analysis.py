"""Rules of other authors that choose what is cut, or analyse another step: what they compute, and may claim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

import etpc
from etpc import analyse
from etpc.algorithms import Algorithm
from tests.helpers import loss, normal

T, B, N = 12, 2, 3
MODEL = {name: normal(N, N, seed=n) / 2 for n, name in enumerate(("between", "high", "low"))}
MODEL["leak"] = jnp.linspace(0.3, 0.8, N)
XS, TARGETS = normal(T, B, N, seed=5), normal(T, B, 2 * N, seed=6)
STATE = (jnp.zeros(N),) * 2


def step(m, x, state, between=lambda a: a, leak=lambda a: a):
    low, high = state
    new = m["leak"] * leak(low) + jnp.tanh(m["low"] @ low + x)
    high = jnp.tanh(m["high"] @ high + m["between"] @ between(low))
    return jnp.sin(jnp.concatenate([new, high])), (new, high)


def reverse_mode(**held):
    """The gradient of plain reverse mode through a step with stop-gradients."""

    def total(m):
        def one(state, data):
            y, state = step(m, data[0], state, **held)
            return state, loss(y, data[1])

        run = lambda xs, targets: jax.lax.scan(one, STATE, (xs, targets))[1].mean()
        return jax.vmap(run, (1, 1))(XS, TARGETS).mean()

    return jax.grad(total)(MODEL)


@dataclasses.dataclass(frozen=True)
class Own(Algorithm):
    """A rule with an analysis that is given."""

    of: object = None

    def analysis(self, step):
        return self.of(step)


def compiled(of):
    return etpc.compile(MODEL, Own(of, window=4), inputs=XS[0, 0], state=STATE, step=step)


def gradient(program):
    return program.value_and_grad(loss)(MODEL, XS, TARGETS, program.init(B))[1]


def numbers(step, *names):
    return [op.number for op in analyse.split(step).ops if op.path in [f"[{n!r}]" for n in names]]


def test_a_rule_cuts_the_operation_that_it_names():
    program = compiled(lambda s: analyse.analyse(s, cut=numbers(s, "between")))
    got, want = gradient(program), reverse_mode(between=stop_gradient)
    for name in MODEL:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-12)
    uncut = reverse_mode()
    for name in MODEL:
        is_exact = program.claims[f"[{name!r}]"].claim == "exact"
        assert is_exact == bool(np.allclose(want[name], uncut[name], rtol=1e-6)), name
        assert is_exact == (name in ("between", "high"))


@pytest.mark.parametrize("cut", [[99], [0, 99], "leak"])
def test_what_cannot_be_cut_is_refused_with_what_can(cut):
    with pytest.raises(
        etpc.InputError, match=r"none of these: (\d \(\['\w+'\] dot_general[^;]*;? ?){3}\. "
    ):
        compiled(lambda s: analyse.analyse(s, cut=numbers(s, "leak") if cut == "leak" else cut))


def held(given):
    """The analysis of a step that holds the data of the element-wise operation."""
    name = "['leak']"
    other = lambda m, x, state: step(m, x, state, leak=stop_gradient)
    found = analyse.analyse(etpc.trace.trace(MODEL, XS[0, 0], STATE, other), cut=False)
    assert all(not r.escapes for r in found.reach)  # it would claim that all are exact
    state = analyse.Escape("hidden [0]", (name,), "hidden [0]")
    through = {f"[{n!r}]" for n in ("leak", "low")}
    reach = tuple(
        dataclasses.replace(r, escapes=(state,)) if op.path in through else r
        for op, r in zip(found.ops, found.reach, strict=True)
    )
    return dataclasses.replace(found, reach=reach, given=given) if given else found


@pytest.mark.slow
def test_another_step_is_refused_unless_the_rule_answers_for_it():
    for of in (
        lambda s: held(None),
        lambda s: held(etpc.trace.trace(MODEL, XS[0, 0], STATE, step)),
    ):
        with pytest.raises(
            etpc.AlgorithmError, match=r"Own\.analysis .* another step .*`given=step`"
        ):
            compiled(of)
    with pytest.raises(etpc.AlgorithmError, match=r"Own\.analysis returned None"):
        compiled(lambda s: None)
    program = compiled(held)
    got, want, uncut = gradient(program), reverse_mode(leak=stop_gradient), reverse_mode()
    for name in MODEL:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-12)
        is_exact = program.claims[f"[{name!r}]"].claim == "exact"
        assert is_exact == bool(np.allclose(want[name], uncut[name], rtol=1e-6)), name
