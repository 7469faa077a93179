"""Wherever an operation is run in another way than by binding it: values and derivatives are those of JAX.

That is in loops of unknown length, sparse products, backward rules and rewrites of a step. The reference binds each
operation as it is written, without `vmap`: a batch is a Python loop, and a Jacobian one tangent after another.
"""

import itertools
from functools import partial

import equinox.internal as eqxi
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse

from etpc._jax import evaluate, forward_mode
from etpc.analyse._loops import differentiable
from etpc.trace import trace
from tests.marks import few

N, B = 3, 2
INDICES, INDPTR = np.array([1, 0, 2, 1, 1]), np.array([0, 1, 3, 3])  # the last two are padding
ROWS, COLUMNS = np.array([0, 1, 1, 2, 1]), np.array([2, 0, 0, 1, 0])  # the last one is there twice


@jax.custom_vjp
def linear_rule(x):
    return jnp.where(x > 0, 2 * x, x)


def _linear_rule_bwd(x, ct):
    """Linear in what it does to values, and not written so."""
    held = lax.stop_gradient(ct)
    held = jnp.zeros_like(ct).at[jnp.arange(N)[::-1]].set(held[::-1]) if ct.ndim else held
    held = lax.cond(x.sum() > 0, lambda c: 2 * c, lambda c: c / 2, held)
    none = lax.scan(lambda c, t: (c + t, c), held, jnp.zeros((0, *ct.shape)))  # no iteration
    return (none[0] + none[1].sum(0) + lax.scan(lambda c, t: (c * t, c), ct, jnp.ones(2))[0],)


linear_rule.defvjp(lambda x: (linear_rule(x), x), _linear_rule_bwd)


@jax.custom_jvp
def pushed(x):
    """`linear_rule`, as JAX can push a tangent through it."""
    return jnp.where(x > 0, 2 * x, x)


pushed.defjvp(lambda x, t: (pushed(*x), t[0] * (1 + jnp.where(x[0].sum() > 0, 2, 0.5))))


@jax.custom_jvp
def spike(x):
    return (x > 0) * 1.0


spike.defjvp(lambda x, t: (spike(*x), t[0] / (1 + jnp.abs(x[0]))))


def until_small(body, a):
    return lax.while_loop(lambda a: jnp.abs(a).max() > 0.3, body, a)


def halved(w, x, s):
    return until_small(lambda a: 0.5 * a * jnp.cos(a), w * x) + s


def two_conditions(w, x, s):
    """The condition and the body have constants of their own; an integer and a key are carried."""

    def body(carry):
        n, key, a = carry
        key, sub = jax.random.split(key)
        return n + 1, key, a * w + 0.1 * jax.random.normal(sub, (N,))

    goes_on = lambda carry: (carry[0] < 4) & (carry[2].sum() + x.sum() > -1)
    return lax.while_loop(goes_on, body, (0, jax.random.key(1), s))[2]


def counted(w, x, s):
    return lax.fori_loop(0, (jnp.abs(x[0]) * 4).astype(int), lambda i, a: 0.5 * a * w + i, s)


def nested(w, x, s):
    inner = lambda a: until_small(lambda a: a * jnp.tanh(w) / 2, a)
    return lax.while_loop(lambda a: a.sum() < 2, lambda a: jnp.exp(inner(a)) + 0.2, x) * s


def in_scan(w, x, s):
    one = lambda a, t: (until_small(lambda a: a / 2, a * t), a)
    end, seen = lax.scan(one, s, jnp.stack([w, 3 * x, w + x]), reverse=True)
    return end + seen.sum(0)


def in_branch(w, x, s):
    loop = lambda a: until_small(lambda a: a / 2, a * w)
    return lax.switch((x[0] * 3).astype(int), [jnp.sin, loop, lambda a: a], s)


def branch_inside(w, x, s):
    body = lambda a: lax.cond(a[0] > 1, lambda a: a / 2, lambda a: a * jnp.tanh(w) / 3, a)
    return until_small(body, x) + s


def with_rule_inside(w, x, s, rule=linear_rule):
    return until_small(lambda a: rule(a) / 5, w * x) + s


def map_inside(w, x, s):
    one = lambda a, w: lax.while_loop(lambda a: jnp.abs(a) > 0.2, lambda a: jnp.sin(a * w) / 2, a)
    return jax.vmap(jax.vmap(one, (0, None)), (None, 0))(x, w).sum(0) * s


def map_with_rule_inside(w, x, s, rule=linear_rule):
    return jax.vmap(lambda a: until_small(lambda a: rule(a) / 5, a))(w * x) + s


