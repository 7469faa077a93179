"""Effects of a step: they are refused, or, where they only print, dropped, wherever they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import checkify, io_callback

import etpc
from tests.zoo.check import check, normal, weights

H = jnp.full(3, 0.3)
W = weights(3, 2)
NONE = jnp.zeros((3, 2))


def in_scan(effect):
    def step(w, x, h):
        body = lambda c, i: (effect(w, x, c), None)
        return lax.scan(body, h, jnp.arange(2))[0] + w @ x

    return step


def in_branch(effect):
    return lambda w, x, h: lax.cond(x[0] > 0, lambda: effect(w, x, h), lambda: 0.5 * h) + w @ x


def in_while(effect):
    def step(w, x, h):
        still = lax.stop_gradient(h)
        body = lambda c: (c[0] + 1, effect(NONE, jnp.zeros(2), c[1]))
        still = lax.while_loop(lambda c: c[0] < 2, body, (0, still))[1]
        return 0.5 * h + 0.1 * still + w @ x

    return step


def in_own_derivative(effect):
    def step(w, x, h):
        @jax.custom_jvp
        def inner(h):
            return effect(NONE, jnp.zeros(2), h)

        inner.defjvp(lambda h, t: (0.5 * h[0], 0.5 * t[0]))
        return inner(h) + w @ x

    return step


PLACES = {
    "the step": lambda effect: effect,
    "jit": jax.jit,
    "scan": in_scan,
    "branch": in_branch,
    "while": in_while,
    "custom_jvp": in_own_derivative,
    "branch in scan": lambda effect: in_scan(in_branch(effect)),
}
OUTSIDE = jax.new_ref(jnp.zeros(3))


def mutable(w, x, h):
    r = jax.new_ref(0.5 * h)
    r[...] += w @ x
    return r[...]


def element(w, x, h):
    r = jax.new_ref(0.5 * h)
    lax.fori_loop(0, 3, lambda i, _: r.__setitem__(i, r[i] + (w @ x)[i]), None)
    return r[...]


def outside(w, x, h):
    OUTSIDE[...] = h
    return 0.5 * h + w @ x


def unread(w, x, h):
    io_callback(lambda h: None, None, h)
    return 0.5 * h + w @ x


def ordered(w, x, h):
    io_callback(lambda h: None, None, h, ordered=True)
    return 0.5 * h + w @ x


def read(w, x, h):
    still = lax.stop_gradient(h)
    return 0.5 * h + io_callback(lambda h: h, jax.typeof(still), still) + w @ x


REFUSED = [mutable, element, outside, unread, ordered, read]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("effect", REFUSED, ids=lambda effect: effect.__name__)
def test_an_effect_that_counts_is_refused(effect, place):
    inner = PLACES[place](effect)
    step = lambda w, x, h: (h, inner(w, x, h))
    with pytest.raises(etpc.UnsupportedError, match=r"more than compute values.*test_effects\.py"):
        etpc.compile(W, inputs=jnp.zeros(2), state=H, step=step)


def prints(w, x, h):
    jax.debug.print("{}", h)
    jax.debug.print("{}", h, ordered=True)
    jax.debug.callback(lambda h: print(h), h)
    checkify.check(h[0] > 1e9, "{}", h[0])
    return 0.5 * h + w @ x


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_what_only_prints_is_dropped(place, capfd):
    """And the gradient is that of the step without it."""
    inner = PLACES[place](prints)
    plain = PLACES[place](lambda w, x, h: 0.5 * h + w @ x)
    xs = normal(2)
    make = lambda f: etpc.compile(
        W, etpc.RTRL(window=2), inputs=xs[0], state=H, step=lambda w, x, h: (h, f(w, x, h))
    )
    program, reference = make(inner), make(plain)
    targets = jnp.ones((len(xs), 3))
    loss = lambda y, t: jnp.sum((y - t) ** 2)
    grads = program.value_and_grad(loss)(W, xs, targets, program.init())[1]
    expected = reference.value_and_grad(loss)(W, xs, targets, reference.init())[1]
    jax.effects_barrier()
    assert capfd.readouterr().out == ""
    assert jnp.abs(grads).max() > 1e-3
    assert jnp.array_equal(grads, expected)


@pytest.mark.slow
def test_a_pure_callback_is_kept():
    def step(w, x, h):
        twice = jax.pure_callback(lambda x: 2 * x, jax.typeof(x), x, vmap_method="expand_dims")
        h = 0.5 * h + w @ twice
        return h, h

    check(W, normal(2), H, step, exact=True)


def doubled(a):
    return jax.pure_callback(lambda a: 2 * a, jax.typeof(a), a, vmap_method="expand_dims")


WITHOUT_DERIVATIVE = {
    "of a state": lambda w, x, h: doubled(0.5 * h) + w @ x,
    "of a weight": lambda w, x, h: 0.5 * h + doubled(w) @ x,
    "of the data of a weight": lambda w, x, h: 0.5 * h + w @ doubled(jnp.tanh(h[:2])),
    "a bound": lambda w, x, h: lax.clamp(-1.0, 0.5 * h + w @ x, jnp.abs(h[0])),
}


@pytest.mark.parametrize("name", WITHOUT_DERIVATIVE)
def test_an_operation_that_jax_does_not_differentiate_is_named(name):
    step = lambda w, x, h: (WITHOUT_DERIVATIVE[name](w, x, h),) * 2

    def trained():
        program = etpc.compile(W, inputs=jnp.zeros(2), state=H, step=step)
        program.value_and_grad(lambda y, t: y.sum())(W, normal(2), normal(3), program.init())

    words = r"JAX refuses the (pure_callback|clamp) at .*test_effects\.py.*jax\.custom_jvp"
    with pytest.raises(etpc.UnsupportedError, match=words) as info:
        trained()
    assert info.value.code is etpc.Code.NO_DERIVATIVE


def test_a_check_in_a_branch_fails_only_if_the_branch_is_taken():
    def step(w, x, h):
        checked = lambda: eqx.error_if(0.5 * h + w @ x, jnp.all(h < 9), "h is small")
        h = lax.cond(x[0] > 5, checked, lambda: 0.9 * h + w @ x)
        return h, h

    program = etpc.compile(W, inputs=jnp.zeros(2), state=H, step=step)
    loss_fn = lambda y, t: jnp.sum((y - t) ** 2)
    xs, targets = (
        normal(2),
        normal(3),
    )  # without a batch axis: under `vmap`, JAX takes both branches
    loss, grads = etpc.bptt(W, xs, targets, loss_fn, state=H, step=step)
    (value, _), found = program.value_and_grad(loss_fn)(W, xs, targets, program.init())
    assert jnp.allclose(value, loss, rtol=1e-9)
    assert jnp.allclose(found, grads, rtol=1e-9)
    run = program.value_and_grad(loss_fn)
    with pytest.raises(Exception, match="h is small"):
        jax.block_until_ready(run(W, xs.at[1].set(6.0), targets, program.init()))
