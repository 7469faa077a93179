"""What operations that rearrange do to arrays of element numbers, against JAX; and a rank that hangs on it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import etpc
from etpc import analyse  # noqa: F401  registers the moves
from etpc._jax import canonicalise, pvary_p
from etpc._jax.primitives import FACTS, facts
from tests.zoo.check import TOLERANCE, bptt, distance, normal, online, weights

ROUNDS = 15


def shape_of(rng, least=0):
    return tuple(
        int(n) for n in rng.integers(0 if rng.random() < 0.1 else 1, 5, rng.integers(least, 4))
    )


def permutation(rng, n):
    return tuple(int(i) for i in rng.permutation(n))


def some(rng, n):
    return permutation(rng, n)[: rng.integers(0, n + 1)]


def pad(rng):
    shape, config = shape_of(rng), []
    for n in shape:
        low, high, inner = (int(i) for i in (*rng.integers(-3, 4, 2), rng.integers(0, 3)))
        fits = n + max(n - 1, 0) * inner + low + high >= 0
        config.append((low, high, inner) if fits else (0, 0, inner))
    return (shape, ()), lambda x, value: lax.pad(x, value, config)


def slices(rng):
    shape = shape_of(rng)
    start = [int(rng.integers(0, n + 1)) for n in shape]
    limit = [int(rng.integers(a, n + 1)) for a, n in zip(start, shape, strict=True)]
    strides = [int(rng.integers(1, 4)) for _ in shape] if rng.random() < 0.5 else None
    return (shape,), lambda x: lax.slice(x, start, limit, strides)


def reshape(rng):
    shape = shape_of(rng, 1)
    order, size = permutation(rng, len(shape)), math.prod(shape)
    new = [(size,), (1, size), shape[::-1]][rng.integers(3)]
    return (shape,), lambda x: lax.reshape(x, new, dimensions=order)


def broadcast(rng):
    shape, rank = shape_of(rng), int(rng.integers(3, 5))
    places = sorted(permutation(rng, rank)[: len(shape)])
    new = [int(n) for n in rng.integers(1, 4, rank)]
    for place, n in zip(places, shape, strict=True):
        new[place] = n if n != 1 else new[place]
    return (shape,), lambda x: lax.broadcast_in_dim(x, new, places)


def squeeze(rng):
    shape = tuple(n for size in shape_of(rng) for n in (size, 1))
    axes = [2 * i + 1 for i in some(rng, len(shape) // 2)]
    axes = [a - len(shape) if rng.random() < 0.5 else a for a in axes]
    return (shape,), lambda x: lax.squeeze(x, axes)


def several(rng):
    shape = shape_of(rng, 1)
    axis, count = int(rng.integers(len(shape))), int(rng.integers(1, 4))
    return [shape] * count, axis, count


def concatenate(rng):
    shapes, axis, _ = several(rng)
    return shapes, lambda *parts: lax.concatenate(parts, axis)


def stack(rng):
    shapes, axis, _ = several(rng)
    return shapes, lambda *parts: jnp.stack(parts, axis)


def split(rng):
    shapes, axis, count = several(rng)
    sizes = [int(n) for n in rng.multinomial(shapes[0][axis], [1 / count] * count)]
    return shapes[:1], lambda x: lax.split(x, sizes, axis)


def tile(rng):
    shape = shape_of(rng, 1)
    repeats = [int(n) for n in rng.integers(1, 3, len(shape))]
    return (shape,), lambda x: jnp.tile(x, repeats)


def rev(rng):
    shape = shape_of(rng)
    axes = some(rng, len(shape))
    return (shape,), lambda x: lax.rev(x, axes)


def transpose(rng):
    shape = shape_of(rng)
    order = permutation(rng, len(shape))
    return (shape,), lambda x: lax.transpose(x, order)


def marked(rng):
    return (shape_of(rng),), lambda x: etpc.mark(x)


def identity(function):
    return lambda rng: ((shape_of(rng),), function)


ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
MAKERS = {
    "pad": pad,
    "slice": slices,
    "reshape": reshape,
    "broadcast_in_dim": broadcast,
    "squeeze": squeeze,
    "concatenate": concatenate,
    "stack": stack,
    "split": split,
    "tile": tile,
    "rev": rev,
    "transpose": transpose,
    "etp": marked,
    "name": identity(lambda x: checkpoint_name(x, "x")),
    "device_put": identity(jax.device_put),
    "sharding_constraint": identity(lambda x: lax.with_sharding_constraint(x, ONE_DEVICE)),
    "optimization_barrier": identity(lax.optimization_barrier),
}


def test_every_move_is_looked_at():
    moves = {p.name for p, record in FACTS.items() if record.rearranges and p is not pvary_p}
    assert moves == MAKERS.keys()


@pytest.mark.parametrize("name", MAKERS)
def test_moves_are_those_of_jax(name):
    rng = np.random.default_rng(0)
    for _ in range(ROUNDS):
        shapes, function = MAKERS[name](rng)
        first = np.cumsum([0, *(math.prod(s) for s in shapes)])
        arrays = [
            np.arange(a, a + math.prod(s), dtype=np.int32).reshape(s)
            for a, s in zip(first, shapes, strict=False)
        ]
        flat = canonicalise(function, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays])
        env = dict(zip(flat.inputs, arrays, strict=True))
        env.update((v, np.asarray(value)) for v, value in flat.constants.items())
        for eqn in flat.equations:
            moves = facts(eqn.primitive).rearranges
            moved = moves(*(env[v] for v in eqn.inputs), **eqn.params)
            for v, out in zip(eqn.outputs, moved, strict=True):
                env[v] = out
        expected = jax.tree.leaves(function(*map(jnp.asarray, arrays)))
        for v, out in zip(flat.outputs, expected, strict=True):
            assert env[v].shape == out.shape
            np.testing.assert_array_equal(env[v], out)


@pytest.mark.slow
def test_columns_first():
    """`order="F"` leaves the order of the axes to the reshape."""

    def step(w, x, h):
        h = 0.9 * jnp.tanh(h.reshape(2, 3).ravel(order="F")) + w @ x
        return h.reshape(2, 3).ravel(order="F"), h

    w, xs, state = weights(6, 4), normal(4), jnp.zeros(6)
    program = etpc.compile(w, etpc.D_RTRL(window=2), inputs=xs[0], state=state, step=step)
    assert program.exact
    assert distance(online(program, w, xs), bptt(w, xs, state, step)) < TOLERANCE


def test_a_rank_is_not_claimed_of_another_order():
    def step(w, x, h):
        leak, gain = jax.nn.sigmoid(x[:2]), 1 + x[2:4]
        leak = jnp.broadcast_to(leak[:, None], (2, 3)).reshape(-1)
        gain = jnp.broadcast_to(gain[:, None], (2, 3)).ravel(order="F")
        h = leak * h + gain * (w @ x)
        return h, h

    w, xs, state = weights(6, 8), normal(8), jnp.zeros(6)
    algo = etpc.ES_D_RTRL(rank=2, window=2)
    program = etpc.compile(w, algo, inputs=xs[0], state=state, step=step)
    assert not program.exact
    assert distance(online(program, w, xs), bptt(w, xs, state, step)) > 1e-6