def of_equinox(w, x, s, kind):
    one = lambda a: eqxi.while_loop(
        lambda c: jnp.abs(c[1]) > 0.2,
        lambda c: (c[0] + 1, c[1] / 2),
        (0, a),
        max_steps=8,
        kind=kind,
    )[1]
    return jax.vmap(one)(w * x) + s


def loop_in_equinox(w, x, s, kind="checkpointed"):
    """Whose examples end one by one, in a loop that is written out where its length has a bound."""
    one = lambda a: lax.while_loop(lambda a: jnp.abs(a) > 0.2, lambda a: a / 2, a)
    body = lambda c: (c[0] + 1, jax.vmap(one)(c[1]) * 3 * w)
    run = partial(eqxi.while_loop, max_steps=3, kind=kind)
    return run(lambda c: c[0] < x.sum(), body, (0.0, s))[1]


def short_scan(w, x, s):
    return sum(
        lax.scan(lambda a, t: (a * w + t, (a * t).sum()), s, jnp.stack([x, w]), reverse=True)[0:1]
    )


def empty_scan(w, x, s):
    end, seen = lax.scan(lambda a, t: (a + t, a * w), s * w, jnp.zeros((0, N)))
    return end + seen.sum(0) + x


def branches(w, x, s):
    """The index is beyond the last branch, or before the first."""
    index = (x.sum() * 4).astype(int)
    return lax.switch(index, [lambda a: a * w, lambda a: jnp.sin(w) + a, lambda a: a / w], s)


def branch_of_weights(w, x, s, rule=linear_rule):
    return lax.cond(x[0] > 0, lambda a: spike(a * w), lambda a: rule(a + w), s)


def two_products(w, x, s):
    left = w[:, None] * jnp.ones((1, N))
    return (jnp.tanh(x) @ left) @ jnp.diag(w) + left.T @ (jnp.diag(w) @ s)


def wide_products(w, x, s):
    low = lambda a: a.astype(jnp.float32)
    wide = partial(
        lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), preferred_element_type=float
    )
    return wide(wide(low(x), low(jnp.outer(w, w))), jnp.outer(w, w)) + s


def outer_products(w, x, s):
    return (
        jnp.einsum("i,i->i", w, x)
        + jnp.einsum("i,j->ij", w, s).sum(0)
        + jnp.einsum("ij,i->ji", jnp.outer(x, s), w).sum(1)
    )


def complex_products(w, x, s):
    a, b = lax.complex(w, x), jnp.outer(lax.complex(s, w), x)
    return (b @ a).real + (b @ s).imag + (jnp.outer(w, s) @ a).real + (b.T @ b).imag.sum(0)


def parts_and_narrow_indices(w, x, s):
    long = jnp.concatenate([w] * 100)
    first, second = jnp.split(jnp.outer(w, jnp.concatenate([x, s])), 2, 1)
    index = (jnp.clip(jnp.abs(s), 0, 2) * 100).astype(jnp.uint8)
    return (
        first.sum(0) * second.sum(1)
        + long[index]
        + long.at[index].add(x)[:N]
        + lax.dynamic_slice(long, (index[0],), (N,))
    )


def stored(w):
    return jnp.concatenate([w, w[:2] ** 2])


def sparse_of(kind, transpose, columns, w, x, s):
    matrix = {
        "csr": lambda v: sparse.CSR((v, INDICES, INDPTR), shape=(N, N)),
        "coo": lambda v: sparse.COO((v, ROWS, COLUMNS), shape=(N, N)),
        "coo beyond": lambda v: sparse.COO((v, ROWS + 1, COLUMNS - 1), shape=(N, N)),
        "bcoo": lambda v: sparse.BCOO((v, np.stack([ROWS, COLUMNS], 1)), shape=(N, N)),
        "bcoo beyond": lambda v: sparse.BCOO((v, np.stack([ROWS + 1, COLUMNS], 1)), shape=(N, N)),
    }[kind](stored(w))
    matrix = matrix.T if transpose else matrix
    y = matrix @ (jnp.stack([x, s, x * s], 1) if columns else x)
    return (y[:, 0] + y[:, 1] * y[:, 2] if columns else y) + s


