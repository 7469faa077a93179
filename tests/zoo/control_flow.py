"""Steps with control flow: weights inside it, around it, and in nested functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from tests.helpers import spike_over
from tests.zoo.check import model


@model
def LeakInLoop(x, h, weight, tau):
    """The weight is outside; in the loop there is a leak with a time constant of its own."""
    current = weight @ x
    h = lax.fori_loop(0, 3, lambda _, h: h + 0.3 * (current - h) / tau, h)
    return h, h


@model
def WeightAsCarry(x, h, weight):
    """The weight is a carry of a loop, which does not change it."""

    def body(_, carry):
        w, h = carry
        return w, 0.5 * h + w @ x

    _, h = lax.fori_loop(0, 2, body, (weight, h))
    return h, h


@model
def Powers(x, h, weight):
    """A loop over parameters alone: the effective weight is a power of the parameter."""
    effective = lax.fori_loop(0, 2, lambda _, w: jnp.tanh(w @ weight), weight)
    h = 0.7 * h + effective @ x
    return h, h


@jax.custom_vjp
def scaled(w, x):
    """A product whose derivative in the weight is made twice as large."""
    return w @ x


scaled.defvjp(
    lambda w, x: (w @ x, (w, x)), lambda given, g: (2 * jnp.outer(g, given[1]), given[0].T @ g)
)


@jax.custom_vjp
def clipped(h):
    """The identity; its cotangent is clipped."""
    return h


clipped.defvjp(lambda h: (h, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@model
def Threshold(x, v, weight, theta):
    z = spike_over(v, theta)
    v = 0.8 * v * (1 - z) + weight @ x
    return spike_over(v, theta), v


@model
def CustomProduct(x, h, weight):
    h = 0.7 * h + scaled(weight, x)
    return jnp.tanh(h), h


@model
def ClippedCotangent(x, h, weight):
    """Gradient clipping inside of the model, on the way to the output."""
    h = 0.7 * h + weight @ x
    return clipped(h), h


@eqx.filter_custom_vjp
def filtered(model, x):
    """A layer with a derivative of the user's own, for PyTrees."""
    return jnp.tanh(model(x))


@filtered.def_fwd
def _(perturbed, model, x):
    y = filtered(model, x)
    return y, y


@filtered.def_bwd
def _(y, g, perturbed, model, x):
    g = g * (1 - y**2)
    bias = None if model.bias is None else g
    return eqx.tree_at(
        lambda m: (m.weight, m.bias),
        eqx.filter(model, eqx.is_inexact_array),
        (jnp.outer(g, x), bias),
        is_leaf=lambda a: a is None,
    )


@eqx.filter_custom_jvp
def rounded(x):
    return jnp.round(4 * x) / 4


@rounded.def_jvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return rounded(x), dx


@model
def Filtered(x, h, linear, function):
    """Derivatives by Equinox's own decorators."""
    h = rounded(0.7 * h + linear(x)) if function is rounded else 0.7 * h + function(linear, x)
    return h, h


def root(f, guess):
    """Solves `f(a) = 0` with the implicit derivative, as `lax.custom_root` does."""
    newton = lambda f, a: lax.fori_loop(
        0, 8, lambda _, a: a - f(a) / jax.jvp(f, (a,), (1.0,))[1], a
    )
    return lax.custom_root(f, guess, newton, lambda g, y: y / g(1.0))


@model
def Equilibrium(x, h, weight, stiffness):
    """A gain that is the root of an equation with a parameter in it."""
    current = weight @ x
    solve = lambda i, s: root(lambda a: a + s * a**3 - i, 0.5 * i)
    h = 0.7 * h + jax.vmap(solve)(current, stiffness)
    return h, h


@model
def Effects(x, h, weight):
    """Checks, prints, names and barriers, which change nothing."""
    with jax.named_scope("membrane"):
        current = jax.named_call(lambda x: weight @ x, name="synapse")(x)
    current, h = lax.optimization_barrier((current, h))
    h = lax.reduce_precision(0.7 * h + current, 11, 52)
    return h, h


@model
def Checked(x, h, weight):
    h = eqx.error_if(0.7 * h + weight @ x, jnp.any(jnp.isnan(h)), "not a number")
    return h, h


@model
def Unitary(x, h, skew, weight):
    """The matrix exponential of a skew matrix rotates the state."""
    h = jax.scipy.linalg.expm(0.3 * (skew - skew.T)) @ h + weight @ x
    return h, h


@model
def Assembled(x, h, enter, gain):
    """Everything at once: jit in vmap in scan in cond in checkpoint."""

    def run(x, h):
        drive = jax.vmap(jax.jit(lambda row: row @ x))(enter)

        def loop(h):
            return lax.scan(lambda h, _: (0.8 * h + drive, None), h, length=2)[0]

        return lax.cond(x[0] > 0, loop, lambda h: gain * h + drive, h)

    h = run(x, h)
    return h, h
