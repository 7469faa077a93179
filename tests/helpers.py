"""What many tests share: losses, gradients, comparisons, and functions that are compiled quickly.

Backpropagation through time is written here by `jax.grad` through `lax.scan` of the step, and shares nothing with
`etpc`.
"""

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]


def known(options):
    """Those of some compiler options that this version of the compiler has."""
    found = {}
    for name, value in options.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: jnp.zeros(()), compiler_options={name: value})()
            found[name] = value
    return found


QUICKLY = known(
    {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    }
)
"""Compiler options: what is compiled here runs a few times."""


def quickly(function):
    """`eqx.filter_jit` with the options of `QUICKLY`; NumPy arrays are arguments too."""

    @functools.partial(jax.jit, static_argnums=(1, 2), compiler_options=QUICKLY)
    def call(arrays, rest, tree):
        leaves = [r if a is None else a for a, r in zip(arrays, rest, strict=True)]
        return function(*jax.tree.unflatten(tree, leaves))

    @functools.wraps(function)
    def wrapper(*args):
        leaves, tree = jax.tree.flatten(args)
        is_array = [isinstance(a, jax.Array | np.ndarray) for a in leaves]
        arrays = [a if one else None for a, one in zip(leaves, is_array, strict=True)]
        rest = tuple(None if one else a for a, one in zip(leaves, is_array, strict=True))
        return call(arrays, rest, tree)

    return wrapper


def compiled(function, *args, options=QUICKLY):
    """`function(*args)`, compiled as a whole; nothing of `args` is known to the compiler."""
    arrays, rest = eqx.partition(args, eqx.is_array)
    run = lambda arrays: function(*eqx.combine(arrays, rest))
    return jax.jit(run, compiler_options=options)(arrays)


def in_a_process(*arguments, **environment):
    """What another Python prints, as `python *arguments`, with more environment variables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- models and data ------------------------------------------------------------------------------


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def weights(*shape, seed=0, scale=1.0):
    """A parameter whose rows have a norm of about `scale`."""
    fan_in = shape[-1] if len(shape) > 1 else 1
    drawn = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(scale * drawn / np.sqrt(fan_in))


def call(model, x, state):
    """The model's own way to be called."""
    return model(x, state)


def cell(model, x, state):
    """How the cells of Equinox are called; the output is the first of their states."""
    state = model(x, state)
    return jax.tree.leaves(state)[0], state


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + v**2)  # wide, so that the networks are alive


@jax.custom_vjp
def spike_vjp(v):
    return (v > 0).astype(v.dtype)


spike_vjp.defvjp(lambda v: (spike_vjp(v), v), lambda v, g: (g / (1 + v**2),))


@jax.custom_jvp
def spike_over(v, threshold):
    """A spike with a surrogate derivative in both arguments."""
    return (v > threshold).astype(v.dtype)


@spike_over.defjvp
def _(primals, tangents):
    v, threshold = primals
    out = (tangents[0] - tangents[1]) / (1 + (v - threshold) ** 2)
    return spike_over(v, threshold), out.astype(v.dtype)


def loss(y, target):
    """The squares of one example at one step, for outputs of any structure, real or complex.

    A list of targets has one for each float leaf of the output; a single one is that of all.
    """
    leaves = [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.inexact)]
    targets = target if isinstance(target, list) else [target] * len(leaves)
    errors = [a - jnp.asarray(b).astype(a.dtype) for a, b in zip(leaves, targets, strict=True)]
    return sum(jnp.sum(jnp.real(e * jnp.conj(e))) for e in errors)


# --- gradients ------------------------------------------------------------------------------------


def loss_of_sequence(model, xs, targets, state, step=call, loss=loss, stop=False):
    """The loss of one example, summed over its steps; with `stop` each step takes its old state as data."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def body(old, step_data):
        x, target = step_data
        old = jax.lax.stop_gradient(old) if stop else old
        y, new = step(model, x, eqx.combine(old, rest))
        return eqx.filter(new, eqx.is_array), loss(y, target)

    return jax.lax.scan(body, arrays, (xs, targets))[1].sum()


def mean_loss(model, xs, targets, state=None, step=call, loss=loss):
    """The mean loss of a batch of examples [T, B, ...], which begin at `state`, or where the model says."""
    state = model.init_state() if state is None else state
    one = lambda xs, targets: loss_of_sequence(model, xs, targets, state, step, loss)
    return jax.vmap(one, in_axes=1)(xs, targets).mean() / len(jax.tree.leaves(targets)[0])


def bptt(model, *sequence, **options):
    """Backpropagation through time: the gradient of `loss_of_sequence`."""
    return eqx.filter_grad(lambda model: loss_of_sequence(model, *sequence, **options))(model)


def online(program, model, xs, targets, carry, loss=loss, calls=1):
    """The gradient of a program, of the loss summed over time, in one or more calls of equal length."""
    run, total = program.value_and_grad(loss, "sum"), None
    length = len(jax.tree.leaves(xs)[0]) // calls
    for start in range(0, calls * length, length):
        part = jax.tree.map(lambda a, at=start: a[at : at + length], (xs, targets))
        (_, carry), grads = run(model, *part, carry)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return total


# --- comparisons ----------------------------------------------------------------------------------


def numbers(tree):
    """The leaves of a tree as arrays of numbers, which PRNG keys consist of."""
    is_key = lambda a: jnp.issubdtype(getattr(a, "dtype", bool), jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(tree)]


def arrays(tree):
    """Its arrays alone."""
    return numbers(eqx.filter(tree, lambda a: hasattr(a, "dtype")))


def close(one, other, tolerance=1e-12):
    """The arrays of two trees are equal but for rounding; integers and keys are equal."""
    for a, b in zip(arrays(one), arrays(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def same(one, other):
    """The arrays of two trees are equal bit by bit."""
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


def by_path(grads):
    """The arrays of a gradient by the paths that programs give them: that of a single array is "model"."""
    leaves = jax.tree.leaves_with_path(grads)
    return {jax.tree_util.keystr(path) or "model": np.asarray(g) for path, g in leaves}


def distance(one, other):
    """The largest difference of two gradients, parameter by parameter, each relative to its size."""
    one, other = by_path(one), by_path(other)
    assert one.keys() == other.keys()
    found = [0.0]
    for path, b in other.items():
        assert one[path].shape == b.shape
        assert one[path].dtype == b.dtype
        error, size = (np.max(np.abs(a), initial=0.0) for a in (one[path] - b, b))
        found.append(float(error / (size if size > 0 else 1.0)))
    return float(np.max(found))  # not a number stays so


def finite(grads):
    return all(np.all(np.isfinite(g)) for g in by_path(grads).values())


def alive(grads, least=1e-6):
    """Whether a comparison is not one of zeros."""
    return any(np.abs(g).max(initial=0.0) > least for g in by_path(grads).values())
