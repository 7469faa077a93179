"""Programs of named models against BPTT, and against the definition of each approximation.

The named models include what is easy to get wrong: a readout that no state follows, a gate through another weight, a
network below the cell, states that read another's new value, hidden states that are permuted, sorted, cumulated or
centred, outputs from the old state and from before a reset. `tests.fuzz` does the same for drawn ones.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests import models
from tests.helpers import bptt, distance, loss_of_sequence, normal, online, quickly
from tests.marks import few
from tests.zoo.check import check

TOLERANCE = 1e-9
T = 6
DECAY = 0.8


class Case:
    """A named model with a sequence, its programs and its references."""

    def __init__(self, name):
        self.model = models.named(name)
        self.data = models.data(self.model, T)
        self.state = self.model.init_state()

    def program(self, algo):
        inputs = jax.tree.map(lambda a: a[0], self.data[0])
        return etpc.compile(self.model, algo, inputs=inputs, weights="all")

    def online(self, algo):
        program = self.program(algo)
        return online(program, self.model, *self.data, program.init())

    def bptt(self):
        return quickly(bptt)(self.model, *self.data, self.state)

    def reference(self, algo):
        return etpc.reference(self.model, *self.data, models.loss, algo, reduction="sum")[1]


@pytest.mark.parametrize("name", few(models.ALL_NAMED, "op_readout"))
def test_named_models(name):
    case = Case(name)
    program = check(case.model, case.data[0], case.state, every=True)
    etpc.analyse.check_pattern(lambda x, s: case.model(x, s), case.data[0][0], case.state)
    rule = etpc.D_RTRL(window=2)
    smoothed = etpc.ES_D_RTRL(decay=DECAY, everywhere=True, window=2)
    cut = case.online(rule)
    assert distance(cut, case.reference(rule)) < TOLERANCE
    assert distance(case.online(smoothed), case.reference(smoothed)) < TOLERANCE
    is_exact = all(op.exact for op in program.plan.ops)
    assert is_exact or distance(cut, case.bptt()) > 1e-4


def exact_in_windows(case, rule, window):
    """What is exact in each window, and the credit of its first state, which meets the trace of a rule that cuts."""
    reads_old = lambda model, x, state: (state, model(x, state)[1])
    product = lambda state, credit: sum(map(jnp.vdot, *map(jax.tree.leaves, (state, credit))))
    state, found = case.state, []
    for start in range(0, T, window):
        part = jax.tree.map(lambda a, at=start: a[at : at + window], case.data)
        of_window = lambda both, part=part: loss_of_sequence(both[0], *part, both[1])
        grads, credit = eqx.filter_grad(of_window)((case.model, state))
        credit = jax.tree.map(lambda a, n=start + 1: jnp.broadcast_to(a, (n, *a.shape)), credit)
        options = dict(step=reads_old, mask=np.arange(start + 1) == start, reduction="sum")
        prefix = case.data[0][: start + 1]
        found += [grads, etpc.reference(case.model, prefix, credit, product, rule, **options)[1]]
        for x in part[0]:
            _, state = case.model(x, state)
    return jax.tree.map(lambda *g: sum(g), *found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lif", "delay", "lstm", "mlp"])
def test_exact_windows(name):
    case = Case(name)
    rule = etpc.D_RTRL(window=2, backprop="full")
    found = case.online(rule)
    assert distance(found, case.reference(rule)) < TOLERANCE
    assert distance(found, exact_in_windows(case, etpc.D_RTRL(), 2)) < TOLERANCE
    smoothed = etpc.ES_D_RTRL(decay=DECAY, everywhere=True, window=2, backprop="full")
    wanted = exact_in_windows(case, etpc.ES_D_RTRL(decay=DECAY, everywhere=True), 2)
    assert distance(case.online(smoothed), wanted) < TOLERANCE


def test_states_that_no_output_reads_take_no_credit():
    """Where a value is moved on into such a state, and is read by the output too."""

    def step(m, x, state):
        log, t = state
        v = jnp.tanh(m["w"] * x)
        return m["out"] @ v, (log.at[t].set(v), (t + 1) % 2)

    model = {"w": normal(3), "out": normal(2, 3, seed=1)}
    data, given = (normal(T, 3, seed=2), normal(T, 2, seed=3)), dict(step=step, reduction="sum")
    given["state"] = jnp.zeros((2, 3)), jnp.zeros((), int)
    _, exact = etpc.bptt(model, *data, models.loss, **given)
    program = etpc.compile(model, inputs=data[0][0], state=given["state"], step=step)
    assert program.exact
    _, grads = program.value_and_grad(models.loss, "sum")(model, *data, program.init())
    assert distance(grads, exact) < TOLERANCE
    assert distance(etpc.reference(model, *data, models.loss, **given)[1], exact) < TOLERANCE


@pytest.mark.parametrize(
    "name", [name for name in models.NAMED if "lif" in name or "spike" in name]
)
def test_spiking_networks_are_alive(name):
    model = models.named(name)
    state, spikes = model.init_state(), []
    for x in models.data(model, 20)[0]:
        _, state = model(x, state)
        of_states = [z for name, z in state.items() if name[0] == "z"]
        spikes.append(of_states or [state["v"] > 0.5])
    assert all(0.05 < np.mean(of_layer) < 0.9 for of_layer in zip(*spikes, strict=True))
