"""A program keeps what it was compiled from: arrays that are written to afterwards do not change it."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse

import etpc
from tests.helpers import loss
from tests.zoo.check import TOLERANCE, bptt, call, distance, normal, online
from tests.zoo.check import model as of_step

W = normal(steps=3)
H = jnp.linspace(0.1, 0.3, 3)
XS = normal(3)


def compiled(model, step=None, state=H):
    return etpc.compile(model, etpc.D_RTRL(window=2), inputs=XS[0], state=state, step=step)


# --- connections of the model ---------------------------------------------------------------------


def permuted(m, x, h):
    h = 0.5 * h[m["at"]] + m["w"] * x
    return h, h


def masked(m, x, h):
    h = 0.5 * jnp.where(m["at"], h[::-1], h) + m["w"] * x
    h = h + 0.1 * h[jnp.cumsum(m["at"]) - 1]
    return h, h


def sparsely(m, x, h):
    h = 0.5 * h + sparse.BCOO((m["w"], m["at"]), shape=(3, 3)) @ x
    return h, h


CONNECTIONS = {
    "a permutation": (permuted, np.array([1, 2, 0]), np.array([0, 1, 2])),
    "a mask": (masked, np.array([True, False, True]), np.array([True, True, True])),
    "a sparse matrix": (
        sparsely,
        np.array([[0, 1], [1, 2], [2, 2]]),
        np.array([[0, 1], [1, 0], [2, 2]]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "calls"), list(itertools.product(CONNECTIONS, [0, 1, 2])))
def test_connections_written_to_in_place(case, calls):
    """Before the first call, or after one: the same array object, with other values, is refused."""
    step, values, other = CONNECTIONS[case]
    at = values.copy()
    model = {"w": W, "at": at}
    program = compiled(model, step)
    expected = bptt({"w": W, "at": jnp.asarray(values)}, XS, H, step)["w"]
    for _ in range(calls):
        assert distance(online(program, model, XS)["w"], expected) < TOLERANCE
    at[:] = other
    with pytest.raises(etpc.InputError, match=r"\['at'\] differ from .* compiled.*Compile again"):
        online(program, model, XS)
    with pytest.raises(RuntimeError, match=r"(?s)\['at'\] differ from"):
        jax.block_until_ready(eqx.filter_jit(online)(program, model, XS))
    at[:] = values
    assert distance(online(program, model, XS)["w"], expected) < TOLERANCE
    again = {"w": W, "at": jnp.asarray(values)}
    assert distance(online(program, again, XS)["w"], expected) < TOLERANCE


def test_the_upper_half_of_a_connection_counts():
    """Under `jit` connections are compared by a checksum, of all their bits."""
    step = lambda m, x, h: (0.5 * h[m["at"] % 3] + m["w"] * x,) * 2
    model = {"w": W, "at": np.array([1, 2, 0])}
    program = compiled(model, step)
    run = eqx.filter_jit(online)
    jax.block_until_ready(run(program, model, XS))
    for values in (2**32, -(2**40), 1 << 62):
        other = {"w": W, "at": np.array([1, 2, 0]) + values}
        with pytest.raises(RuntimeError, match=r"(?s)\['at'\] differ from"):
            jax.block_until_ready(run(program, other, XS))


def test_integers_that_no_trace_relies_on_may_change():
    step = lambda m, x, h: (0.5 * h + m["w"] * x * m["n"],) * 2
    n = np.array([1, 2, 3])
    model = {"w": W, "n": n}
    program = compiled(model, step)
    for values in ([1, 2, 3], [3, 0, 5]):
        n[:] = values
        expected = bptt({"w": W, "n": jnp.asarray(n)}, XS, H, step)["w"]
        assert distance(online(program, model, XS)["w"], expected) < TOLERANCE


# --- what a step closes over ----------------------------------------------------------------------

ORDER, SCALE = np.array([1, 2, 0]), np.array([0.5, 0.6, 0.7])
CLOSURES = {
    "indices": lambda m, x, h: 0.5 * h[ORDER] + m["w"] * x,
    "a factor": lambda m, x, h: h * SCALE + m["w"] * x,
    "inside jit": lambda m, x, h: jax.jit(lambda h: h * SCALE)(h) + m["w"] * x,
    "inside a loop": lambda m, x, h: (
        lax.scan(lambda h, _: (h * SCALE, None), h, length=2)[0] + m["w"] * x
    ),
    "inside a long loop": lambda m, x, h: (
        lax.fori_loop(0, 1000, lambda _, h: 0.999 * h + 0.001 * h * SCALE, h) + m["w"] * x
    ),
    "inside a branch": lambda m, x, h: (
        lax.cond(x[0] > 0, lambda h: h * SCALE, lambda h: h, h) + m["w"] * x
    ),
}


@pytest.mark.parametrize("case", CLOSURES)
def test_arrays_that_a_step_closes_over(case):
    step = lambda m, x, h: (CLOSURES[case](m, x, h),) * 2
    order, scale = ORDER.copy(), SCALE.copy()
    model = {"w": W}
    expected = bptt(model, XS, H, step)
    program = compiled(model, step)
    try:
        ORDER[:], SCALE[:] = [0, 1, 2], [0.1, 0.9, 0.2]
        assert distance(bptt(model, XS, H, lambda *given: step(*given)), expected) > 1e-3
        assert distance(online(program, model, XS), expected) < TOLERANCE
    finally:
        ORDER[:], SCALE[:] = order, scale


def test_an_initial_state():
    state = np.array([0.1, 0.2, 0.3])
    step = lambda m, x, h: (0.5 * h + m["w"] * x,) * 2
    program = compiled({"w": W}, step, state)
    first = program.init()
    state[:] = 7.0
    for carry in (first, program.init(), program.reset(program.init(), True)):
        np.testing.assert_array_equal(carry.state, [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(program.init(2).state, [[0.1, 0.2, 0.3]] * 2)


class Static(eqx.Module):
    w: jax.Array
    n: Any
    options: Any = eqx.field(static=True, default=None)

    def __call__(self, x, h):
        for _ in range(self.n):
            h = 0.5 * h + self.w * x
        return h, h if self.options is None else h[self.options["order"][0]]


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_an_array_in_a_static_field():
    order = np.array([1, 2, 0])
    model = Static(W, 1, {"order": [order]})
    program = compiled(model, call)
    expected = bptt(model, XS, H)
    assert distance(online(program, model, XS), expected) < TOLERANCE
    order[:] = [0, 1, 2]
    with pytest.raises(etpc.InputError, match=r"static field .* other values.*compile again"):
        online(program, model, XS)
    with pytest.raises(etpc.InputError, match=r"structure .* compiled\. Its static fields"):
        online(program, Static(W, 1, {"order": [np.array([1, 2, 0])]}), XS)


@pytest.mark.parametrize("number", [np.int64(2), np.uint8(2)])
def test_integers_of_numpy_are_numbers_as_pythons_are(number):
    model = Static(W, number)
    program = compiled(model, call)
    expected = bptt(Static(W, 2), XS, H)
    for same in (model, Static(W, 2)):
        assert distance(by_w(online(program, same, XS)), by_w(expected)) < TOLERANCE
    assert etpc.verify(model, XS, XS, loss, etpc.D_RTRL(window=2), state=H).ok
    with pytest.raises(etpc.InputError, match=r"holds .*3.* where .*2.* compiled in, at \.n\."):
        online(program, Static(W, type(number)(3)), XS)
    assert distance(by_w(eqx.filter_jit(online)(program, model, XS)), by_w(expected)) < TOLERANCE
    with pytest.raises(RuntimeError, match=r"another number where .*2.* was compiled in"):
        jax.block_until_ready(eqx.filter_jit(online)(program, Static(W, type(number)(3)), XS))


def by_w(grads):
    return {"w": grads.w}


def test_a_flag_of_numpy():
    step = lambda m, x, h: ((0.5 if m["slow"] else 0.9) * h + m["w"] * x,) * 2
    model = {"w": W, "slow": np.bool_(True)}
    program = compiled(model, step)
    expected = bptt({"w": W, "slow": True}, XS, H, step)["w"]
    assert distance(online(program, model, XS)["w"], expected) < TOLERANCE
    with pytest.raises(etpc.InputError, match=r"False.* where .*True.* at \['slow'\]"):
        online(program, {"w": W, "slow": np.bool_(False)}, XS)


@pytest.mark.slow
def test_inference_mode():
    @of_step
    def Network(x, h, w, dropout):
        h = 0.5 * h + w * dropout(x, key=jax.random.key(0))
        return h, h

    model = Network(W, eqx.nn.Dropout(0.5))
    program, other = compiled(model, call), eqx.nn.inference_mode(model)
    words = r"True where False .* at \.dropout\.inference\..*inference_mode.*compile again"
    with pytest.raises(etpc.InputError, match=words):
        online(program, other, XS)
    assert distance(online(compiled(other, call), other, XS), bptt(other, XS, H)) < TOLERANCE
