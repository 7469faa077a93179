"""Loops that Equinox differentiates by checkpoints, in which diffrax runs the stages of a step."""

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import etpc
from etpc._jax import _loops
from tests.marks import few
from tests.zoo.check import check, normal, weights

MODEL = {"w": weights(3, 2), "tau": jnp.linspace(0.5, 1.5, 3)}
H = jnp.full(3, 0.3)


def euler(m, x, h):
    return h + 0.3 * (jnp.tanh(m["w"] @ x) - m["tau"] * h)


def looped(count, body=euler, max_steps=5):
    """A step of `count(x)` substeps, at most `max_steps`."""

    def step(m, x, h):
        def one(carry):
            i, h = carry
            return i + 1, body(m, x, h)

        start = jnp.zeros((), jnp.int32), h
        goes_on = lambda carry: carry[0] < count(x)
        h = eqxi.while_loop(goes_on, one, start, max_steps=max_steps, kind="checkpointed")[1]
        return h, h

    return step


def stages(m, x, h):
    """Each stage is written into a buffer, as a Runge-Kutta method does."""

    def one(carry):
        i, h, buffer = carry
        slope = jnp.tanh(m["w"] @ x) - m["tau"] * h
        return i + 1, h + 0.3 * slope, buffer.at[i].set(slope)

    start = jnp.zeros((), jnp.int32), h, jnp.zeros((3, *h.shape))
    _, _, slopes = eqxi.while_loop(
        lambda carry: carry[0] < 3,
        one,
        start,
        max_steps=3,
        buffers=lambda carry: carry[2],
        kind="checkpointed",
        checkpoints=3,
    )
    h = h + jnp.asarray([0.1, 0.2, 0.3]) @ slopes
    return h, h


def scanned(m, x, h):
    """A scan with checkpoints; its outputs are a buffer."""
    step = lambda h, scale: (euler(m, scale * x, h), h)
    h, before = eqxi.scan(step, h, jnp.asarray([1.0, 0.5, 2.0]), kind="checkpointed")
    return h + before.sum(0), h


def nested(m, x, h):
    inner = lambda m, x, h: looped(lambda x: 2, max_steps=2)(m, x, h)[1]
    return looped(lambda x: 2, inner)(m, x, h)


STEPS = {
    "a number of iterations that is known": looped(lambda x: 3),
    "none": looped(lambda x: 0),
    "a bound alone": looped(lambda x: 9),
    "a number that the input chooses": looped(lambda x: 2 + (x[0] > 0)),
    "none, or one, as the input says": looped(lambda x: (x[0] > 0).astype(jnp.int32)),
    "stages in a buffer": stages,
    "a scan": scanned,
    "one in another": nested,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", STEPS)
def test_a_checkpointed_loop(case):
    """All states act on themselves alone, which the loop does not hide."""
    dead = {"['w']", "['tau']"} if case == "none" else ()
    program = check(MODEL, normal(2), H, STEPS[case], exact=True, dead=dead)
    assert {op.block for op in program.ops} <= {1}


@pytest.mark.slow
def test_a_matrix_in_a_loop():
    def mixing(m, x, h):
        return h + 0.3 * (m["rec"] @ jnp.tanh(h) + m["w"] @ x)

    model = {"w": weights(3, 2), "rec": weights(3, 3)}
    check(model, normal(2), H, looped(lambda x: 2 + (x[0] > 0), mixing), every=True)


@pytest.mark.slow
def test_iterations_beyond_the_end():
    """There the root has an infinite derivative, and so has what is divided by what it leaves."""

    def falls(v, m):
        return v - 0.3 * m["tau"] * jnp.sqrt(v), v

    def step(m, x, h):
        start = jnp.abs(m["w"] @ x)[0] + 0.1 * jnp.tanh(h[0]) ** 2
        goes_on = lambda c: (c[0] > 0.1).all()
        body = lambda c: (*falls(c[0], m), c[2] + m["tau"] / jnp.sqrt(c[0]))
        full = jnp.full(3, start)
        v, before, total = eqxi.while_loop(
            goes_on, body, (full, full, h), max_steps=8, kind="checkpointed"
        )
        h = 0.5 * h + 0.1 * v * before + 0.01 * total
        return h, h

    model = {"w": weights(3, 2) + 1.0, "tau": MODEL["tau"]}
    check(model, normal(2), H, step)


@pytest.mark.slow
def test_a_bound_that_is_too_large():
    """The loop is not written out, and its derivative is carried forward."""
    step = looped(lambda x: 2 + (x[0] > 0), max_steps=4096)
    program = check(MODEL, normal(2), H, step, exact=True, every=True)
    assert {op.block for op in program.ops} == {1}


@pytest.mark.slow
def test_a_loop_without_a_weight_is_one_operation():
    """Where data decides its length: it would be a branch for each iteration."""

    def step(m, x, h):
        decayed = looped(lambda x: 2 + (x[0] > 0), lambda m, x, h: 0.9 * jnp.sin(h), 200)
        h = decayed(m, x, h)[0] * m["tau"] + m["w"] @ x
        return h, h

    assert len(etpc.trace.trace(MODEL, jnp.zeros(2), H, step).equations) < 30
    check(MODEL, normal(2), H, step, exact=True, every=True)


@pytest.mark.slow
def test_where_the_reverse_mode_of_equinox_is_enough(monkeypatch):
    """From parameters alone, and on the way to the output alone."""
    monkeypatch.setattr(_loops, "_seeds", None)  # of a derivative that is carried forward
    decayed = lambda v: looped(lambda x: 3 + (x > 0), lambda m, x, h: 0.9 * jnp.sin(h), 4096)
    shrink = lambda count, v: decayed(v)(None, count, v)[0]

    def step(m, x, h):
        h = shrink(m["tau"][0], m["tau"]) * h + m["w"] @ x
        return shrink(x[0], h), h

    check(MODEL, normal(2), H, step, exact=True)


def test_a_rule_of_the_users_own_stays_what_it_is():
    """A `custom_vjp` around a loop may say that the derivative is another: it is not opened."""

    @jax.custom_vjp
    def surrogate(h):
        return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, 0.5 * c[1]), (0, h))[1]

    surrogate.defvjp(lambda h: (surrogate(h), None), lambda _, g: (0.7 * g,))
    step = lambda m, x, h: (surrogate(h) + m["w"] @ x + m["tau"],) * 2
    check(MODEL, normal(2), H, step, exact=True)


