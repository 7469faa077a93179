"""Derivatives that are infinite or NaN where backpropagation does not meet them: no trace may either.

Behind a condition, behind a relu, behind a state that is zero: in whatever order the steps come, and whether the
trace is moved by element-wise code, by matrix products, by columns of the Jacobian, or as factors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from tests.helpers import bptt, by_path, compiled, loss
from tests.marks import few

N = 3
XS = np.random.default_rng(5).normal(size=(8, N))
XS[2], XS[3], XS[6] = 0.0, -1.0, -2.0
XS = jnp.asarray(XS)
W = jnp.asarray(np.abs(np.random.default_rng(6).normal(size=(N, N))))
V = jnp.asarray([0.3, 0.5, 0.9])
RULES = [
    etpc.D_RTRL(window=2),
    etpc.D_RTRL(window=1),
    etpc.D_RTRL(window=3, backprop="full"),
    etpc.RTRL(window=2),
    etpc.SnAp(1, window=1),
    etpc.ES_D_RTRL(rank=1, window=2),
    etpc.ES_D_RTRL(decay=0.9, window=2),
]


def holds(step, model, state, exact=True, others=()):
    """Every gradient is finite, and equals that of BPTT where it is said to; that of RTRL always does.

    Also at `others`: parameters that the model was not compiled at.
    """
    programs = [etpc.compile(model, rule, inputs=XS[0], state=state, step=step) for rule in RULES]

    def gradients(model):
        runs = [program.value_and_grad(loss, reduction="sum") for program in programs]
        found = [
            run(model, XS, XS, program.init())[1]
            for run, program in zip(runs, programs, strict=True)
        ]
        return bptt(model, XS, XS, state, step), found

    for point in (model, *others):
        reference, found = compiled(gradients, point)
        wanted, claimed = by_path(reference), 0
        assert all(np.isfinite(g).all() for g in wanted.values()), "a case without an answer"
        scale = max(np.abs(g).max() for g in wanted.values())
        assert scale > 1e-3
        for program, grads in zip(programs, found, strict=True):
            for path, got in by_path(grads).items():
                assert np.isfinite(got).all(), f"{program.algorithm}: {path}"
                if program.claims[path].claim == "exact":
                    claimed += 1
                    error = np.abs(got - wanted[path]).max() / scale
                    assert error < 1e-9, f"{program.algorithm}: {path} is {error} off"
            if isinstance(program.algorithm, etpc.RTRL):
                assert program.exact
        assert claimed >= (5 if exact else 1)


# --- behind a condition ---------------------------------------------------------------------------


def leaky(drive):
    return lambda p, x, h: (0.5 * h + drive(p, x, h),) * 2


def positive(x):
    return jnp.all(x > 0)


BRANCHES = {
    "a root of a product": lambda p, x, h: lax.cond(
        positive(x), lambda: jnp.sqrt(p * x), lambda: jnp.zeros(N)
    ),
    "a logarithm of a state": lambda p, x, h: lax.cond(
        positive(h), lambda: p * jnp.log(h), lambda: p * x
    ),
    "a root of a root": lambda p, x, h: lax.cond(
        positive(x), lambda: jnp.sqrt(p * jnp.sqrt(p * x)), lambda: p * h
    ),
    "a switch": lambda p, x, h: lax.switch(
        jnp.where(x[0] > 0, 2, jnp.where(x[0] < 0, 0, 1)),
        [lambda: p * h, lambda: jnp.ones(N) * p, lambda: jnp.log(p * jnp.abs(x)) + h / x[0]],
    ),
    "a branch in a branch": lambda p, x, h: lax.cond(
        x[0] >= 0,
        lambda: lax.cond(x[0] > 0, lambda: jnp.sqrt(p * jnp.abs(x) / x[0]), lambda: p * h),
        lambda: p * jnp.sqrt(-x[0]) * h,
    ),
    "a loop in a branch": lambda p, x, h: lax.cond(
        positive(x), lambda: lax.fori_loop(0, 2, lambda i, u: jnp.sqrt(p * u), x), lambda: h * p
    ),
    "a branch in a loop": lambda p, x, h: lax.scan(
        lambda c, i: (lax.cond(i > 0, lambda: jnp.sqrt(c * p * i), lambda: c * p), None),
        jnp.abs(h) + 0.1,
        x,
    )[0],
    "a product with a matrix": lambda p, x, h: lax.cond(
        positive(x), lambda: jnp.sqrt(jnp.diag(p) @ jnp.sqrt(x)), lambda: p * x
    ),
    "a weight divided by data": lambda p, x, h: lax.cond(
        x[0] != 0, lambda: p / x[0] + jnp.arctan2(p, x), lambda: h
    ),
    "a weight that has a power": lambda p, x, h: lax.cond(
        positive(x), lambda: jnp.power(x, p) + p / jnp.sqrt(x), lambda: h
    ),
    "three that have no derivative elsewhere": lambda p, x, h: lax.switch(
        jnp.sign(x[0]).astype(int) + 1,
        [
            lambda: p / jnp.minimum(x[0], 0),
            lambda: h / (x[0] == 0) + p,
            lambda: jnp.arctan2(0 * p, jnp.maximum(x[0], 0)) + jnp.log(p * x[0]),
        ],
    ),
    "divided in a branch in a loop in a branch": lambda p, x, h: lax.cond(
        x[0] != 0,
        lambda: lax.scan(
            lambda c, i: (lax.cond(i > 0, lambda: 0.3 * c + p / (i * x[0]), lambda: c * p), None),
            h,
            x,
        )[0],
        lambda: p * h,
    ),
    "divided, by element": lambda p, x, h: jax.vmap(
        lambda p, x: lax.cond(x != 0, lambda: p / x, lambda: p)
    )(p, x),
    "no number at all": lambda p, x, h: lax.cond(
        x[0] > 0, lambda: p * jnp.log(x[0]) / x[0], lambda: p * x
    ),
}


@pytest.mark.parametrize("name", few(BRANCHES, "a logarithm of a state"))
def test_a_branch_that_is_not_taken(name):
    drive = BRANCHES[name]
    holds(leaky(drive), V, jnp.full(N, 0.1), others=[2.3 * V])


@pytest.mark.slow
@pytest.mark.parametrize(
    "effective",
    [jnp.sqrt, jnp.log, lambda p: p / jnp.sqrt(jnp.sum(p**2)), lambda p: 1 / p, lambda p: p**0.5],
    ids=["root", "logarithm", "norm", "inverse", "power"],
)
def test_what_depends_on_weights_alone_in_a_branch_that_is_never_taken(effective):
    def drive(p, x, h):
        return lax.cond(x[0] > 50, lambda: effective(p) * x, lambda: x + 0 * p[0])

    step = lambda m, x, h: (0.5 * h + drive(m["p"], x, h) + m["b"] * x,) * 2
    holds(step, {"p": jnp.zeros(N), "b": V}, jnp.full(N, 0.1))


OF_PARAMETERS_ALONE = {
    "arctan2": (lambda a: jnp.diag(jnp.arctan2(a, a)[0]), jnp.zeros((N, N))),
    "square": (lambda a: jnp.square(1 / a), jnp.zeros((N, N))),
    "overflow": (lambda a: jnp.exp(a) * a, jnp.full((N, N), 1e3)),
    "lgamma": (lax.lgamma, jnp.zeros((N, N))),
    "inverse": (jnp.linalg.inv, jnp.zeros((N, N))),
    "eigh": (lambda a: jnp.linalg.eigh(a)[1], jnp.eye(N)),
    "loop": (lambda a: lax.fori_loop(0, 2, lambda _, u: jnp.sqrt(u), a), jnp.zeros((N, N))),
    "branch": (
        lambda a: lax.cond(a[0, 0] < 1, lambda: jnp.cbrt(jnp.sort(a)), lambda: a),
        jnp.zeros((N, N)),
    ),
    "spike": (lambda a: etpc.surrogate.ReluGrad()(a / a), jnp.zeros((N, N))),
    "stopped": (
        lambda a: a / lax.stop_gradient(lax.while_loop(lambda u: u.sum() > 0, jnp.sqrt, a)),
        jnp.zeros((N, N)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [etpc.RTRL(window=2), etpc.D_RTRL(window=3), etpc.ES_D_RTRL(decay=0.9, window=8)],
    ids=str,
)
def test_any_function_of_parameters_alone_in_branches_that_are_never_taken(rule):
    """Its derivative is NaN, and it is evaluated once for a call: in a branch, and in one in a branch."""

    def step(m, x, h):
        effective = lambda: {name: f(m[name]) for name, (f, _) in OF_PARAMETERS_ALONE.items()}
        inner = lambda: sum(w @ h for w in effective().values())
        outer = lambda: lax.cond(h[0] > 50, inner, lambda: effective()["inverse"] @ x) + x
        h = 0.5 * h + lax.cond(x[0] > 50, outer, lambda: x) + m["b"] * x
        h = h + lax.cond(m["flag"] > 0, lambda: effective()["square"] @ x, lambda: 0 * x)
        return h, h

    model = {name: value for name, (_, value) in OF_PARAMETERS_ALONE.items()}
    dead = [f"['{name}']" for name in model]
    given = {**model, "b": V, "flag": jnp.asarray(0)}
    program = etpc.compile(given, rule, inputs=XS[0], state=0 * V, step=step)
    grads = program.value_and_grad(loss, reduction="sum")(given, XS, XS, program.init())[1]
    for path in dead:
        np.testing.assert_array_equal(by_path(grads)[path], 0)
    if isinstance(rule, etpc.RTRL):
        expected = etpc.bptt(given, XS, XS, loss, state=0 * V, step=step, reduction="sum")[1]
        assert all(np.isfinite(g).all() for g in by_path(expected).values())
        np.testing.assert_allclose(grads["b"], expected["b"], rtol=1e-9)


@pytest.mark.slow
def test_a_matrix_in_a_branch():
    def step(m, x, h):
        h = 0.5 * h + lax.cond(
            positive(x), lambda: m["b"] @ jnp.sqrt(m["a"] @ jnp.sqrt(x)), lambda: jnp.zeros(N)
        )
        return h, h

    holds(step, {"a": W, "b": W.T}, jnp.full(N, 0.1), exact=False)


# --- behind a relu --------------------------------------------------------------------------------


def unit(k):
    return k / (jnp.linalg.norm(k) + 1e-2)


def key(use, delay):
    """A key that is made behind a relu, and used so many steps later."""

    def step(m, x, state):
        s, *keys = state
        keys = [jax.nn.relu(m @ x), *keys]
        s = 0.9 * s + use(keys.pop()) * x.sum()
        return s, (s, *keys)

    return step


def normed(m, x, h):
    """The first state is zero, where backpropagation needs no derivative of a norm."""
    h = 0.5 * h / jnp.maximum(1.0, jnp.linalg.norm(h)) + m @ (x + 3)
    return h, h


def shared_scalar(p, x, s):
    """One parameter for all states: its Jacobian is read by columns."""
    s = 0.9 * s + unit(jax.nn.relu(p * x))
    return s, s


def shared_scalar_later(p, x, s):
    s, k = s
    s = 0.9 * s + unit(jnp.tile(k, 4))
    return s[:N], (s, jax.nn.relu(p * x))


def many_states_behind(p, x, s):
    """Blocks of more states than are written out, which all read each other."""
    s, k = s
    mixing = 0.5 * jnp.eye(12) + jnp.asarray(0.01)
    s = 0.9 * mixing @ s + jnp.tile(k, 4) / (jnp.linalg.norm(k) + 1e-2) * x.sum()
    return s[:N], (s, jax.nn.relu(p * x))


def key_by_selection(m, x, s):
    s, k = s
    passed = x[0] > 0
    safe = jnp.where(passed, k, 1.0)
    s = 0.9 * s + jnp.where(passed, jnp.sqrt(safe), 0.0)
    return s, (s, jax.nn.relu(m @ x) + 0.5 * jax.nn.relu(k - 0.2))


ONES = jnp.ones(N)
KEYS = {
    "a norm of the first state": (normed, W, jnp.zeros(N)),
    "now": (key(unit, 0), W, (ONES,)),
    "later": (key(unit, 1), W, (ONES, ONES)),
    "much later": (key(unit, 2), W, (ONES, ONES, ONES)),
    "a root": (key(jnp.sqrt, 1), W, (ONES, ONES)),
    "one parameter": (shared_scalar, jnp.asarray(0.7), ONES),
    "one parameter, later": (shared_scalar_later, jnp.asarray(0.7), (jnp.ones(12), ONES)),
    "many states": (many_states_behind, V, (jnp.ones(12), ONES)),
    "a selection": (key_by_selection, W, (ONES, ONES)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_a_derivative_that_nothing_passes_through(name):
    step, model, state = KEYS[name]
    holds(step, model, state, exact=False)


@pytest.mark.slow
def test_nan_that_backpropagation_meets_is_not_hidden():
    """Negative control: where the influence arrives, an infinite derivative is the gradient's."""
    step = lambda p, x, h: (jnp.sqrt(p * x),) * 2
    xs = jnp.zeros((4, N))
    for rule in RULES:
        program = etpc.compile(V, rule, inputs=xs[0], state=ONES, step=step)
        grads = program.value_and_grad(loss)(V, xs, xs + 1, program.init())[1]
        assert not np.isfinite(grads).any()
