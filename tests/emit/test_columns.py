"""Parameters that many states share: their immediate Jacobian is read by columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.helpers import loss
from tests.marks import few

N = 36


def curve(w, x):
    return w[0] * jnp.tanh(x) + w[1] * jnp.tanh(w[2] * x)


@jax.custom_vjp
def whole(w, x):
    """An operation that is kept as it is; each of its elements reads all of its weight."""
    return curve(w, x)


whole.defvjp(lambda w, x: (curve(w, x), (w, x)), lambda wx, ct: jax.vjp(curve, *wx)[1](ct))


def one_time_constant(p, x, state):
    """One column; it reaches two states of every neuron."""
    g, v = state
    decay = jnp.exp(-1 / etpc.mark(p["shared"][0]))
    g = decay * g + etpc.mark(p["w"]) @ x
    v = 0.8 * v + jnp.tanh(g)
    return v, (g, v)


def three_gains(p, x, state):
    """Three columns of one colour."""
    g, v = state
    g = 0.7 * g + etpc.mark(p["w"]) @ x
    v = 0.8 * v + (etpc.mark(p["shared"])[:, None] * jnp.tanh(g).reshape(3, -1)).reshape(-1)
    return v, (g, v)


def crossed(p, x, state):
    """Columns that overlap, so that each has a colour; some states are in none."""
    g, v = state
    g = 0.7 * g + etpc.mark(p["w"]) @ x
    v = (0.8 * v).at[:30].add(whole(etpc.mark(p["shared"]), g[:30]))
    return v, (g, v)


MODELS = [one_time_constant, three_gains, crossed]


def draw():
    rng = np.random.default_rng(0)
    p = {"w": jnp.asarray(rng.normal(size=(N, 5))), "shared": jnp.asarray([3.0, 1.5, 0.7])}
    xs = jnp.asarray(rng.normal(size=(6, 2, 5)))
    return p, xs, jnp.asarray(rng.normal(size=(6, 2, N)))


STATE = (jnp.zeros(N), jnp.zeros(N))


CASES = [*((step, etpc.D_RTRL(window=3)) for step in MODELS), (crossed, etpc.RTRL(window=2))]


@pytest.mark.parametrize(("step", "algo"), few(CASES, CASES[1], CASES[3]))
def test_gradients_are_exact(step, algo):
    p, xs, targets = draw()
    report = etpc.verify(p, xs, targets, loss, algo, state=STATE, step=step, batch_size=2)
    assert report.ok
    assert all(row.claim == "exact" for row in report.rows)


@pytest.mark.parametrize("step", MODELS)
def test_few_products_read_the_jacobians(step):
    p, xs, _ = draw()
    program = etpc.compile(p, inputs=xs[0, 0], state=STATE, step=step)
    colours = program.plan.colours
    assert colours.count <= 2
    assert sum(columns.count for columns in colours.columns.values()) <= 3
    (found,) = colours.columns
    assert program.plan.ops[found].path.startswith("['shared']")


@pytest.mark.slow
@pytest.mark.parametrize("step", MODELS)
def test_a_shared_parameter_without_a_trace(step):
    """It gets the gradient of the current step: all that it reaches, times their credit."""
    p, xs, targets = draw()
    program = etpc.compile(p, inputs=xs[0, 0], state=STATE, step=step, weights=lambda m: m["w"])
    _, grads = program.value_and_grad(loss, "sum")(p, xs, targets, program.init(2))

    def total(shared):
        def one(state, given):
            x, target = given
            y, after = step({**p, "shared": shared}, x, jax.lax.stop_gradient(state))
            return after, loss(y, target)

        many = jax.vmap(lambda x, t: jax.lax.scan(one, STATE, (x, t))[1].sum(), in_axes=1)
        return many(xs, targets).mean()

    wanted = jax.grad(total)(p["shared"])
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(grads["shared"], wanted, rtol=1e-12, atol=1e-12)