@pytest.mark.slow
def test_equations_without_outputs():
    def step(m, x, h):
        lax.cond(x["i"][0] > 0, lambda: (), lambda: ())
        lax.cond(m["n"] > 0, lambda: (), lambda: ())
        h = 0.5 * h + m["w"][m["rows"][m["n"]]] * x["v"]
        return h, h

    model = {"w": weights(4, 3), "rows": jnp.asarray([2, 1]), "n": jnp.asarray(0)}
    inputs = {"i": jnp.arange(6)[:, None], "v": normal(3)}
    check(model, inputs, H, step, exact=True)


def compiled(step):
    return etpc.compile(MODEL, inputs=jnp.zeros(2), state=H, step=step)


# --- diffrax --------------------------------------------------------------------------------------


def field(t, h, args):
    m, x = args
    return jnp.tanh(m["w"] @ x) - m["tau"] * h + jnp.sin(t)


@pytest.mark.parametrize(
    "name", few(["Euler", "Heun", "Midpoint", "Ralston", "Bosh3", "Tsit5", "Dopri5"], "Euler")
)
def test_steps_of_solvers(name):
    diffrax = pytest.importorskip("diffrax")
    solver, term = getattr(diffrax, name)(), diffrax.ODETerm(field)

    def step(m, x, state):
        h, t = state
        start = solver.init(term, t, t + 0.1, h, (m, x))
        h, *_ = solver.step(term, t, t + 0.1, h, (m, x), start, made_jump=False)
        return h, (h, t + 0.1)

    check(MODEL, normal(2), (H, jnp.zeros(())), step, exact=True)


@pytest.mark.slow
@pytest.mark.parametrize(("adaptive", "max_steps"), [(False, 6), (True, 6), (True, 4096)])
def test_a_whole_solve_in_each_step(adaptive, max_steps):
    diffrax = pytest.importorskip("diffrax")
    controller = diffrax.PIDController(1e-2, 1e-2) if adaptive else diffrax.ConstantStepSize()

    def step(m, x, h):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Heun(),
            0.0,
            0.5,
            0.1,
            h,
            (m, x),
            stepsize_controller=controller,
            max_steps=max_steps,
        )
        return solution.ys[-1], solution.ys[-1]

    check(MODEL, normal(2), H, step, exact=True)
