"""Forms with transitions of their own, on networks of all kinds of operation: where they are the whole trace."""

import dataclasses

import jax
import numpy as np
import pytest

import etpc
from etpc.algorithms import Algorithm
from etpc.rules import LowPassed
from tests.helpers import loss
from tests.marks import few, first
from tests.passes.networks import networks
from tests.passes.test_passes import BATCH, data

NETWORKS = networks()


@dataclasses.dataclass(frozen=True)
class NotFiltered(Algorithm):
    def trace_form(self, kind):
        return LowPassed(0.0)


@pytest.mark.parametrize("name", few(NETWORKS, "GRU"))
@pytest.mark.parametrize("backprop", first(["cut", "full"]))
def test_a_low_pass_that_forgets_at_once_is_the_whole_trace(name, backprop):
    model, state, step = NETWORKS[name]
    xs, targets = data()
    found = []
    for rule in (NotFiltered, etpc.D_RTRL):
        program = etpc.compile(
            model, rule(window=3, backprop=backprop), inputs=xs[0, 0], state=state, step=step
        )
        run = program.value_and_grad(loss, "sum")
        _, grads = run(model, xs, targets, program.init(BATCH))
        found.append([np.asarray(g) for g in jax.tree.leaves(grads)])
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * (np.abs(want).max() + 1))