CASES = {
    f.__name__: f
    for f in (
        *(
            halved,
            two_conditions,
            counted,
            nested,
            in_scan,
            in_branch,
            branch_inside,
            with_rule_inside,
            map_inside,
        ),
        *(
            map_with_rule_inside,
            loop_in_equinox,
            short_scan,
            empty_scan,
            branches,
            branch_of_weights,
        ),
        *(two_products, wide_products, outer_products, complex_products, parts_and_narrow_indices),
    )
}
CASES |= {
    f"{kind} of equinox": partial(of_equinox, kind=kind)
    for kind in ("checkpointed", "bounded", "lax")
}
CASES |= {
    f"{kind}{' transposed' * transpose}{' columns' * columns}": partial(
        sparse_of, kind, transpose, columns
    )
    for kind in ("csr", "coo", "coo beyond", "bcoo", "bcoo beyond")
    for transpose, columns in itertools.product((False, True), repeat=2)
}
AS_REFERENCE = {
    **{
        name: {"rule": pushed}
        for name in ("with_rule_inside", "map_with_rule_inside", "branch_of_weights")
    },
    **{
        name: {"kind": "lax"}
        for name in ("loop_in_equinox", "checkpointed of equinox", "bounded of equinox")
    },
}
"""How a function is called that JAX does not differentiate forward otherwise."""
OF_FLOAT32 = "wide_products"
MAPPED = [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
"""Of which of the weights, the input and the state a batch has several."""
ALL = [(name, mapped) for name in CASES for mapped in MAPPED]
OFTEN = [
    *((name, MAPPED[3]) for name in ("in_scan", "map_inside", "branch_of_weights", "two_products")),
    *((name, MAPPED[1]) for name in ("halved", "with_rule_inside", "csr transposed", "coo beyond")),
    *((name, MAPPED[0]) for name in ("loop_in_equinox", "empty_scan", "complex_products")),
]


def along(function, arguments):
    """The Jacobian of a function, one tangent after another."""
    flat, unravel = jax.flatten_util.ravel_pytree(arguments)
    push = lambda e: jax.jvp(lambda a: function(*unravel(a)), (flat,), (e,))[1]
    return jnp.moveaxis(jax.lax.map(push, jnp.eye(flat.size)), 0, -1)


def backward(function, arguments):
    flat, unravel = jax.flatten_util.ravel_pytree(arguments)
    y, pull = jax.vjp(lambda a: function(*unravel(a)), flat)
    return jax.lax.map(lambda e: pull(e)[0], jnp.eye(y.size).reshape(-1, *y.shape)).reshape(
        *y.shape, -1
    )


@pytest.mark.parametrize(("name", "mapped"), few(ALL, *OFTEN))
def test_values_and_derivatives(name, mapped):
    f, in_jax = CASES[name], partial(CASES[name], **AS_REFERENCE.get(name, {}))
    draw = np.random.default_rng(len(name)).normal
    arguments = [jnp.asarray(draw(size=(B, N) if is_mapped else N)) for is_mapped in mapped]
    axes = [0 if is_mapped else None for is_mapped in mapped]
    is_sparse = name.startswith(("coo", "csr", "bcoo"))
    batched = lambda g: jax.vmap(g, axes) if any(mapped) else g

    @jax.jit
    def reference(*given):
        of = lambda given, b: [
            a[b] if is_mapped else a for a, is_mapped in zip(given, mapped, strict=True)
        ]
        each = lambda *given: jnp.stack([in_jax(*of(given, b)) for b in range(B)])
        one_by_one = each if any(mapped) else in_jax
        return one_by_one(*given), along(one_by_one, given)

    @jax.jit
    def found(*given):
        results = {}
        for where, function, around in (
            ("in the model", batched(f), lambda g: g),
            ("around it", f, batched),
        ):
            # JAX has no batching rule for products of COO and CSR, nor for those of BCOO with several values.
            by_row = name.startswith(("coo", "csr")) and where == "in the model"
            if any(mapped) and (by_row or (is_sparse and mapped[0])):
                continue
            shapes = [a.shape if where == "in the model" else (N,) for a in given]
            w, *x = (jax.ShapeDtypeStruct(s, float) for s in shapes)
            state = jax.eval_shape(function, w, *x)
            step = trace(w, x, state, lambda w, x, state, of=function: (of(w, *x),) * 2)
            equations = differentiable(step, {})

            def run(rule, *given, step=step, equations=equations):
                env = step.environment(given[:1], given[1:], [None])
                return evaluate(equations, env, rule)[step.outputs[0]]

            reverse = around(partial(run, None))
            forward = around(partial(run, lambda eqn, values: forward_mode(eqn)(*values)))
            results[f"value, {where}"] = reverse(*given)
            results[f"forward, {where}"] = along(forward, given)
            results[f"reverse, {where}"] = backward(reverse, given)
        return results

    value, jacobian = reference(*arguments)
    assert np.abs(jacobian).max() > 1e-3
    assert np.isfinite(jacobian).all()
    within = 1e-6 if name == OF_FLOAT32 else 1e-9  # its cotangents are rounded
    for way, result in found(*arguments).items():
        expected = value if way.startswith("value") else jacobian
        np.testing.assert_allclose(result, expected, rtol=within, atol=within, err_msg=way)
