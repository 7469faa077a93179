"""Indices of every integer type: patterns against dense Jacobians, gradients against BPTT.

Arrays here have more elements, and more rows, than the narrow types can count.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse

import etpc
from etpc.analyse import analyse
from etpc.trace import trace
from tests.helpers import loss
from tests.marks import few
from tests.zoo.check import TOLERANCE, bptt, compiled, distance, known, normal, online, weights

DTYPES = ["int8", "int16", "int32", "uint8", "uint32", "uint64"]
SHAPE = (20, 20)
ROWS = 300
"""Of a table with more rows than 8 bits can count."""
SAFELY = known({"xla_cpu_use_fusion_emitters": True})
"""Without them, and with an axis that the type of an index can't count, a scatter of two indices writes outside of its
array (jaxlib 0.10.2). XLA uses them by default; the Makefile turns them off, to compile quickly."""


def numbers(dtype, size, *, inside=False):
    """Indices of an axis: the ends of what the type and the axis hold, and what lies outside."""
    info = np.iinfo(dtype)
    wanted = [0, 3, size // 2, 3, min(size - 1, info.max), min(127, size - 1)]
    if not inside:
        wanted += [-1, -size, -size - 2, size, size + 5, info.max, info.min]
    fitting = [n for n in wanted if info.min <= n <= info.max]
    if inside and info.max >= 200:
        fitting.append(min(200, size - 1))
    return np.asarray(fitting, dtype)


def pairs(dtype, inside=False):
    """[n, 2] indices of an array of `SHAPE`."""
    first = numbers(dtype, SHAPE[0], inside=inside)
    return np.stack([first, np.roll(first, 1)], 1)


def gathered(mode, h, at):
    dims = lax.GatherDimensionNumbers((), (0, 1), (0, 1))
    return lax.gather(h, at, dims, (1, 1), mode=mode, fill_value=0)


def scattered(scatter, mode, h, at):
    dims = lax.ScatterDimensionNumbers((), (0, 1), (0, 1))
    updates = jnp.sin(h.ravel()[: at.shape[0]] + 1.0)
    return scatter(h, at, updates, dims, mode=mode, unique_indices=scatter is lax.scatter_mul)


def matrix(at, inside=True):
    values = jnp.linspace(1.0, 2.0, at.shape[0])
    return sparse.BCOO((values, jnp.asarray(at)), shape=SHAPE)


MODES = ["clip", "fill", "promise_in_bounds"]
OF_PAIRS = {f"gather, {mode}": functools.partial(gathered, mode) for mode in MODES} | {
    f"scatter_add, {mode}": functools.partial(scattered, lax.scatter_add, mode) for mode in MODES
}
INSIDE = {
    scatter.__name__: functools.partial(scattered, scatter, None)
    for scatter in (lax.scatter_sub, lax.scatter_mul, lax.scatter_min, lax.scatter_max)
}
"""JAX has no derivative of these outside of the array."""
OF_ROWS = {
    "take": lambda h, at: jnp.take(h.ravel(), at, axis=0),
    "take, clip": lambda h, at: jnp.take(h.ravel(), at, mode="clip"),
    "index": lambda h, at: h.ravel()[at],
    "rows": lambda h, at: h[at],
    "dropped": lambda h, at: h.ravel().at[at].get(mode="drop", fill_value=0),
    "take_along_axis": lambda h, at: (
        jnp.take_along_axis(h, at[:, None] + 0 * at[:1], axis=1)
        if at.shape[0] == SHAPE[0]
        else jnp.take_along_axis(h[: at.shape[0]], at[:, None], axis=1)
    ),
    "dynamic_slice": lambda h, at: jnp.stack(
        [lax.dynamic_slice(h, (a, a), (2, 3)) for a in at[:7]]
    ),
    "dynamic_index": lambda h, at: jnp.stack(
        [lax.dynamic_index_in_dim(h.ravel(), a, keepdims=False) for a in at]
    ),
    "dynamic_update_slice": lambda h, at: lax.dynamic_update_slice(
        h, jnp.sin(h[5:7, 5:8]), (at[-1], at[-1])
    ),
    "set": lambda h, at: h.ravel().at[at].set(2.0),
    "add": lambda h, at: h.ravel().at[at].add(jnp.sin(h[0, 0])),
}
OF_SPARSE = {
    "times a vector": lambda h, at: matrix(at) @ h[0],
    "times a matrix": lambda h, at: matrix(at) @ h,
    "after a vector": lambda h, at: h[0] @ matrix(at),
    "after a matrix": lambda h, at: h @ matrix(at),
    "values": lambda h, at: (
        sparse.BCOO((h.ravel()[: at.shape[0]], jnp.asarray(at)), shape=SHAPE) @ jnp.eye(20)
    ),
}
CASES = (
    [(name, f, pairs) for name, f in OF_PAIRS.items()]
    + [(name, f, lambda dtype: numbers(dtype, SHAPE[0])) for name, f in OF_ROWS.items()]
    + [(name, f, lambda d: pairs(d, inside=True)) for name, f in INSIDE.items()]
    + [(f"sparse {name}", f, lambda d: pairs(d, inside=True)) for name, f in OF_SPARSE.items()]
    + [(f"sparse {name}, outside", f, pairs) for name, f in OF_SPARSE.items()]
)
IDS = [name for name, _, _ in CASES]
OFTEN = ("gather, fill", "scatter_add, clip")


def non_zeros(f, at):
    """Where the Jacobian is not zero; `None` where JAX itself refuses the type of the index."""
    found = np.zeros((), bool)
    for seed in (0, 1):
        h = jnp.asarray(np.random.default_rng(seed).normal(size=SHAPE), float)
        try:
            jacobian = jax.jit(jax.jacrev(lambda h: f(h, at)), compiler_options=SAFELY)
            out = np.asarray(jacobian(h))
        except OverflowError:
            return None
        found = found | (out != 0).reshape(-1, h.size)
    return found


def pattern(f, at, known):
    """Rows of the outputs, columns of the states."""

    def step(model, x, state):
        out = f(state["h"], jnp.asarray(at) if known else x)
        return state["out"], {"h": model * jnp.ones(SHAPE), "out": out}

    out = jax.eval_shape(f, jnp.zeros(SHAPE), at)
    state = {"h": jnp.zeros(SHAPE), "out": jnp.zeros(out.shape)}
    analysis = analyse(trace(jnp.ones(()), at, state, step))
    size = analysis.hidden.offsets[1]
    return analysis.transition.toarray()[size:, :size], analysis


@pytest.mark.parametrize("x64", few([True, False], True))
@pytest.mark.parametrize("name", few(IDS, *OFTEN))
def test_patterns(name, x64):
    """They contain the non-zeros, and where the indices are known hardly more."""
    _, f, indices = CASES[IDS.index(name)]
    for dtype in DTYPES:
        if not x64 and dtype.endswith("64"):
            continue
        with jax.enable_x64(x64):
            at = indices(dtype)
            truth = non_zeros(f, at)
            if truth is None:
                assert dtype.endswith("8")
                continue
            assert truth.any() or dtype.endswith("8")
            tight, analysis = pattern(f, at, known=True)
            assert not (truth & ~tight).any(), dtype
            if "outside" in name and at.min() < 0:
                continue  # dense: what JAX makes of it is its own affair
            assert analysis.findings.opaque == (), dtype
            assert tight.sum() <= 2 * truth.sum() + tight.shape[0], dtype
            loose, _ = pattern(f, at, known=False)
            assert not (truth & ~loose).any(), dtype


# --- gradients ------------------------------------------------------------------------------------


def model_of(dtype):
    at = pairs(dtype, inside=True)[:5]
    _, first = np.unique(at, axis=0, return_index=True)
    at = at[np.sort(first)]
    return {
        "table": weights(ROWS, 3),
        "square": weights(*SHAPE, seed=1),
        "sparse": sparse.BCOO((weights(len(at), seed=2), jnp.asarray(at)), shape=SHAPE),
        "fixed": jnp.asarray(at),
        "order": jnp.asarray(numbers(dtype, 20, inside=True)[:3]),
    }


def step(m, x, h):
    """Each weight is read by an index of the input or of the model, and the state is moved by both."""
    mixing = sparse.BCOO((0.1 * jnp.ones(len(m["fixed"])), m["fixed"]), shape=SHAPE)
    rows = lax.gather(
        m["table"],
        x["token"][None],
        lax.GatherDimensionNumbers((0,), (0,), (0,)),
        (1, 3),
        mode="fill",
        fill_value=0,
    )
    read = gathered("clip", m["square"], x["pair"][None])[0]
    row = lax.dynamic_slice(m["square"], (jnp.zeros_like(x["token"]), x["token"]), (20, 1))
    u = 0.5 * h + mixing @ h + 0.1 * (h.T @ mixing).T
    u = u.at[m["order"], :3].add(rows) + row * x["scale"]
    u = u + m["sparse"] @ (x["scale"] * jnp.ones((20, 3)))
    u = lax.scatter_add(
        u, x["pair"][None], read[None], lax.ScatterDimensionNumbers((), (0, 1), (0, 1)), mode="clip"
    )
    return u.sum(0), u


def wide(tree):
    """Integers of 64 bits: XLA leaves out rows of a scatter that the type of its index can't count."""
    return jax.tree.map(
        lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else a.astype(int), tree
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint64"])
def test_gradients(dtype):
    tokens = np.resize(numbers(dtype, ROWS, inside=True)[::-1], 6)
    inputs = {
        "token": jnp.asarray(tokens),
        "pair": jnp.asarray(np.resize(pairs(dtype)[::-1], (6, 2))),
        "scale": normal(),
    }
    model, state = model_of(dtype), jnp.full((20, 3), 0.1)
    if dtype == "uint64":  # what 64 bits with a sign can't hold
        inputs["pair"] = jnp.minimum(inputs["pair"], 2**62)
    of_parameters = lambda model: eqx.filter(model, eqx.is_inexact_array)
    expected = of_parameters(bptt(wide(model), wide(inputs), state, step))
    one = jax.tree.map(lambda a: a[0], inputs)
    program = etpc.compile(model, etpc.D_RTRL(window=2), inputs=one, state=state, step=step)
    assert all(op.exact for op in program.plan.ops)
    learn = lambda model, inputs: online(program, model, inputs)
    assert distance(compiled(learn, model, inputs, options=SAFELY), expected) < TOLERANCE


def test_inside_of_jit():
    """What is known of a step is evaluated, also where a program is compiled while a function is traced."""
    step = lambda w, x, h: (jnp.sort(w * h) + x,) * 2

    def gradient(w):
        program = etpc.compile(w, inputs=w, state=w, step=step)
        xs, targets = jnp.ones((4, 3)), jnp.zeros((4, 3))
        return program.value_and_grad(loss)(w, xs, targets, program.init())[1]

    w = jnp.linspace(0.2, 0.8, 3)
    np.testing.assert_allclose(jax.jit(gradient)(w), gradient(w), rtol=1e-12)
