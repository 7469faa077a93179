"""The sums of a gradient over windows: in the order of the traces, or of the weights."""

import jax
import pytest

import etpc
from etpc.emit import _gradient
from tests import models, oracle
from tests.traces.test_credit import distance

T, B = 19, 2


def gradient(name, window):
    model = models.named(name)
    xs, targets = models.data(model, T, B)
    algo = etpc.D_RTRL(window=window)
    program = etpc.compile(model, algo, inputs=oracle.at(xs, (0, 0)))
    run = program.value_and_grad(models.loss, "sum")
    sums = jax.eval_shape(
        lambda: program.runner.window.gradients.no_sums(weights_of(program), window)
    )
    apart = len(jax.tree.leaves(sums.entries))
    return run(model, xs, targets, program.init(B))[1], apart


def weights_of(program):
    avals = [v.aval for v in program.plan.analysis.split.weights]
    return [jax.numpy.zeros(a.shape, a.dtype) for a in avals]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_layer_lif", "lstm", "delay", "cascade"])
def test_the_order_changes_nothing(name, monkeypatch):
    """Windows of 8 steps, and a last one of 3, against those of 4."""
    reordered, none = gradient(name, 8)
    in_order, some = gradient(name, 4)
    assert none == 0
    assert some > 0
    assert distance(reordered, in_order) < 1e-11
    monkeypatch.setattr(_gradient, "FOLD_BELOW_BYTES", 0)
    as_they_are, all_of_them = gradient(name, 8)
    assert all_of_them == some
    assert distance(as_they_are, in_order) < 1e-11
