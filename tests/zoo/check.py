"""What must hold for any model, whatever it is made of.

Everything runs on T steps in windows of 2, so that each gradient but those of one whole window passes through traces.
"""

import functools
import inspect
import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etpc
from tests import helpers
from tests.helpers import (  # noqa: F401  for the tests of the zoo
    by_path,
    call,
    cell,
    compiled,
    distance,
    finite,
    known,
    weights,
)
from tests.helpers import loss as squared

T = 6
TOLERANCE = 1e-9
DECAY = 0.7


def normal(*shape, seed=0, steps=T):
    """A sequence of inputs."""
    return helpers.normal(steps, *shape, seed=seed)


def integers(high, *shape, seed=0, steps=T):
    """A sequence of integer inputs below `high`."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, (steps, *shape)), jnp.int32)


def model(function, data=2, start=None):
    """A class of models whose fields are the parameters that a step `function(x, state, *parameters)` names.

    - `start`: their initial state, if they have one of their own.
    """
    names = list(inspect.signature(function).parameters)[data:]

    def call(self, *given):
        return function(*given, *(getattr(self, name) for name in names))

    inside = {"__annotations__": dict.fromkeys(names, Any), "__call__": call}
    inside |= {"__module__": function.__module__, "__doc__": function.__doc__}
    inside |= {} if start is None else {"init_state": lambda self: start}
    return type(function.__name__, (eqx.Module,), inside)


layer = functools.partial(model, data=1)
"""The same of a `function(x, *parameters)` without a state."""


def cast(tree, dtype):
    """Every float array of a PyTree in another dtype."""
    floats = lambda a: eqx.is_array(a) and jnp.issubdtype(a.dtype, jnp.floating)
    return jax.tree.map(lambda a: a.astype(dtype) if floats(a) else a, tree)


def targets_of(inputs):
    """One number for each step."""
    return jnp.cos(2.0 * jnp.arange(len(jax.tree.leaves(inputs)[0])))


def bptt(model, inputs, state, step=call, loss=squared):
    return helpers.bptt(model, inputs, targets_of(inputs), state, step, loss)


def online(program, model, inputs, loss=squared, calls=1, batched=False, carry=None):
    """The gradient of a program, from a fresh carry; where `batched`, that of a sequence and its reversal."""
    targets = targets_of(inputs)
    if batched:
        inputs = jax.tree.map(lambda a: jnp.stack([a, a[::-1]], 1), inputs)
        targets = jnp.stack([targets, targets], 1)
    carry = program.init(2 if batched else None) if carry is None else carry
    return helpers.online(program, model, inputs, targets, carry, loss, calls)


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

    With `ETPC_SINGLE` in the environment, the model is run in float32 on a large batch instead.
    """
    if os.environ.get("ETPC_SINGLE"):
        from tests import single

        return single.check(model, inputs, state, step, loss, {"D-RTRL": etpc.D_RTRL(window=4)})

    def same(one, other):
        return distance(one, other) < tolerance

    def program(algo):
        one = jax.tree.map(lambda a: a[0], inputs)
        return etpc.compile(model, algo, inputs=one, state=state, step=step, weights="all")

    decay = functools.partial(etpc.ES_D_RTRL, decay=DECAY, everywhere=bool(smoothed))
    rules = {"rtrl": etpc.RTRL(window=2), "d_rtrl": etpc.D_RTRL(window=2)}
    if every or smoothed is not None:
        rules["es"] = decay(window=2)
    if every:
        rules |= {
            "whole": etpc.D_RTRL(window=T),
            "one, in two calls": etpc.D_RTRL(window=1),
            "uncut": etpc.D_RTRL(window=T, backprop="full"),
            "uncut, in windows": etpc.D_RTRL(window=2, backprop="full"),
            "es, whole": decay(window=T),
        }
    programs = {name: program(rule) for name, rule in rules.items()}
    d_rtrl = programs["d_rtrl"]
    if every and batched:
        programs |= {"other example": d_rtrl, "batch": d_rtrl}
    claimed = all(op.exact for op in d_rtrl.plan.ops)
    assert claimed or not exact, str(d_rtrl)
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
    if "es" in got:
        assert finite(got["es"])
    if smoothed is not None:
        assert (distance(got["es"], got["d_rtrl"]) > 1e-4) == smoothed
    if every:
        assert same(got["whole"], got["d_rtrl"])
        assert same(got["one, in two calls"], got["d_rtrl"])
        assert same(got["uncut"], got["bptt"])
        assert same(got["uncut, in windows"], got["bptt"]) or not claimed
        assert same(got["es, whole"], got["es"])
        if batched:
            mean = jax.tree.map(lambda a, b: (a + b) / 2, got["d_rtrl"], got["other example"])
            assert same(got["batch"], mean)
    return d_rtrl
