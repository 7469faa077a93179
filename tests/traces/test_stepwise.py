"""Element-wise weights under a decay, whose traces are read at each step, against whole traces."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest

import etpc
from etpc import nn
from etpc.algorithms import Choice, Full, Stepwise
from tests.marks import few
from tests.traces.test_credit import NAMES, Case, distance


@dataclasses.dataclass(frozen=True)
class Chosen(etpc.ES_D_RTRL):
    """A decay with whole traces of element-wise weights, or those that are read at each step, wherever they may be."""

    by_step: bool = dataclasses.field(default=False, kw_only=True)
    name: ClassVar[str] = "chosen"

    def choose(self, context):
        forms = {op.number: self.trace_form(op.kind) for op in context.ops}
        form = Stepwise() if self.by_step else Full()
        return Choice({n: form if old == Full() else old for n, old in forms.items()})


@pytest.mark.parametrize("name", few(NAMES, "two_layer_lif", "lstm"))
def test_is_the_whole_trace_in_another_order(name):
    case = Case(name)
    (whole, carry), (stepwise, other) = (
        case.online(Chosen(0.9, window=3, by_step=by_step)) for by_step in (False, True)
    )
    assert distance(stepwise, whole) < 1e-12
    for a, b in zip(jax.tree.leaves(carry.traces), jax.tree.leaves(other.traces), strict=True):
        if a.shape == b.shape:  # else a block has states whose influence ends with the step
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_some_of_those_have_element_wise_weights():
    """Negative control."""
    programs = [Case(name).program(Chosen(0.9, by_step=True)) for name in NAMES]
    forms = [{type(p.form) for p in program.plan.traces} for program in programs]
    assert sum(Stepwise in of_one for of_one in forms) > len(NAMES) // 2


@pytest.mark.parametrize(
    ("cell", "form"),
    [
        (nn.MinGRU(3, 4, key=jax.random.key(0)), Stepwise),
        (nn.LSTM(3, 4, key=jax.random.key(0)), Full),
    ],
    ids=["mingru", "lstm"],
)
def test_it_is_taken_where_it_is_less_work(cell, form):
    def taken(algo):
        program = etpc.compile(cell, algo, inputs=np.zeros(3))
        return {type(p.form) for p in program.plan.traces if not p.site.factored}

    assert taken(etpc.ES_D_RTRL(0.9)) == {form}
    assert taken(etpc.ES_D_RTRL(0.9, in_window="exact")) == {Full}
    assert taken(etpc.ES_D_RTRL(rank=1)) == {Full}
