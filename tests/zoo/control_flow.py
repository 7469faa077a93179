"""Steps with control flow: weights inside it, around it, and in nested functions."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.check import model


class Branches(eqx.Module):
    """A leaky state whose drive is chosen among branches, each with a weight of its own."""

    weights: tuple[jax.Array, ...]
    choose: Callable = eqx.field(static=True)

    def __call__(self, x, h):
        x, index = x
        branches = [lambda x, w=w: w @ x for w in self.weights]
        h = 0.7 * h + self.choose(index, branches, x)
        return jnp.tanh(h), h


def by_cond(index, branches, x):
    return lax.cond(index > 0, branches[0], branches[1], x)


def by_nested_cond(index, branches, x):
    inner = lambda x: lax.cond(index > 1, branches[1], branches[2], x)
    return lax.cond(index > 0, inner, branches[0], x)


class Gated(eqx.Module):
    """A branch that the weight enters as an operand, and that updates the state or leaves it."""

    weight: jax.Array
    tau: jax.Array

    def __call__(self, x, h):
        def update(h, weight):
            return h * jnp.exp(-1.0 / self.tau) + weight @ x

        h = lax.cond(x[0] > 0, update, lambda h, weight: h, h, self.weight)
        return h, h


class Substeps(eqx.Module):
    """An ODE of a recurrent network, by several steps of Euler's method for each input."""

    enter: jax.Array
    recurrent: jax.Array
    tau: jax.Array
    loop: Callable = eqx.field(static=True)

    def __call__(self, x, h):
        def euler(h):
            dh = -h + jnp.tanh(self.recurrent @ h + self.enter @ x)
            return h + 0.2 * dh / self.tau

        h = self.loop(euler, h)
        return h, h


def by_scan(body, h):
    return lax.scan(lambda h, _: (body(h), None), h, length=3)[0]


def by_fori(body, h):
    return lax.fori_loop(0, 3, lambda _, h: body(h), h)


def by_checkpoint(body, h):
    return by_scan(jax.checkpoint(body), h)


class LeakInLoop(eqx.Module):
    """The weight is outside; in the loop there is a leak with a time constant of its own."""

    weight: jax.Array
    tau: jax.Array
    loop: Callable = eqx.field(static=True)

    def __call__(self, x, h):
        current = self.weight @ x
        h = self.loop(lambda h: h + 0.3 * (current - h) / self.tau, h)
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


@model
def VmappedCell(x, h, cell):
    """One cell for each of several channels, the weight being shared."""
    h = jax.vmap(cell)(x, h)
    return h, h


@model
def WhileWithoutWeights(x, h, weight):
    """The input is halved until it is small: a loop of unknown length that no weight enters."""
    x = lax.while_loop(lambda x: jnp.sum(x**2) > 0.5, lambda x: 0.5 * x, x)
    h = 0.7 * h + weight @ x
    return h, h


@model
def WhileAroundWeight(x, h, weight):
    settle = lambda h: jnp.tanh(weight @ h + x)
    h = lax.while_loop(lambda h: jnp.sum(h**2) > 0.1, settle, h)
    return h, h


@jax.custom_jvp
def threshold(v, theta):
    """A step with a surrogate derivative in both arguments."""
    return jnp.where(v > theta, 1.0, 0.0)


@threshold.defjvp
def _(primals, tangents):
    (v, theta), (dv, dtheta) = primals, tangents
    slope = 1 / (1 + jnp.abs(v - theta)) ** 2
    return threshold(v, theta), slope * (dv - dtheta)


@jax.custom_vjp
def scaled(w, x):
    """A product whose derivative in the weight is made twice as large."""
    return w @ x


scaled.defvjp(
    lambda w, x: (w @ x, (w, x)),
    lambda given, g: (2 * jnp.outer(g, given[1]), given[0].T @ g),
)


@jax.custom_vjp
def clipped(h):
    """The identity; its cotangent is clipped."""
    return h


clipped.defvjp(lambda h: (h, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@model
def Threshold(x, v, weight, theta):
    z = threshold(v, theta)
    v = 0.8 * v * (1 - z) + weight @ x
    return threshold(v, theta), v


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


class Filtered(eqx.Module):
    """Derivatives by Equinox's own decorators."""

    linear: eqx.nn.Linear
    function: Callable = eqx.field(static=True)

    def __call__(self, x, h):
        if self.function is rounded:
            current = self.linear(x)
            h = rounded(0.7 * h + current)
        else:
            h = 0.7 * h + self.function(self.linear, x)
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
def Bounded(x, h, weight, tau):
    """Equinox's loop of unknown but bounded length: it ends when the state has settled."""
    current = weight @ x
    unsettled = lambda h: jnp.sum((current - h) ** 2) > 0.5
    relax = lambda h: h + 0.3 * (current - h) / tau
    h = eqx.internal.while_loop(unsettled, relax, h, max_steps=4, kind="bounded")
    return h, h


@model
def Unitary(x, h, skew, weight):
    """The matrix exponential of a skew matrix rotates the state."""
    h = jax.scipy.linalg.expm(0.3 * (skew - skew.T)) @ h + weight @ x
    return h, h


class Chunk(eqx.Module):
    """A step is a chunk of inputs; the linear recurrence in it is an associative scan."""

    decay: jax.Array
    weight: jax.Array

    def __call__(self, xs, h):
        drive = xs @ self.weight.T
        decay = jnp.broadcast_to(jax.nn.sigmoid(self.decay), drive.shape)
        drive = drive.at[0].add(decay[0] * h)

        def combine(one, two):
            return one[0] * two[0], two[0] * one[1] + two[1]

        _, hs = lax.associative_scan(combine, (decay, drive))
        return jnp.tanh(hs), hs[-1]


@model
def Implicit(x, h, weight, recurrent):
    """One step of the implicit Euler method: a linear system for each step."""
    h = jnp.linalg.solve(jnp.eye(len(h)) - 0.2 * recurrent, h + weight @ x)
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
