"""A learning rule does not depend on how a state is stored: packed by moves, it has the same gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.fuzz.packing import COPIES, WAYS
from tests.helpers import normal
from tests.marks import few

ROUNDED = {"in float32": (lambda v: v.astype(jnp.float32), lambda s: s.astype(float))}
ALL = WAYS | COPIES | ROUNDED
RULES = {
    "d_rtrl": etpc.D_RTRL(window=3),
    "decay": etpc.ES_D_RTRL(decay=0.9, window=3),
    "rank": etpc.ES_D_RTRL(rank=1, window=3),
    "snap": etpc.SnAp(1, window=1),
    "full windows": etpc.D_RTRL(window=3, backprop="full"),
}
MODEL = dict(
    d=0.5 * normal(4), w=normal(4, 3, seed=1), u=normal(4, 4, seed=2), r=0.5 * normal(4, 4, seed=3)
)
XS, TARGETS = normal(7, 1, 3, seed=4), normal(7, 1, seed=5)


def step(way, model, x, state):
    """Two layers, of which the second reads the new state of the first, and both are packed."""
    pack, unpack = ALL[way] if way else (lambda v: v,) * 2
    a, b = map(unpack, state)
    a = model["d"] * a + model["w"] @ x + model["r"] @ jnp.sin(a)
    h = jnp.tanh(a)
    b = 0.5 * jnp.tanh(b) + model["u"] @ h  # a decay alike would be proved for some ways alone
    return jnp.sum(b * h), (pack(a), pack(b))


@functools.cache
def gradient(way, rule):
    pack = ALL[way][0] if way else lambda v: v
    state = jax.tree.map(jnp.asarray, (pack(jnp.zeros(4)),) * 2)
    of_way = functools.partial(step, way)
    program = etpc.compile(MODEL, RULES[rule], inputs=XS[0, 0], state=state, step=of_way)
    run = program.value_and_grad(lambda y, t: (y - t) ** 2, "sum")
    return run(MODEL, XS, TARGETS, program.init(1))[1]


# What a rank leaves out is least in the norm of the trace, in which copies count.
CASES = [c for c in itertools.product(ALL, RULES) if c[0] not in COPIES or c[1] != "rank"]


@pytest.mark.parametrize(
    ("way", "rule"), few(CASES, ("rolled", "d_rtrl"), ("whole and in part", "snap"))
)
def test_the_same_gradient_however_a_state_is_stored(way, rule):
    tolerance = 1e-5 if way in ROUNDED else 1e-12
    for name, plain in gradient(None, rule).items():
        error = np.linalg.norm(gradient(way, rule)[name] - plain)
        assert error < tolerance * np.linalg.norm(plain), name
        assert np.linalg.norm(plain) > 0.1
