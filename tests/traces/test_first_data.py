"""What a decay carries of the data joins the data of a window's first step where its credit is that of this step."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc.algorithms import Algorithm
from etpc.traces import Decay, Full
from tests.helpers import loss, normal
from tests.marks import few

T, B, I, N = 6, 3, 4, 5
A, W, V, U = jnp.full(N, 0.8), normal(N, I), normal(N, N, seed=1), normal(2, N, seed=2)
XS, TARGETS = normal(T, B, I, seed=3), normal(T, B, 2, seed=4)
MODEL = {"a": A, "W": W, "V": V, "U": U}
CALLED: list[bool] = []


@dataclasses.dataclass(frozen=True)
class WithRows(Decay):
    """The same, with the past as a row of its own, which says whether it was asked for it."""

    exact = False

    def rows(self, site, start, carry):
        CALLED.append(True)
        return super().rows(site, start, carry)


class Rows:
    def rows(self, site, start, carry):
        CALLED.append(True)
        return super().rows(site, start, carry)


@dataclasses.dataclass(frozen=True)
class Mixed(Rows, Decay):
    """The same, where the method comes from a class that is no trace."""

    exact = False


@dataclasses.dataclass(frozen=True)
class AskedForData(Decay):
    exact = False

    def rows(self, site, start, carry):
        raise AssertionError("the data of the first step holds all")

    def first_data(self, site, carry):
        return super().first_data(site, carry)


@dataclasses.dataclass(frozen=True)
class Under(Algorithm):
    form: type[Decay] = Decay

    def trace_form(self, kind):
        return Full() if kind.data is None else self.form(0.7)


def step_of(product, output):
    def step(m, x, h):
        u = product(m, x, h)
        new = m["a"] * h + jnp.tanh(u)
        return m["U"] @ output(u, h, new), new

    return step, jnp.zeros(N)


def packed(pack):
    """One array holds all that the output reads."""

    def step(m, x, state):
        h = jnp.tanh(m["W"] @ x + 0.1 * state[:N])
        g = m["a"] * state[N:] + m["V"] @ state[:N]
        return m["U"] @ (h * g), pack((h, g))

    return step, jnp.zeros(2 * N)


def in_part(part):
    """A part of the product is a new state, and the output reads the rest too."""

    def step(m, x, state):
        h, g = state
        u = m["W"] @ x
        new = part(u)
        g = m["a"][:3] * g + jnp.tanh(new) + 0.1 * jnp.sin(h)
        return m["U"] @ jnp.sin(u) + g[:2], (new, g)

    return step, (jnp.zeros(3), jnp.zeros(3))


ALONE = {
    "the new state": step_of(lambda m, x, h: m["W"] @ x, lambda u, h, new: new),
    "two products that are added": step_of(
        lambda m, x, h: m["W"] @ x + m["V"] @ h, lambda u, h, new: jnp.tanh(new)
    ),
    "a stack": packed(lambda parts: jnp.stack(parts).reshape(-1)),
    "a stack, turned round": packed(lambda parts: jnp.concatenate(parts)[::-1]),
}
PAST_THE_STATE = {
    "the product": step_of(lambda m, x, h: m["W"] @ x, lambda u, h, new: new * u),
    "the old state": step_of(lambda m, x, h: m["W"] @ x, lambda u, h, new: new * h),
    "a product of the product": step_of(
        lambda m, x, h: (w := m["W"] @ x) + m["V"] @ jnp.sin(w), lambda u, h, new: new
    ),
    "what a slice leaves out": in_part(lambda u: u[:3]),
    "what a split leaves out": in_part(lambda u: jnp.split(u, [3])[0]),
    "what a gather leaves out": in_part(lambda u: u[jnp.array([3, 1, 1])]),
    "what a dynamic slice leaves out": in_part(
        lambda u: lax.dynamic_slice(u, (jnp.argmax(lax.stop_gradient(u)),), (3,))
    ),
    "what is overwritten": in_part(lambda u: u.at[1].set(0.3)[:3]),
}


def gradient(case, rule):
    step, state = case
    program = etpc.compile(MODEL, rule, inputs=XS[0, 0], state=state, step=step)
    run = program.value_and_grad(loss, "sum")
    (_, carry), first = run(MODEL, XS[:4], TARGETS[:4], program.init(B))
    _, second = run(MODEL, XS[4:], TARGETS[4:], carry)
    return {name: first[name] + second[name] for name in first}


def test_a_subclass_with_rows_from_another_class_is_asked_for_them():
    CALLED.clear()
    gradient(ALONE["the new state"], Under(window=2, form=Mixed))
    assert CALLED


@pytest.mark.parametrize("window", few([1, 2], 1))
@pytest.mark.parametrize("name", [*ALONE, *PAST_THE_STATE])
def test_the_gradient_is_that_of_a_row_of_its_own(name, window):
    case = (ALONE | PAST_THE_STATE)[name]
    CALLED.clear()
    apart = gradient(case, Under(window=window, form=WithRows))
    assert CALLED, "a subclass with other rows is asked for them"
    joined = gradient(case, Under(window=window))
    for path in apart:
        np.testing.assert_allclose(joined[path], apart[path], rtol=1e-12, atol=1e-13)
    if name in ALONE:
        gradient(case, Under(window=window, form=AskedForData))
    else:
        with pytest.raises(AssertionError, match="holds all"):
            gradient(case, Under(window=window, form=AskedForData))
