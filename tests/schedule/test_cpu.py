"""Passes over a trace in pieces, against NumPy on the whole."""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import etpc
from etpc.schedule import Pieces, Target, cpu, zero_after
from tests.helpers import normal
from tests.marks import few

SHAPE = (6, 7, 5, 11)
DTYPES = ["float32", "complex128"]
PIECES = [1, 1100, 10_000, 1 << 22]
"""Bytes, of a trace of 2310 entries: as many pieces as there may be, parts of an example and a rest,
some examples, and one."""
AXES = [1, 2, 3]
DEVICES = pytest.mark.parametrize("devices", few([1, 2, 6], 2))


def draw(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.normal(size=shape)
    return values.astype(dtype)


def plus_zero(signal, trace):
    """A product that is another function than multiplication."""
    return signal * trace + 0


def close(found, wanted):
    assert found.dtype == wanted.dtype
    tolerance = 100 * np.finfo(wanted.dtype).eps
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def shapes_of_signal(axis, dtype):
    """As the trace, or of length one along an axis, which may be the one that is cut; of one dtype all of them."""
    some = (SHAPE[0], 1, *SHAPE[2:])
    all_three = [SHAPE, some, tuple(1 if n == axis else s for n, s in enumerate(SHAPE))]
    return all_three if dtype == DTYPES[0] else all_three[:1]


@DEVICES
@pytest.mark.parametrize("batch", [6, 18, 66, 102])
def test_sum_over_examples(batch, devices):
    """As many as are added up at a time, rounds of those, and a rest."""
    of_examples = jax.jit(functools.partial(Pieces(devices, 1).sum_over_examples, operator.mul))
    in_a_step = lambda s, t: Pieces(devices, 1).sum_over_examples(plus_zero, s, t, operator.mul)
    for dtype in DTYPES:
        trace = draw((batch, *SHAPE[1:]), dtype)
        for shape in shapes_of_signal(2, dtype):
            signal = draw((batch, *shape[1:]), dtype, seed=1)
            for found in (of_examples(signal, (trace,)), jax.jit(in_a_step)(signal, (trace,))):
                close(found, (signal * trace).sum(0))


@DEVICES
@pytest.mark.parametrize("batch", [6, 18, 66])
@pytest.mark.parametrize("states", [1, 2, 3])
def test_sum_over_examples_and_states(states, batch, devices):
    """The product may have fewer axes than what it is of."""
    product = lambda s, t: (s * t).sum(states - 4)
    for length in (2, 9):
        shape = [batch, 3, 4, 5]
        shape[states] = length
        trace, signal = draw(shape, "float64"), draw(shape, "float64", seed=1)
        found = jax.jit(functools.partial(Pieces(devices, 1).sum_over_examples, product))
        close(found(signal, (trace,)), (signal * trace).sum((0, states)))


def test_nothing_is_summed_over_no_examples_but_one():
    found = Pieces().sum_over_examples(operator.mul, jnp.ones((1, 2)), (jnp.full((1, 2), 3.0),))
    np.testing.assert_array_equal(found, [3, 3])


@DEVICES
@pytest.mark.parametrize(
    ("axis", "piece"),
    few(itertools.product(AXES, PIECES), (1, 1), (2, 1100), (3, 10_000), (1, 1 << 22)),
)
def test_overwrite(axis, piece, devices):
    """What is cut along need not be the same axis of another array, nor longer than one there."""
    schedule = Pieces(devices, piece)
    places = SHAPE[axis]
    along = [places if n == axis else 1 for n in range(1, len(SHAPE))]
    axes = [2, 1, None]

    def update(parts, gain, shift, whole):
        cut = [-1 if n == axis else 1 for n in range(1, len(SHAPE))]
        gain = gain[:, 1].reshape(gain.shape[0], *cut)
        first, *others = parts
        first = gain * first + shift[:, 0, 1].reshape(-1, 1, 1, 1) + whole
        return first, *(part + first for part in others)

    @jax.jit
    def alone(*trace, given):
        return schedule.overwrite(trace, axis, update, list(zip(given, axes, strict=True)))

    @jax.jit
    def both(trace, signal, given):
        given = list(zip(given, axes, strict=True))
        read = schedule.sum_over_examples(operator.mul, signal, (trace,))
        return *schedule.overwrite((trace,), axis, update, given, zero_after(read)), read

    for dtype in DTYPES:
        trace = draw(SHAPE, dtype)
        shapes = (SHAPE[0], 2, places), (SHAPE[0], 1, 2), (SHAPE[0], 1, 1, 1)
        given = [draw(shape, dtype, seed) for seed, shape in enumerate(shapes)]
        gain, shift, whole = given
        wanted = (
            gain[:, 1].reshape(-1, *along) * trace + shift[:, 0, 1].reshape(-1, 1, 1, 1) + whole
        )
        close(alone(trace, given=given)[0], wanted)
        for found in alone(trace, trace, given=given)[1:]:
            close(found, trace + wanted)
        for shape in shapes_of_signal(axis, dtype):
            signal = draw(shape, dtype, seed=3)
            found, read = both(trace, signal, given)
            close(found, wanted)
            close(read, (signal * trace).sum(0))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("piece", [200, 3000, 1 << 22])
def test_what_is_no_number_stays_in_its_example(axis, piece):
    trace = draw(SHAPE, "float64")
    trace[1] = [[[np.nan]]]
    trace[1, 0] = np.inf
    others = np.arange(SHAPE[0]) != 1
    moved = lambda parts: (0.5 * parts[0] + 1,)
    (found,) = jax.jit(lambda t: Pieces(1, piece).overwrite((t,), axis, moved, []))(trace)
    np.testing.assert_array_equal(found[others], 0.5 * trace[others] + 1)
    assert not np.isfinite(found[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
@pytest.mark.parametrize("piece", [1, 100, 1000, 5000, 10_000])
def test_every_piece_is_some_share(piece, devices):
    """Of one device, within the limit, or as few places as there are."""
    for batch in (1, 2, 6, 16, 31):
        for places in (1, 2, 15, 17, 100, 257):
            trace, shapes = jnp.zeros((batch, places, 3)), []

            def update(parts, shapes=shapes):
                shapes.append(parts[0].shape)
                return parts

            Pieces(devices, piece).overwrite((trace,), 1, update, [])
            share = np.gcd(batch, devices)
            by_example = share == 1 and trace.nbytes / batch <= cpu.LARGE * piece
            axis, cut = (0, batch) if by_example else (1, places)
            sizes, row = [shape[axis] for shape in shapes], trace.nbytes / share / cut
            assert all(shape[1 - axis] == trace.shape[1 - axis] for shape in shapes)
            size = sizes[0]
            assert size == 1 or (size - 1) * row < piece
            assert (size == cut) == (cut * row <= piece or cut == 1)
            assert sizes[1:] in ([], [cut % size])


def test_at_once_is_in_one_piece():
    shapes = []
    seen = lambda parts: shapes.append(parts[0].shape) or parts
    Pieces(1, 1).overwrite((jnp.zeros((6, 5, 3)),), 1, seen, [], at_once=True)
    assert shapes == [(6, 5, 3)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("value", [0, 1, -1, np.nan, np.inf, -np.inf])
def test_zero_after_anything(value, dtype):
    for shape in ((1,), (2, 3), (2, 3, 4)):
        found = jax.jit(zero_after)(jnp.full(shape, value, dtype))
        assert found.shape == ()
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, 0)


def test_zero_after_is_not_seen_through():
    """XLA would drop what the order of reading and writing hangs on, and would compute it for each entry of a trace."""

    def moved(trace, weight):
        return trace + zero_after(weight)

    trace = jnp.ones((64, 64))
    text = jax.jit(moved).lower(trace, jnp.ones(3)).compile().as_text()
    entry = text[text.index("ENTRY") :]
    (reduced,) = (line for line in entry.splitlines() if "reduce" in line and "s32[]" in line)
    (last,) = (line for line in entry.splitlines() if "ROOT" in line)
    assert reduced.split("=")[0].strip() in last
    assert "parameter(1)" in entry


def small(*shape):
    return jnp.asarray(0.3 * draw(shape, float))


def sparse_matrix(size):
    at = np.stack([np.repeat(np.arange(size), 3), np.arange(3 * size) * 5 % size], 1)
    return sparse.BCOO((small(3 * size), jnp.asarray(at)), shape=(size, size))


def heads(w, h):
    """One matrix for each of some groups; there are more groups than inputs, or fewer."""
    return jnp.einsum("gij,gj->gi", w, h.reshape(w.shape[0], -1)).reshape(-1)


def convolved(w, h):
    """The groups share a weight."""
    return jax.lax.conv_general_dilated(h[None, None], w, (1,), "SAME")[0, 0]


LAYERS = {
    "dense": (lambda w, h: w @ h, small(12, 12)),
    "more inputs than groups": (heads, small(2, 6, 6)),
    "more groups than inputs": (heads, small(6, 2, 2)),
    "convolution": (convolved, small(1, 1, 3)),
    "sparse": (lambda w, h: w @ h, sparse_matrix(12)),
    "element-wise": (lambda w, h: w * h, normal(12)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "states"),
    list(itertools.product(LAYERS, [1, 2])),
)
def test_programs_in_pieces(layer, states):
    function, weight = LAYERS[layer]

    def step(weight, x, state):
        h, *slow = state
        h = 0.5 * h + jnp.tanh(function(weight, h) + x) - (0.2 * slow[0] if slow else 0)
        return h, (h, *(0.9 * s + 0.1 * h for s in slow))

    xs = normal(6, 3, 12)
    zero = (jnp.zeros(12),) * states

    def gradient(target):
        options = dict(inputs=xs[0, 0], state=zero, step=step, target=target)
        program = etpc.compile(weight, etpc.D_RTRL(window=2), **options)
        run = program.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2), "sum")
        (_, carry), grads = run(weight, xs, 0 * xs, program.init(3))
        return jax.tree.leaves((grads, etpc.portable(program, carry)["traces"]))

    whole = gradient("cpu")
    for target in (Target("cpu", cache=1 << 8), "tpu"):
        for one, other in zip(gradient(target), whole, strict=True):
            assert np.abs(other).max() > 1e-3
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_zero_after_several_arrays():
    arrays = [jnp.full(2, jnp.nan), jnp.zeros((0, 3)), jnp.arange(3), jnp.ones(())]
    for some in (arrays, arrays[1:3], []):
        np.testing.assert_array_equal(jax.jit(zero_after)(*some), 0)
