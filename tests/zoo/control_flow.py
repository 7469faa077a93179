"""Steps with control flow: weights inside it, around it, and in nested functions."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax


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


class WeightAsCarry(eqx.Module):
    """The weight is a carry of a loop, which does not change it."""

    weight: jax.Array

    def __call__(self, x, h):
        def body(_, carry):
            w, h = carry
            return w, 0.5 * h + w @ x

        _, h = lax.fori_loop(0, 2, body, (self.weight, h))
        return h, h


class Powers(eqx.Module):
    """A loop over parameters alone: the effective weight is a power of the parameter."""

    weight: jax.Array

    def __call__(self, x, h):
        effective = lax.fori_loop(0, 2, lambda _, w: jnp.tanh(w @ self.weight), self.weight)
        h = 0.7 * h + effective @ x
        return h, h


class VmappedCell(eqx.Module):
    """One cell for each of several channels, the weight being shared."""

    cell: eqx.nn.GRUCell

    def __call__(self, x, h):
        h = jax.vmap(self.cell)(x, h)
        return h, h


class WhileWithoutWeights(eqx.Module):
    """The input is halved until it is small: a loop of unknown length that no weight enters."""

    weight: jax.Array

    def __call__(self, x, h):
        x = lax.while_loop(lambda x: jnp.sum(x**2) > 0.5, lambda x: 0.5 * x, x)
        h = 0.7 * h + self.weight @ x
        return h, h


class WhileAroundWeight(eqx.Module):
    weight: jax.Array

    def __call__(self, x, h):
        settle = lambda h: jnp.tanh(self.weight @ h + x)
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


class Threshold(eqx.Module):
    weight: jax.Array
    theta: jax.Array

    def __call__(self, x, v):
        z = threshold(v, self.theta)
        v = 0.8 * v * (1 - z) + self.weight @ x
        return threshold(v, self.theta), v


class CustomProduct(eqx.Module):
    weight: jax.Array

    def __call__(self, x, h):
        h = 0.7 * h + scaled(self.weight, x)
        return jnp.tanh(h), h


class ClippedCotangent(eqx.Module):
    """Gradient clipping inside of the model, on the way to the output."""

    weight: jax.Array

    def __call__(self, x, h):
        h = 0.7 * h + self.weight @ x
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


class Equilibrium(eqx.Module):
    """A gain that is the root of an equation with a parameter in it."""

    weight: jax.Array
    stiffness: jax.Array

    def __call__(self, x, h):
        current = self.weight @ x
        solve = lambda i, s: root(lambda a: a + s * a**3 - i, 0.5 * i)
        h = 0.7 * h + jax.vmap(solve)(current, self.stiffness)
        return h, h


class Effects(eqx.Module):
    """Checks, prints, names and barriers, which change nothing."""

    weight: jax.Array

    def __call__(self, x, h):
        with jax.named_scope("membrane"):
            current = jax.named_call(lambda x: self.weight @ x, name="synapse")(x)
        current, h = lax.optimization_barrier((current, h))
        h = lax.reduce_precision(0.7 * h + current, 11, 52)
        return h, h


class Checked(eqx.Module):
    weight: jax.Array

    def __call__(self, x, h):
        h = eqx.error_if(0.7 * h + self.weight @ x, jnp.any(jnp.isnan(h)), "not a number")
        return h, h


class Bounded(eqx.Module):
    """Equinox's loop of unknown but bounded length: it ends when the state has settled."""

    weight: jax.Array
    tau: jax.Array

    def __call__(self, x, h):
        current = self.weight @ x
        unsettled = lambda h: jnp.sum((current - h) ** 2) > 0.5
        relax = lambda h: h + 0.3 * (current - h) / self.tau
        h = eqx.internal.while_loop(unsettled, relax, h, max_steps=4, kind="bounded")
        return h, h


class Unitary(eqx.Module):
    """The matrix exponential of a skew matrix rotates the state."""

    skew: jax.Array
    weight: jax.Array

    def __call__(self, x, h):
        h = jax.scipy.linalg.expm(0.3 * (self.skew - self.skew.T)) @ h + self.weight @ x
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


class Implicit(eqx.Module):
    """One step of the implicit Euler method: a linear system for each step."""

    weight: jax.Array
    recurrent: jax.Array

    def __call__(self, x, h):
        h = jnp.linalg.solve(jnp.eye(len(h)) - 0.2 * self.recurrent, h + self.weight @ x)
        return h, h


class Assembled(eqx.Module):
    """Everything at once: jit in vmap in scan in cond in checkpoint."""

    enter: jax.Array
    gain: jax.Array

    def __call__(self, x, h):
        @jax.checkpoint
        def run(x, h):
            drive = jax.vmap(jax.jit(lambda row: row @ x))(self.enter)

            def loop(h):
                return lax.scan(lambda h, _: (0.8 * h + drive, None), h, length=2)[0]

            return lax.cond(x[0] > 0, loop, lambda h: self.gain * h + drive, h)

        h = run(x, h)
        return h, h
