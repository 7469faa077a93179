"""Programs in float32 at the sizes that people use, against float64.

XLA chooses its fusions by dtype and size, so that a program that is right in float64 on three units may be wrong in
float32 on a batch. Programs in float32 have the fusions here that those of users have, whatever flags make the tests
compile quickly.
"""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.helpers import by_path, compiled, known, mean_loss, quickly
from tests.zoo.check import cast, normal

AS_USERS_DO = known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True})
"""XLA's fusions are its defaults, also where the environment has other ones. What LLVM makes of them is compiled
without optimisation, in a quarter of the time: it changes the last digits alone."""
WINDOW = 4
FLOOR = 2e-5
"""The relative error of a gradient in float32 that sums of thousands of terms explain."""
CONDITION = 5
"""How many times as much as BPTT loses in float32, or as the gradient changes with the last digit of the parameters, is
explained: by a network, or a rule, that amplifies rounding."""


def batches(inputs, steps, batch, seed=0):
    """A sequence [T, ...] as one of [steps, batch, ...]: its steps in random order, floats scaled at random."""
    rng = np.random.default_rng(seed)
    order = rng.integers(0, len(jax.tree.leaves(inputs)[0]), (steps, batch))

    def drawn(a):
        if jnp.issubdtype(a.dtype, jax.dtypes.extended):  # keys
            return a[jnp.asarray(order)]
        values = np.asarray(a)[order]
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return jnp.asarray(values)
        scale = rng.uniform(0.5, 1.5, (steps, batch, *[1] * (values.ndim - 2)))
        return jnp.asarray(values * scale.astype(values.real.dtype), a.dtype)

    return jax.tree.map(drawn, inputs)


def programs_of(algos, model, xs, state, step):
    """The programs of some rules, by name."""
    one = jax.tree.map(lambda a: a[0, 0], xs)
    return {
        name: etpc.compile(model, algo, inputs=one, state=state, step=step)
        for name, algo in algos.items()
    }


def nearby(tree):
    """Parameters in float64, changed by the last digit of float32."""
    rng, eps = np.random.default_rng(0), float(jnp.finfo(jnp.float32).eps)
    change = lambda a: a * (1 + eps * rng.choice([-1.0, 1.0], a.shape))
    return jax.tree.map(lambda a: change(a) if eqx.is_inexact_array(a) else a, tree)


def errors(model, algos, xs, targets, state, step, loss):
    """By rule and parameter, how far float32 is off.

    **Returns** `{(rule, path): (error, explained)}`: the error of the gradient in float32 relative to that in float64,
    and what rounding explains of it. In float64 a rule that claims to be exact has BPTT as its reference, and another
    one its own program, which must agree with BPTT where it claims to.
    """
    model, xs, targets, state = cast((model, xs, targets, state), jnp.float64)
    batch = len(jax.tree.leaves(targets)[0][0])
    with jax.enable_x64(False):  # so that constants of a step are single too
        single = jax.tree.map(_as_default, (model, xs, targets, state))
        programs = programs_of(algos, single[0], single[1], single[3], step)
        got = {}
        for name, program in programs.items():
            run, carry = program.value_and_grad(loss), program.init(batch)
            result = compiled(run, *single[:3], carry, options=AS_USERS_DO)
            got[name] = by_path(result[1])
        by_bptt = by_path(
            compiled(eqx.filter_grad(mean_loss), *single, step, loss, options=AS_USERS_DO)
        )
    assert all(g.dtype in (np.float32, np.complex64) for g in by_bptt.values())

    models = model, nearby(model)
    back = quickly(lambda *args: eqx.filter_grad(mean_loss)(*args, step, loss))
    exact = [by_path(back(m, xs, targets, state)) for m in models]
    wanted = dict.fromkeys(algos, exact)
    exact_ones = {
        name for name, p in programs.items() if all(c.claim == "exact" for c in p.claims.values())
    }
    others = {name: algo for name, algo in algos.items() if name not in exact_ones}
    for name, program in programs_of(others, model, xs, state, step).items():
        run, carry = program.value_and_grad(loss), program.init(batch)
        wanted[name] = [by_path(run(m, xs, targets, carry)[1]) for m in models]
        for path, claim in program.claims.items():
            if claim.claim == "exact":
                assert _off(wanted[name][0][path], exact[0][path]) < 1e-9, (name, path)

    found = {}
    for name, (gradient, near) in wanted.items():
        for path, g in gradient.items():
            lost = max(_off(by_bptt[path], exact[0][path]), _off(near[path], g))
            found[name, path] = _off(got[name][path], g), max(FLOOR, CONDITION * lost)
    if log := os.environ.get("ETPC_FLOAT32_LOG"):  # to report the largest error of a run
        test = os.environ.get("PYTEST_CURRENT_TEST", "")
        with open(log, "a") as file:
            file.writelines(
                f"{e:.2e} {e / limit:.2f} {place} {test}\n" for place, (e, limit) in found.items()
            )
    return found


def check(model, inputs, state, step, loss, algos):
    """A model of the zoo, with a sequence for one example, on a batch that makes B W S pass 10,000.

    **Returns** the program of the first rule, in float64.
    """
    floats = [a.dtype for a in jax.tree.leaves((model, inputs, state)) if eqx.is_inexact_array(a)]
    if not {np.dtype("float64"), np.dtype("complex128")}.issuperset(floats):
        pytest.skip("the model has a precision of its own")
    size = sum(a.size for a in jax.tree.leaves(state) if eqx.is_inexact_array(a))
    batch = 1 + 10_000 // (WINDOW * size)
    xs = batches(inputs, 2 * WINDOW, batch)
    targets = normal(batch, steps=2 * WINDOW)
    assert not wrong(errors(model, algos, xs, targets, state, step, loss))
    one = jax.tree.map(lambda a: a[0], inputs)
    return etpc.compile(model, next(iter(algos.values())), inputs=one, state=state, step=step)


def wrong(found):
    """Those of `errors` that rounding does not explain."""
    return {place: pair for place, pair in found.items() if not pair[0] <= pair[1]}


def _as_default(leaf):
    """An array in the types that JAX has without float64."""
    if not eqx.is_array(leaf) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    return jnp.asarray(np.asarray(leaf))


def _off(got, wanted):
    size = np.linalg.norm(wanted)
    return float(np.linalg.norm(np.asarray(got, wanted.dtype) - wanted) / (size if size else 1.0))
