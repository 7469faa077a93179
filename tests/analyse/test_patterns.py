"""Transition patterns against dense Jacobians, and the JAX equation layouts that they rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import sparse
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import etpc
from etpc._jax import canonicalise
from etpc.analyse import _rules_control, analyse
from etpc.trace import trace
from tests.helpers import spike, spike_vjp

POINTS = 6
_RNG = np.random.default_rng(7)
FIXED = _RNG.normal(size=(6, 6)) * (_RNG.random((6, 6)) < 0.4)
DENSE = _RNG.normal(size=(6, 6))
ORDER = np.array([3, 0, 5, 1, 4, 2])


def step_of(function):
    """One state of shape [6], an input that is an integer index, and a bias."""
    return lambda bias, x, h: (h, function(h, x) + bias)


@jax.custom_vjp
def reversed_vjp(v):
    return jnp.sin(v)


# Its derivative moves elements, which nothing but the backward rule says.
reversed_vjp.defvjp(lambda v: (jnp.sin(v), v), lambda v, g: ((g * jnp.cos(v))[::-1],))


def scan_over_slices(h, i):
    """Row t of the result is the sum of the first t elements, by a scan over the elements."""
    return lax.scan(lambda c, a: (c + a, c + jnp.sin(a)), 0.0, h)[1]


def shift_twice(h, i):
    return lax.fori_loop(0, 2, lambda _, c: c + 0.5 * jnp.roll(c, 1), h)


def dynamic_while(h, i):
    """A loop of unknown length over the state, with a neighbour each time."""
    return lax.while_loop(
        lambda c: c[0] < i, lambda c: (c[0] + 1, c[1] + 0.5 * jnp.roll(c[1], 1)), (0, h)
    )[1]


def still_while(h, i):
    """A loop of unknown length that leaves each element to itself."""
    return lax.while_loop(lambda c: c[0] < i, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, h))[1]


def twice(a):
    return jnp.concatenate([a, a])


def three_stages(h, i):
    """A delay line: [6] as three rows of two."""
    rows = h.reshape(3, 2)
    return jnp.concatenate([jnp.tanh(rows[2:]), rows[:-1]]).reshape(6)


def convolved(h, shape, kernel, window_strides=(1,), **options):
    weight = jnp.asarray(_RNG.normal(size=kernel))
    return lax.conv_general_dilated(h.reshape(shape), weight, window_strides, **options).ravel()


ENTRIES = np.array([[0, 1], [0, 4], [2, 2], [3, 5], [5, 0], [5, 1], [1, 1]])
MATRIX = sparse.BCOO((jnp.asarray(_RNG.normal(size=7)), jnp.asarray(ENTRIES)), shape=(6, 6))

TIGHT = {
    "identity": lambda h, i: h,
    "element_wise": lambda h, i: jnp.tanh(h) * 0.5 + h**2 / (1 + jnp.abs(h)),
    "detached": lambda h, i: lax.stop_gradient(h[::-1]) + h,
    "roll": lambda h, i: jnp.roll(h, 2),
    "flip": lambda h, i: h[::-1],
    "permutation": lambda h, i: h[ORDER],
    "permutation_beside_itself": lambda h, i: h * h[ORDER],
    "strided": lambda h, i: jnp.concatenate([h[::2], h[1::2]]),
    "cumsum": lambda h, i: jnp.cumsum(h),
    "cumsum_reverse": lambda h, i: lax.cumsum(h, reverse=True),
    "cumsum_rows": lambda h, i: jnp.cumsum(h.reshape(3, 2), axis=0).reshape(6),
    "mean_free": lambda h, i: h - h.mean(),
    "row_mean_free": lambda h, i: (
        h.reshape(2, 3) - h.reshape(2, 3).mean(1, keepdims=True)
    ).ravel(),
    "split": lambda h, i: jnp.concatenate(jnp.split(h, [1, 4])[::-1]),
    "stack": lambda h, i: jnp.stack([h[:3], h[3:] * h[:3]], axis=1).ravel(),
    "tile": lambda h, i: jnp.tile(h[:3], 2),
    "pad": lambda h, i: jnp.pad(h[1:5], (2, 0)),
    "pad_negative_and_inner": lambda h, i: lax.pad(h[:4], 0.0, [(-1, 0, 1)]),
    "transpose": lambda h, i: h.reshape(2, 3).T.ravel(),
    "three_axes": lambda h, i: h.reshape(1, 2, 3).transpose(2, 0, 1).ravel(),
    "three_stages": three_stages,
    "slice_at_a_constant": lambda h, i: twice(lax.dynamic_slice(h, (2,), (3,))),
    "slice_that_is_clamped": lambda h, i: twice(lax.dynamic_slice(h, (5,), (3,))),
    "update_at_a_constant": lambda h, i: lax.dynamic_update_slice(h, jnp.sin(h[:2]), (3,)),
    "add_at_a_constant": lambda h, i: h.at[2].add(h[5]),
    "slice_at_an_input": lambda h, i: jnp.zeros(6) + lax.dynamic_slice(h, (i,), (1,)),
    "gather_at_an_input": lambda h, i: jnp.zeros(6).at[3].set(h[i]),
    "slice_of_whole_rows_at_an_input": lambda h, i: (
        jnp.zeros((3, 2)) + lax.dynamic_slice(h.reshape(3, 2), (i % 3, jnp.int32(0)), (1, 2))
    ).ravel(),
    "cond": lambda h, i: lax.cond(i > 2, lambda a: a[::-1], lambda a: a * 2, h),
    "switch": lambda h, i: lax.switch(
        i, [lambda a: jnp.roll(a, 1), lambda a: 0 * a + 1.0, jnp.sin], h
    ),
    "where": lambda h, i: jnp.where(h > 0, jnp.roll(h, 1), jnp.sin(h)),
    "scan_over_slices": lambda h, i: (
        lax.scan(lambda c, a: (c + a, c * 2 + a), 0.0, h)[0] + jnp.zeros(6)
    ),
    "scan_each_alone": lambda h, i: lax.scan(lambda c, _: (jnp.sin(c) + c, None), h, length=3)[0],
    "fori_to_neighbours": lambda h, i: lax.fori_loop(0, 5, lambda _, c: c + jnp.roll(c, 1), h),
    "while_each_alone": still_while,
    "einsum_dense": lambda h, i: jnp.einsum("ij,j->i", DENSE, h),
    "einsum_rows": lambda h, i: jnp.einsum("ab,cb->ca", DENSE[:3, :3], h.reshape(2, 3)).ravel(),
    "einsum_batch": lambda h, i: jnp.einsum(
        "gab,gb->ga", DENSE[:4, :].reshape(2, 3, 4)[..., :3], h.reshape(2, 3)
    ).ravel(),
    "product_of_states": lambda h, i: jnp.einsum(
        "ij,ij->i", h.reshape(3, 2), jnp.roll(h, 1).reshape(3, 2)
    ).repeat(2),
    "custom_jvp": lambda h, i: h - spike(h[::-1]),
    "custom_vjp": lambda h, i: h - spike_vjp(h[ORDER]),
    "custom_vjp_that_moves": lambda h, i: reversed_vjp(h),
    "jit": lambda h, i: jax.jit(jnp.flip)(h) + jax.jit(jnp.flip)(jax.jit(jnp.flip)(h)),
    "remat": lambda h, i: jax.checkpoint(lambda a: jnp.sin(jnp.roll(a, 1)))(h),
    "max": lambda h, i: h - h.max(),
    "fori_twice": shift_twice,
    "scan_outputs": scan_over_slices,
    "map": lambda h, i: lax.map(lambda a: jnp.sin(a) * a, h),
    "map_backwards": lambda h, i: lax.scan(
        lambda c, a: (c + 1, a * h[c]), 0, h.reshape(6, 1), reverse=True
    )[1].ravel(),
    "associative_scan": lambda h, i: lax.associative_scan(jnp.add, h),
    "convolution": lambda h, i: convolved(h, (1, 1, 6), (1, 1, 3), padding=[(1, 1)]),
    "convolution_of_channels": lambda h, i: convolved(h, (1, 2, 3), (2, 2, 2), padding=[(1, 0)]),
    "convolution_in_groups": lambda h, i: convolved(
        h, (1, 2, 3), (2, 1, 2), padding=[(0, 1)], feature_group_count=2
    ),
    "convolution_with_strides": lambda h, i: convolved(
        h, (1, 1, 6), (2, 1, 2), padding=[(0, 0)], window_strides=(2,)
    ),
    "convolution_dilated": lambda h, i: convolved(
        h, (1, 1, 6), (1, 1, 2), padding=[(2, 0)], rhs_dilation=(2,)
    ),
    "convolution_transposed": lambda h, i: convolved(
        h[:3], (1, 1, 3), (1, 1, 2), padding=[(1, 1)], lhs_dilation=(2,)
    ),
    "convolution_2d": lambda h, i: convolved(
        h, (1, 1, 2, 3), (1, 1, 2, 2), padding=[(1, 0), (0, 1)], window_strides=(1, 1)
    ),
    "sum_of_windows": lambda h, i: lax.reduce_window(h, 0.0, lax.add, (3,), (1,), "SAME"),
    "max_of_windows": lambda h, i: lax.reduce_window(
        h, -jnp.inf, lax.max, (2,), (2,), "VALID"
    ).repeat(2),
    "multiply_at_a_constant": lambda h, i: h.at[np.array([1, 3])].multiply(2.0),
    "kernel": lambda h, i: lax.conv_general_dilated(
        jnp.ones((1, 1, 5)), h.reshape(2, 1, 3), (1,), [(0, 0)]
    ).ravel(),
    "sparse_matrix": lambda h, i: MATRIX @ h,
    "sparse_values": lambda h, i: sparse.BCOO((h, MATRIX.indices[:6]), shape=(6, 6)) @ jnp.ones(6),
    "sparse_columns": lambda h, i: (h.reshape(2, 3) @ MATRIX[:3, :3]).ravel(),
}
"""The pattern equals the non-zeros, joined over enough random points."""

MESH = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
SHARDED = jax.sharding.NamedSharding(MESH, jax.P("d"))


def by_rows(function):
    """A function of two rows of three, one by one."""
    return lambda h, i: jax.vmap(function)(h.reshape(2, 3)).reshape(6)


def definite(row):
    return jnp.outer(row, row) + jnp.diag(jnp.array([2.0, 3.0, 5.0])) + jnp.outer(row, row[::-1])


def symmetric(row):
    return definite(row) + definite(row).T


def solved_by_conjugate_gradients(h, i):
    """A block-diagonal system that is solved at once, by a loop over products."""
    product = lambda x: ((2 + FULL) @ x.reshape(2, 3).T).T.reshape(6)
    return jax.scipy.sparse.linalg.cg(product, jnp.sin(h))[0]


FULL = np.array([[2.0, 0.5, 0.3], [0.5, 3.0, 0.7], [0.3, 0.7, 4.0]])
TIGHT |= {
    "optimization_barrier": lambda h, i: lax.optimization_barrier((h[::-1], h))[0],
    "sharding_constraint": lambda h, i: lax.with_sharding_constraint(h, SHARDED),
    "device_put": lambda h, i: jax.device_put(h),
    "checkpoint_name": lambda h, i: checkpoint_name(h[::-1], "h"),
    "shard_map": lambda h, i: jax.shard_map(
        lambda a, b: jnp.flip(a) * b.sum(),
        mesh=MESH,
        in_specs=(jax.P("d"), jax.P()),
        out_specs=jax.P("d"),
    )(h, h[:2]),
    "mean_over_a_named_axis": lambda h, i: jax.vmap(
        lambda row: row - lax.pmean(row, "rows"), axis_name="rows"
    )(h.reshape(2, 3)).ravel(),
    "fft_of_rows": by_rows(lambda row: jnp.fft.fft(row).real),
    "fft_of_two_axes": lambda h, i: jnp.concatenate(
        [jnp.fft.fft2(h[:4].reshape(2, 2)).real.ravel(), h[4:]]
    ),
    "real_fft_of_rows": by_rows(lambda row: jnp.fft.irfft(jnp.fft.rfft(row) * (1 + 0.5j), 3)),
    "triangular_solve_of_columns": lambda h, i: (
        lax.linalg.triangular_solve(
            jnp.asarray(FULL), h.reshape(3, 2), left_side=True, lower=True, transpose_a=True
        ).ravel()
        + lax.linalg.triangular_solve(
            jnp.asarray(FULL), h.reshape(3, 2), left_side=True, lower=True
        ).ravel()
    ),
    "triangular_solve_of_rows": lambda h, i: (
        lax.linalg.triangular_solve(
            jnp.asarray(FULL), h.reshape(2, 3), lower=True, left_side=False
        ).ravel()
        + lax.linalg.triangular_solve(
            jnp.asarray(FULL), h.reshape(2, 3), lower=False, left_side=False
        ).ravel()
    ),
    "solve_of_rows": by_rows(lambda row: jnp.linalg.solve(definite(row), row)),
    "solve_of_columns": lambda h, i: jnp.linalg.solve(FULL, h.reshape(3, 2)).ravel(),
    "conjugate_gradients": solved_by_conjugate_gradients,
    "inverse_of_rows": by_rows(lambda row: jnp.linalg.inv(definite(row)) @ jnp.arange(1.0, 4)),
    "cholesky_of_rows": by_rows(lambda row: jnp.linalg.cholesky(symmetric(row)).sum(0)),
    "qr_of_rows": by_rows(lambda row: jnp.linalg.qr(definite(row))[1].sum(0)),
    "eigenvalues_of_rows": by_rows(lambda row: jnp.linalg.eigh(symmetric(row))[0]),
    "singular_values_of_rows": by_rows(lambda row: jnp.linalg.svd(definite(row), compute_uv=False)),
    "tridiagonal_solve_of_rows": lambda h, i: lax.linalg.tridiagonal_solve(
        jnp.array([0.0, 1, 2]), jnp.array([4.0, 5, 6]), jnp.array([1.0, 2, 0]), h.reshape(3, 2)
    ).ravel(),
}

LOOSE = {
    "while_to_neighbours": dynamic_while,
    # A matrix is taken as dense whatever its zeros.
    "einsum_sparse": lambda h, i: jnp.einsum("ij,j->i", FIXED, h),
    # What a scatter overwrites is kept.
    "set_at_a_constant": lambda h, i: h.at[np.array([1, 4])].set(h[:2] ** 2),
    # Cancellation is not seen.
    "cancels": lambda h, i: h + jnp.roll(h, 1) - jnp.roll(h, 1),
    "update_at_an_input": lambda h, i: lax.dynamic_update_slice(h, jnp.sin(h[2:4]), (i,)),
    "set_at_an_input": lambda h, i: h.at[i].set(jnp.sin(h[0])),
    "add_at_an_input": lambda h, i: h.at[i].add(h[0] * h[1]),
    "sort": lambda h, i: jnp.sort(h),
    "top_k": lambda h, i: jnp.concatenate([lax.top_k(h, 3)[0], h[:3]]),
    "lu": by_rows(lambda row: lax.linalg.lu(definite(row))[0].sum(0)),
    "sum_over_devices": lambda h, i: jax.shard_map(
        lambda a: a - lax.psum(a[::-1], "d"), mesh=MESH, in_specs=jax.P("d"), out_specs=jax.P("d")
    )(h),
    "sum_over_devices_in_a_loop": lambda h, i: lax.scan(
        lambda c, _: (LOOSE["sum_over_devices"](c, i), None), h, length=3000
    )[0],
    "gradient_of_a_pool": lambda h, i: jax.grad(
        lambda a: jnp.sin(lax.reduce_window(a, -jnp.inf, lax.max, (2,), (2,), "VALID")).sum()
    )(h),
    "gradient_of_a_pool_that_overlaps": lambda h, i: jax.grad(
        lambda a: jnp.sin(lax.reduce_window(a, -jnp.inf, lax.max, (3,), (1,), "SAME")).sum()
    )(h),
    "cumprod": lambda h, i: jnp.cumprod(h),
    "cummax": lambda h, i: lax.cummax(h),
    "softmax": lambda h, i: jax.nn.softmax(h),
    "prod": lambda h, i: h * jnp.prod(h),
    "norm": lambda h, i: h / jnp.linalg.norm(h),
}
"""The pattern contains the non-zeros."""

PARTLY_SPARSE = {
    "lu",
    "gradient_of_a_pool",
    "gradient_of_a_pool_that_overlaps",
    "set_at_a_constant",
    "cancels",
    "update_at_an_input",
    "set_at_an_input",
    "add_at_an_input",
}


def pattern_of(function):
    index = jax.ShapeDtypeStruct((), jnp.int32)
    analysis = analyse(trace(jnp.zeros(6), index, jnp.zeros(6), step_of(function)))
    return analysis.transition.toarray(), analysis


def non_zeros(function):
    rng = np.random.default_rng(0)
    # Forward mode: reverse mode cannot pass a while loop. A custom_vjp has reverse mode alone.
    found = np.zeros((6, 6), bool)
    for differentiate in (jax.jacfwd, jax.jacrev):
        jacobian = jax.jit(differentiate(function))
        try:
            for point in range(POINTS):
                for index in range(6) if point < 4 else [point]:
                    h = jnp.asarray(rng.normal(size=6))
                    found |= np.asarray(jacobian(h, jnp.int32(index))) != 0
        except (TypeError, ValueError):  # no rule in this mode
            continue
        return found
    raise AssertionError("neither mode differentiates this function")


@pytest.mark.parametrize("name", TIGHT)
def test_tight_patterns(name):
    pattern, analysis = pattern_of(TIGHT[name])
    np.testing.assert_array_equal(pattern, non_zeros(TIGHT[name]))
    assert analysis.findings.opaque == ()


@pytest.mark.parametrize("name", LOOSE)
def test_patterns_contain_the_non_zeros(name):
    pattern, _ = pattern_of(LOOSE[name])
    truth = non_zeros(LOOSE[name])
    assert truth.any()
    assert not (truth & ~pattern).any()
    if name in PARTLY_SPARSE:
        assert not pattern.all()


@pytest.mark.parametrize("name", ["fori_twice", "scan_outputs", "map", "scan_each_alone"])
def test_long_loops_are_joined_over_their_iterations(name, monkeypatch):
    """More iterations than there are, and all slices at once: a superset."""
    monkeypatch.setattr(_rules_control, "UNROLLED", 0)
    pattern, _ = pattern_of(TIGHT[name])
    truth = non_zeros(TIGHT[name])
    assert not (truth & ~pattern).any()
    assert (pattern == truth).all() == (name == "scan_each_alone")


@pytest.mark.parametrize(
    ("order", "pattern", "assumed"),
    [
        (jnp.asarray(ORDER), np.eye(6, dtype=bool)[ORDER], ["['order']"]),
        (jax.ShapeDtypeStruct((6,), jnp.int32), np.ones((6, 6), bool), []),
    ],
)
def test_indices_in_the_model_are_known_where_they_have_values(order, pattern, assumed):
    step = lambda model, x, h: (h, h[model["order"]] + model["bias"])
    model = {"order": order, "bias": jnp.zeros(6)}
    analysis = analyse(trace(model, jnp.zeros(()), jnp.zeros(6), step))
    np.testing.assert_array_equal(analysis.transition.toarray(), pattern)
    assert [analysis.step.model_leaves.paths[i] for i in analysis.findings.assumed] == assumed


def test_several_leaves_are_one_vector_in_order():
    def step(model, x, state):
        a, b = state["a"], state["b"]
        return a, {"a": jnp.stack([b, b * b]) + model, "b": a[1], "n": state["n"] + 1}

    state = {"a": jnp.zeros(2), "b": jnp.zeros(()), "n": jnp.zeros((), jnp.int32)}
    analysis = analyse(trace(jnp.zeros(2), jnp.zeros(()), state, step))
    assert analysis.hidden.paths == ("['a']", "['b']")
    expected = [[0, 0, 1], [0, 0, 1], [0, 1, 0]]
    np.testing.assert_array_equal(analysis.transition.toarray(), np.array(expected, bool))


def test_a_model_without_parameters_has_a_transition_too():
    step = lambda model, x, h: (h, jnp.roll(h, 1))
    analysis = analyse(trace(None, jnp.zeros(()), jnp.zeros(6), step))
    assert analysis.ops == ()
    np.testing.assert_array_equal(analysis.transition.toarray(), np.roll(np.eye(6), 1, 0) > 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block"),
    {"optimization_barrier": 2, "shard_map": 6, "fft_of_rows": 3, "solve_of_rows": 3}.items(),
)
def test_a_tight_pattern_gives_a_small_block_and_the_exact_gradient(name, block):
    step = lambda w, x, h: (lambda h: (h, h))(0.3 * TIGHT[name](h, 0) + w * x)
    xs = jnp.asarray(_RNG.normal(size=(8, 6)))
    rule = etpc.D_RTRL(window=3)
    report = etpc.verify(
        jnp.ones(6), xs, xs, lambda y, t: ((y - t) ** 2).sum(), rule, state=jnp.ones(6), step=step
    )
    assert report.ok, str(report)
    assert [(p.exact, p.block) for p in report.program.ops] == [(True, block)]


# --- what is not known is dense -------------------------------------------------------------------


# the sums of what is above, as an operation of a library's own
sums_p = Primitive("sums")
sums_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(sums_p, mlir.lower_fun(lambda x: jnp.cumsum(x, -1), multiple_results=False))
ad.deflinear2(sums_p, lambda ct, _: [lax.cumsum(ct, ct.ndim - 1, reverse=True)])
batching.primitive_batchers[sums_p] = lambda args, dims: (
    sums_p.bind(jnp.moveaxis(args[0], dims[0], 0)),
    0,
)
without_rule = sums_p.bind


def test_an_operation_without_a_rule_is_dense_and_recorded():
    pattern, analysis = pattern_of(lambda h, i: without_rule(h))
    truth = non_zeros(lambda h, i: without_rule(h))
    assert not truth.all()  # a rule could do better ...
    assert pattern.all()  # ... and dense is what there is without one
    assert any(o.primitive == "sums" for o in analysis.findings.opaque)
    (line,) = {o.source for o in analysis.findings.opaque}
    assert "test_patterns.py" in line
    assert f"taken as dense: {analysis.findings.opaque[0].primitive}" in str(analysis)


def test_an_operation_without_a_rule_in_a_loop_is_recorded():
    def loop(h, i):
        body = lambda c: (c[0] + 1, without_rule(0.5 * c[1]))
        return lax.while_loop(lambda c: c[0] < i, body, (0, h))[1]

    pattern, analysis = pattern_of(loop)
    assert pattern.all()
    assert {o.primitive for o in analysis.findings.opaque} == {"sums"}
    assert not analysis.findings.unbounded


def test_dense_is_limited_to_what_the_operation_reads():
    pattern, analysis = pattern_of(
        lambda h, i: jnp.concatenate([without_rule(h[:3]), jnp.sin(h[3:])])
    )
    assert analysis.findings.opaque
    expected = np.zeros((6, 6), bool)
    expected[:3, :3] = True
    expected[3:, 3:] = np.eye(3, dtype=bool)
    np.testing.assert_array_equal(pattern, expected)


@pytest.mark.slow
def test_a_dense_operation_still_gives_the_true_gradient():
    def step(model, x, h):
        h = without_rule(h) * 0.3 + model["w"] * x
        return jnp.tanh(h), h

    model = {"w": jnp.asarray(DENSE[0])}
    xs = jnp.asarray(_RNG.normal(size=(40, 6)))
    report = etpc.verify(
        model, xs, xs, lambda y, t: jnp.sum((y - t) ** 2), step=step, state=jnp.zeros(6)
    )
    assert report.ok, str(report)
    assert "taken as dense" in str(report.program)


def test_jit_and_remat_are_inlined_and_custom_rules_kept():
    def function(a):
        return spike_vjp(spike(jax.checkpoint(jnp.cos)(jax.jit(jnp.sin)(a))))

    flat = canonicalise(function, [jax.ShapeDtypeStruct((3,), jnp.float64)])
    names = [e.primitive.name for e in flat.equations]
    assert names == ["sin", "cos", "custom_jvp_call", "custom_vjp_call"]
