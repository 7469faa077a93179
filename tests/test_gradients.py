"""Programs against independent references: BPTT, and dense references of each approximation.

For every named model (`tests.fuzz` does the same for drawn ones):

- (a) RTRL equals BPTT;
- (b) where every operation is said to be exact, D-RTRL equals BPTT;
- (c) truncated gradients are the same for every window, batched or not, split into two calls or not;
- (d) one full window from a fresh carry equals BPTT;
- (e) D-RTRL and ES-D-RTRL equal dense references of their equations;
- (f) the patterns contain the non-zeros of the dense Jacobians.

The named models include what is easy to get wrong: a readout that no state follows, a gate through
another weight, a network below the cell, states that read another's new value, hidden states that
are permuted, sorted, cumulated or centred, outputs from the old state and from before a reset.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests import models, oracle
from tests.helpers import alive, distance
from tests.marks import few

TOLERANCE = 1e-9
T = 6
DECAY = 0.8


class Case:
    """A model with a sequence, its programs and its references."""

    def __init__(self, model, batch=None):
        self.model, self.batch = model, batch
        self.data = models.data(model, T, batch)

    def program(self, algo):
        inputs = jax.tree.map(lambda a: a[0] if self.batch is None else a[0, 0], self.data[0])
        return etpc.compile(self.model, algo, inputs=inputs, weights="all")

    def online(self, algo, split=T):
        """The gradient of a program; in two calls where `split` is less than T."""
        program = self.program(algo)
        run, carry, total = (
            program.value_and_grad(models.loss, "sum"),
            program.init(self.batch),
            None,
        )
        for part in (slice(0, split), slice(split, T)):
            xs, targets = jax.tree.map(lambda a, part=part: a[part], self.data)
            if len(jax.tree.leaves(xs)[0]):
                (_, carry), grads = run(self.model, xs, targets, carry)
                total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        return total

    def reference(self, algo, **options):
        return oracle.gradient(
            self.model,
            *self.data,
            models.loss,
            algo,
            decay=DECAY,
            batched=self.batch is not None,
            **options,
        )


def check(model):
    """Properties (a) to (f); returns the largest error of each."""
    case = Case(model)
    found = {}
    bptt = case.reference("bptt")
    assert alive(bptt)
    found["a"] = distance(case.online(etpc.RTRL(window=2)), bptt)
    online = case.online(etpc.D_RTRL(window=2))
    program = case.program(etpc.D_RTRL(window=2))
    if all(op.exact for op in program.plan.ops):
        found["b"] = distance(online, bptt)
    found["c"] = distance(case.online(etpc.D_RTRL(window=T), split=3), online)
    found["d"] = distance(case.online(etpc.D_RTRL(window=T, backprop="full")), bptt)
    found["e"] = distance(online, case.reference("d_rtrl"))
    smoothed = case.online(etpc.ES_D_RTRL(decay=DECAY, everywhere=True, window=2))
    found["e (ES)"] = distance(smoothed, case.reference("es_d_rtrl"))
    patterns_hold(program, model, case.data[0][0])
    return found


def patterns_hold(program, model, x):
    """(f): the non-zeros of dense Jacobians at random points lie inside the pattern."""
    dense = oracle.structure(model, x, points=4)
    analysis, pattern = program.plan.analysis, program.plan.analysis.transition.toarray()
    # The reference has all leaves of the state, flattened, also those that no output depends on.
    leaves = [(i, analysis.step.state[i].size) for i in analysis.step.state_leaves.floats]
    hidden = np.concatenate([np.full(size, i in analysis.hidden.leaves) for i, size in leaves])
    among = dense.D[np.ix_(hidden, hidden)]
    assert pattern.shape == among.shape
    assert not np.any(among & ~pattern)


@pytest.mark.parametrize("name", few(models.ALL_NAMED, "mingru"))
def test_named_models(name):
    found = check(models.named(name))
    assert all(error < TOLERANCE for error in found.values()), found


@pytest.mark.parametrize("name", few(["two_layer_lif", "alif", "cascade", "reset_gate"], "cascade"))
def test_batched_equals_the_mean_of_examples(name):
    case = Case(models.named(name), batch=3)
    for algo, label in (
        (etpc.D_RTRL(window=3), "d_rtrl"),
        (etpc.ES_D_RTRL(decay=DECAY, everywhere=True), "es_d_rtrl"),
    ):
        grads = case.online(algo)
        assert alive(grads)
        assert distance(grads, case.reference(label)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lif", "delay", "lstm", "mlp"])
def test_exact_windows_equal_the_reference(name):
    case = Case(models.named(name))
    for algo, label in (
        (etpc.D_RTRL(window=2, backprop="full"), "d_rtrl"),
        (etpc.ES_D_RTRL(decay=DECAY, everywhere=True, window=2, backprop="full"), "es_d_rtrl"),
    ):
        reference = case.reference(label, window=2, backprop="full")
        assert distance(case.online(algo), reference) < TOLERANCE


@pytest.mark.slow
def test_every_setting_changes_the_gradient():
    """Negative controls: in a recurrent network no two of these rules agree."""
    case = Case(models.named("two_layer_lif"))
    grads = [
        case.reference("bptt"),
        *(
            case.online(algo)
            for algo in (
                etpc.D_RTRL(window=2),
                etpc.D_RTRL(window=2, backprop="full"),
                etpc.D_RTRL(window=1, backprop="full"),
                etpc.ES_D_RTRL(decay=0.8),
                etpc.ES_D_RTRL(decay=0.5),
                etpc.ES_D_RTRL(decay=1.0),
            )
        ),
    ]
    for i, one in enumerate(grads):
        for other in grads[:i]:
            assert distance(one, other) > 1e-4


def test_a_broken_trace_is_seen():
    """Negative control: if traces are dropped between windows, the comparison fails."""
    case = Case(models.named("mingru"))
    reference = case.reference("bptt")
    program = case.program(etpc.D_RTRL(window=2))
    run, carry, total = program.value_and_grad(models.loss, "sum"), program.init(), None
    for start in range(0, T, 2):
        xs, targets = jax.tree.map(lambda a, start=start: a[start : start + 2], case.data)
        fresh = eqx.tree_at(lambda c: c.traces, carry, program.init().traces)
        (_, carry), grads = run(case.model, xs, targets, fresh)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    assert distance(total, reference) > 1e-4
