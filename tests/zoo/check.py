"""What must hold for any model, whatever it is made of.

The reference is written here, by `jax.grad` through `lax.scan` of the step, and shares nothing with `etpc`. Everything
runs on T steps in windows of 2, so that each gradient but those of one whole window passes through traces.
"""

import contextlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etpc

T = 6
TOLERANCE = 1e-9
DECAY = 0.7


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
"""Compiler options: what is compiled here runs once."""


# --- parts of models ------------------------------------------------------------------------------


def normal(*shape, seed=0, steps=T):
    """A sequence of inputs."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(steps, *shape)))


def integers(high, *shape, seed=0, steps=T):
    """A sequence of integer inputs below `high`."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, (steps, *shape)), jnp.int32)


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


# --- gradients ------------------------------------------------------------------------------------


def squared(y, target):
    """The loss of one example at one step, for outputs of any structure, real or complex."""
    leaves = [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.inexact)]
    errors = [a - target.astype(a.dtype) for a in leaves]
    return sum(jnp.sum(jnp.real(e * jnp.conj(e))) for e in errors)


def targets_of(inputs):
    """One number for each step."""
    return jnp.cos(2.0 * jnp.arange(len(jax.tree.leaves(inputs)[0])))


def bptt(model, inputs, state, step=call, loss=squared):
    """Backpropagation through time: reverse mode through a scan of the step."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def total(model):
        def body(now, given):
            x, target = given
            y, after = step(model, x, eqx.combine(now, rest))
            return eqx.filter(after, eqx.is_array), loss(y, target)

        return jax.lax.scan(body, arrays, (inputs, targets_of(inputs)))[1].sum()

    return eqx.filter_grad(total)(model)


def online(program, model, inputs, loss=squared, calls=1, batched=False, carry=None):
    """The gradient of a program, in one or more calls of equal length, from a fresh carry.

    Where `batched`, that of a batch of the sequence and its reversal.
    """
    targets = targets_of(inputs)
    if batched:
        inputs = jax.tree.map(lambda a: jnp.stack([a, a[::-1]], 1), inputs)
        targets = jnp.stack([targets, targets], 1)
    carry = program.init(2 if batched else None) if carry is None else carry
    grad = program.value_and_grad(loss, "sum")
    total, length = None, len(targets) // calls
    for i in range(calls):
        part = jax.tree.map(lambda a, i=i: a[i * length : (i + 1) * length], (inputs, targets))
        (_, carry), grads = grad(model, *part, carry)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return total


def compiled(function, *args, options=QUICKLY):
    """`function(*args)`, compiled as a whole; nothing of `args` is known to the compiler."""
    arrays, rest = eqx.partition(args, eqx.is_array)
    run = lambda arrays: function(*eqx.combine(arrays, rest))
    return jax.jit(run, compiler_options=options)(arrays)


# --- comparisons ----------------------------------------------------------------------------------


def by_path(grads):
    return {jax.tree_util.keystr(k): np.asarray(g) for k, g in jax.tree.leaves_with_path(grads)}


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


def check(
    model,
    inputs,
    state,
    step=call,
    *,
    exact=False,
    dead=(),
    smoothed=None,
    every=False,
    batched=True,
    loss=squared,
    tolerance=TOLERANCE,
):
    """Online gradients of a model against backpropagation through time.

    - `inputs`: a sequence, leading axis T. `state`: the initial state.
    - `exact`: the model must be said to be exact. Where it is said, it must hold, asked for or not.
    - `dead`: parameters whose gradient is zero, by path; all others must have one.
    - `smoothed`: whether ES-D-RTRL gives another gradient than D-RTRL; `None` where it is not run.
    - `every`: also run ES-D-RTRL, and that windows, calls and batches do not change the gradient.
    - `batched`: whether a batch is the mean of its examples; not with noise of their own.
    - `tolerance`: of what must be equal, for other dtypes than float64.

    **Returns** the program of D-RTRL.
    """

    def same(one, other):
        return distance(one, other) < tolerance

    def program(algo):
        one = jax.tree.map(lambda a: a[0], inputs)
        return etpc.compile(model, algo, inputs=one, state=state, step=step, weights="all")

    d_rtrl, rtrl = program(etpc.D_RTRL(window=2)), program(etpc.RTRL(window=2))
    claimed = all(op.exact for op in d_rtrl.plan.ops)
    assert claimed or not exact, str(d_rtrl)
    es = program(etpc.ES_D_RTRL(decay=DECAY, window=2)) if every or smoothed is not None else None
    if every:
        one, whole = program(etpc.D_RTRL(window=1)), program(etpc.D_RTRL(window=T))
        uncut = program(etpc.D_RTRL(window=T, backprop="full"))
        es_whole = program(etpc.ES_D_RTRL(decay=DECAY, window=T))

    programs = {"rtrl": rtrl, "d_rtrl": d_rtrl, "es": es}
    if every:
        programs |= {
            "whole": whole,
            "one, in two calls": one,
            "uncut": uncut,
            "es, whole": es_whole,
        }
        if batched:
            programs |= {"other example": d_rtrl, "batch": d_rtrl}
    programs = {name: p for name, p in programs.items() if p is not None}
    carries = {name: p.init(2 if name == "batch" else None) for name, p in programs.items()}

    def gradients(model, inputs, carries):
        found = {"bptt": bptt(model, inputs, state, step, loss)}
        for name, p in programs.items():
            back = name == "other example"
            xs = jax.tree.map(lambda a: a[::-1], inputs) if back else inputs
            calls = 2 if name == "one, in two calls" else 1
            batch = name == "batch"
            found[name] = online(p, model, xs, loss, calls, batch, carries[name])
        return found

    got = compiled(gradients, model, inputs, carries)
    for path, g in by_path(got["bptt"]).items():
        assert np.all(np.isfinite(g)), path
        assert (np.max(np.abs(g), initial=0.0) > 1e-8) == (path not in dead), path
    assert same(got["rtrl"], got["bptt"])
    if claimed:
        assert same(got["d_rtrl"], got["bptt"])
    if es is not None:
        assert finite(got["es"])
    if smoothed is not None:
        assert (distance(got["es"], got["d_rtrl"]) > 1e-4) == smoothed
    if every:
        assert same(got["whole"], got["d_rtrl"])
        assert same(got["one, in two calls"], got["d_rtrl"])
        assert same(got["uncut"], got["bptt"])
        assert same(got["es, whole"], got["es"])
        if batched:
            mean = jax.tree.map(lambda a, b: (a + b) / 2, got["d_rtrl"], got["other example"])
            assert same(got["batch"], mean)
    return d_rtrl
