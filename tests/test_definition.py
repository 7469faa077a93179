"""The definition of each rule, against compiled programs and backpropagation; `tests.fuzz` has drawn models."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from etpc.forms import _modes
from tests import helpers
from tests.helpers import normal
from tests.marks import few

RULES = {
    "d_rtrl": etpc.D_RTRL(window=2),
    "rtrl": etpc.RTRL(window=3),
    "decay": etpc.ES_D_RTRL(decay=0.8, window=2),
    "decay everywhere": etpc.ES_D_RTRL(decay=0.8, everywhere=True, window=2),
    "two decays": etpc.ES_D_RTRL(decay=(0.6, 0.9), everywhere=True, window=2),
    "full windows": etpc.D_RTRL(window=3, backprop="full"),
    "any full windows": etpc.D_RTRL(backprop="full"),
    "full windows and a decay": etpc.ES_D_RTRL(decay=0.8, window=2, backprop="full"),
    "look-back": etpc.D_RTRL(window=2, lookback=4),
    "look-back of nearly all": etpc.ES_D_RTRL(decay=0.8, window=4, lookback=5),
    "rolling TBPTT": etpc.TBPTT(4, every=2),
    "snap 1": etpc.SnAp(1),
    "snap 2": etpc.SnAp(2),
    "snap in full windows": etpc.SnAp(1, window=2, backprop="full"),
    "e-prop": etpc.EProp(window=2),
    "kappa": etpc.EProp(kappa=0.7, window=2),
    "ostl": etpc.OSTL(window=2),
    "rflo": etpc.RFLO(0.8, "symmetric", window=2),
    "ottt": etpc.OTTT(0.8, window=2),
    "otpe": etpc.OTPE(0.7, window=2),
    "directions": etpc.CreditRTRL(2, None, window=2),
}
RANKS = {
    "rank": etpc.ES_D_RTRL(rank=2, everywhere=True, window=2),
    "rank of all": etpc.RTRL(rank=3, window=2),
    "rank in full windows": etpc.ES_D_RTRL(rank=2, everywhere=True, window=2, backprop="full"),
    "directions and a rank": etpc.CreditRTRL(2, 2, window=2),
    "rank in any windows": etpc.ES_D_RTRL(rank=2, everywhere=True),
}


class Net(eqx.Module):
    """A complex layer that learns its initial state, and spikes from it into a recurrent one; a readout of both."""

    unit: nn.LRU
    rec: jax.Array
    start: jax.Array

    def init_state(self):
        return self.unit.init_state(), jnp.tanh(self.start), jnp.zeros((), int)

    def __call__(self, x, state):
        y, inner = self.unit(x, state[0])
        h = 0.7 * jnp.tanh(state[1]) + self.rec @ jnp.concatenate([y, jnp.sin(state[1])])
        return jnp.sum(h * y), (inner, h, state[2] + 1)


T, B = 6, 2
NET = Net(nn.LRU(2, 3, 3, key=jax.random.key(0)), 0.5 * normal(3, 6), normal(3, seed=1))
DATA = normal(T, B, 2, seed=2), normal(T, B, seed=3)
MASK = np.array([[1, 0], [2, 1], [0, 0], [1, 1], [0.5, 1], [1, 0]])
OPTIONS = dict(batch_size=B, mask=MASK)
BEGINS = np.zeros((T, B), bool)
BEGINS[[2, 3], 0] = BEGINS[4, 1] = True


def loss(y, target):
    return (y - target) ** 2


def close(one, other, tolerance=1e-10):
    assert abs(one[0] - other[0]) < 1e-12
    assert helpers.distance(one[1], other[1]) < tolerance


@functools.cache
def defined(name, several=False):
    begins = BEGINS if several else None
    return etpc.reference(NET, *DATA, loss, (RULES | RANKS)[name], begins=begins, **OPTIONS)


def online(rule, several=False):
    program = etpc.compile(NET, rule, inputs=DATA[0][0, 0])
    carry, begins = program.init(B, model=NET), BEGINS if several else None
    run = program.value_and_grad(loss)
    (value, _), grads = run(NET, *DATA, carry, mask=MASK, begins=begins)
    return value, grads


CASES = [(name, several) for name in RULES for several in (False, True)]


@pytest.mark.parametrize(("name", "several"), few(CASES, ("full windows and a decay", False)))
def test_complex_states_batches_masks_and_learned_initial_states(name, several):
    """Also of several streams, one after the other."""
    close(online(RULES[name], several), defined(name, several))


RANK_CASES = [(name, several) for name in RANKS for several in (False, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "several"), RANK_CASES)
def test_ranks(name, several, monkeypatch):
    """Where the iteration goes on until the modes are the leading ones, but for what Gram matrices lose."""
    monkeypatch.setattr(_modes, "ROUNDS", 200)
    close(online(RANKS[name], several), defined(name, several), 1e-7)


@pytest.mark.slow
def test_rules_that_are_random_have_their_mean():
    exact = etpc.bptt(NET, *DATA, loss, **OPTIONS)
    for rule in (etpc.KFRTRL(), etpc.OK(2), etpc.UORO(window=2)):
        close(etpc.reference(NET, *DATA, loss, rule, **OPTIONS), exact)


@pytest.mark.slow
def test_streams_that_begin_inside_are_those_of_backpropagation():
    exact = etpc.bptt(NET, *DATA, loss, begins=BEGINS, **OPTIONS)
    close(defined("rtrl", several=True), exact)
    close(etpc.reference(NET, *DATA, loss, etpc.TBPTT(T), begins=BEGINS, **OPTIONS), exact)
    assert np.linalg.norm(exact[1].rec - etpc.bptt(NET, *DATA, loss, **OPTIONS)[1].rec) > 1e-3


@pytest.mark.slow
def test_rtrl_and_a_window_of_the_whole_sequence_are_backpropagation():
    exact = etpc.bptt(NET, *DATA, loss, **OPTIONS)
    whole = etpc.D_RTRL(window=T, backprop="full")
    for rule in (RULES["rtrl"], whole, etpc.TBPTT(T)):
        close(etpc.reference(NET, *DATA, loss, rule, **OPTIONS), exact)
    for name in ("d_rtrl", "decay"):
        assert np.linalg.norm(defined(name)[1].rec - exact[1].rec) > 1e-3
    cut = etpc.bptt(NET, *DATA, loss, window=2, **OPTIONS)
    close(etpc.reference(NET, *DATA, loss, etpc.TBPTT(2), **OPTIONS), cut)
    blocks = {"all": exact[1], "cut": cut[1], "T": etpc.TBPTT(T), "2": etpc.TBPTT(2)}
    found = etpc.compare(NET, *DATA, loss, blocks, **OPTIONS)
    assert found.ok
    rows = {result.name: [row.error for row in result.rows] for result in found.results}
    assert rows["T"] == pytest.approx(rows["all"], abs=1e-12)
    assert rows["2"] == pytest.approx(rows["cut"], rel=1e-9)


@dataclasses.dataclass(frozen=True)
class Plain(etpc.forms.Trace):
    """A form that does not say what it means."""

    exact = False
    left_out = "the past"

    def init(self, site, batch):
        return ()

    def move(self, site, passage, path, carry, start):
        return ()


@dataclasses.dataclass(frozen=True)
class Unknown(etpc.algorithms.Algorithm):
    name = "unknown"

    def trace_form(self, kind):
        return Plain()


def test_rules_without_a_definition():
    with pytest.raises(
        etpc.UnsupportedError, match=r"Plain, does not say what it means.*`meaning`"
    ):
        etpc.reference(NET, *DATA, loss, Unknown(), **OPTIONS)
    with pytest.raises(etpc.UnsupportedError, match=r"no definition of CreditRTRL.*lookback="):
        etpc.reference(NET, *DATA, loss, etpc.CreditRTRL(window=2, lookback=4), **OPTIONS)
