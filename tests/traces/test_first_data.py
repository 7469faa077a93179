"""What a decay carries of the data joins the data of a window's first step where its credit is that of this step."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

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


@dataclasses.dataclass(frozen=True)
class AskedForData(Decay):
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

    return step


ALONE = {
    "the new state": step_of(lambda m, x, h: m["W"] @ x, lambda u, h, new: new),
    "two products that are added": step_of(
        lambda m, x, h: m["W"] @ x + m["V"] @ h, lambda u, h, new: jnp.tanh(new)
    ),
}
PAST_THE_STATE = {
    "the product": step_of(lambda m, x, h: m["W"] @ x, lambda u, h, new: new * u),
    "the old state": step_of(lambda m, x, h: m["W"] @ x, lambda u, h, new: new * h),
    "a product of the product": step_of(
        lambda m, x, h: (w := m["W"] @ x) + m["V"] @ jnp.sin(w), lambda u, h, new: new
    ),
}


def gradient(step, rule):
    program = etpc.compile(MODEL, rule, inputs=XS[0, 0], state=jnp.zeros(N), step=step)
    run = program.value_and_grad(loss, "sum")
    (_, carry), first = run(MODEL, XS[:4], TARGETS[:4], program.init(B))
    _, second = run(MODEL, XS[4:], TARGETS[4:], carry)
    return {name: first[name] + second[name] for name in first}


@pytest.mark.parametrize("form", [WithRows, Mixed])
def test_a_subclass_with_other_rows_is_asked_for_them(form):
    CALLED.clear()
    gradient(ALONE["the new state"], Under(window=2, form=form))
    assert CALLED


@pytest.mark.parametrize("window", few([1, 2], 1))
@pytest.mark.parametrize("name", [*ALONE, *PAST_THE_STATE])
def test_the_gradient_is_that_of_a_row_of_its_own(name, window):
    step = (ALONE | PAST_THE_STATE)[name]
    apart = gradient(step, Under(window=window, form=WithRows))
    joined = gradient(step, Under(window=window))
    for path in apart:
        np.testing.assert_allclose(joined[path], apart[path], rtol=1e-12, atol=1e-13)
    if name in ALONE:
        gradient(step, Under(window=window, form=AskedForData))
    else:
        with pytest.raises(AssertionError, match="holds all"):
            gradient(step, Under(window=window, form=AskedForData))
