"""Pattern rules of primitives that `etpc` does not know, and their check against JAX."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import (
    Equation,
    canonicalise,
    evaluate,
    forward_mode,
    is_float,
    of_real_parts,
    real_avals,
    real_parts,
    replaced,
)
from .._jax.primitives import check_rule, forget, register
from ..errors import InputError
from ..trace import Known
from . import _patterns  # noqa: F401  registers the rules
from ._interpreter import Interpreter, Patterns, Results, Rule

POINTS = 4
SHOWN = 5


def register_pattern(primitive: Any, rule: Rule, function: Callable[..., Any], *args: Any) -> None:
    """Give a primitive a rule by which sparsity patterns pass through it; without one, it is dense.

    The rule is checked at once, by `check_pattern` on a function that uses the primitive, as a pattern that
    lacks an entry makes programs claim that gradients are exact which are not.

    **Arguments:**

    - `primitive`: the JAX primitive; [`etpc.ops.primitive_of`][] finds it.
    - `rule`: called as `rule(interpreter, equation, patterns, known)`. It returns a
        [`Pattern`][etpc.analyse.Pattern] for each result of the equation, `None` for one without entries,
        or `None` where it does not know, and the results are dense.
    - `function`, `*args`: a function of arrays through which a derivative passes by the primitive, and what
        to call it with. Take more than one element along each axis.

    **Raises** `ValueError` where the primitive has a rule already; `InputError` where the rule lacks an
    entry or gives patterns of the wrong shape, or where `function` does not use it, and then the primitive has
    no rule; `InputTypeError` where it cannot be called so.
    """
    check_rule(primitive, "pattern", rule, "rule(interpreter, equation, patterns, known)")
    used: list[Equation] = []

    @functools.wraps(rule)
    def observed(
        interpreter: Interpreter, equation: Equation, patterns: Patterns, known: Known
    ) -> Results:
        used.append(equation)
        return rule(interpreter, equation, patterns, known)

    register([primitive], pattern=observed)
    try:
        check_pattern(function, *args)
        if not used:
            raise InputError(
                f"The rule of {primitive.name} was not checked, as no derivative of `function` passes through it. "
                "Pass a function whose derivative does, and float arguments."
            )
    finally:
        forget(primitive, "pattern")
    register([primitive], pattern=rule)


def check_pattern(function: Callable[..., Any], *args: Any) -> np.ndarray:
    """Compare the sparsity pattern that `etpc` finds for a function with its Jacobian at random points.

    **Arguments:**

    - `function`: a function of arrays that returns arrays, such as one operation.
    - `*args`: its arguments. Float arrays are perturbed, and random values are taken in their place; others
        are used as they are, and count as data. Indices that are known when a model is compiled are closed over.

    **Returns** the pattern, boolean [elements of the results, elements of the arguments], of the float
    leaves in order. It may have entries where the Jacobian has none.

    **Raises** `InputError` that names the missing entries where the Jacobian has one that the pattern lacks.
    """
    leaves, treedef = jax.tree.flatten(args)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    moving = [i for i, leaf in enumerate(leaves) if is_float(leaf.dtype)]
    flat = canonicalise(
        lambda *leaves: jax.tree.leaves(function(*jax.tree.unflatten(treedef, leaves))),
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
    )
    outputs, avals = [v for v in flat.outputs if v.is_float], [leaves[i] for i in moving]

    def run(parts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        env = flat.environment(replaced(given, moving, of_real_parts(parts, avals)))
        evaluate(flat.equations, env, lambda eqn, operands: forward_mode(eqn)(*operands))
        return real_parts(env[v] for v in outputs)

    parts = real_avals(avals)
    pattern = _pattern(run, parts, leaves)
    found = np.zeros(pattern.shape, bool)
    for point in range(POINTS if found.size else 0):
        keys = jax.random.split(jax.random.key(point), len(parts))
        values = [jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, parts, strict=True)]
        found |= _non_zeros(run, values, leaves)
    missing = np.argwhere(found & ~pattern)
    if len(missing):
        entries = ", ".join(f"({o}, {i})" for o, i in missing[:SHOWN].tolist())
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise InputError(
            f"The pattern lacks {len(missing)} of {found.sum()} entries of the Jacobian, as (element of the "
            f"results, element of the arguments): {entries}{more}. This is because a pattern rule leaves "
            "out a dependence, so that gradients would be called exact that are not. A rule may give "
            "too many entries, never too few: mend it, or let it return `None`, which is dense."
        )
    return pattern


def _pattern(
    run: Callable[..., list[Any]], parts: Sequence[Any], given: Sequence[Any]
) -> np.ndarray:
    """The pattern of a function of real arrays, by the rules."""
    count = len(parts)

    def tangents(*arrays: Any) -> Any:
        values, constants, dots = arrays[:count], arrays[count:-count], arrays[-count:]
        of_values = lambda moved: run(moved, constants)
        return jax.jvp(of_values, (list(values),), (list(dots),))[1]

    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*parts, *given, *parts)]
    sizes = [int(np.prod(p.shape)) for p in parts]
    interpreter = Interpreter(sum(sizes) + 1)
    rows = interpreter.run_on_seeds(canonicalise(tangents, avals), sizes) if count else []
    return np.concatenate([np.zeros((0, sum(sizes) + 1), bool), *(p.toarray() for p in rows)])[
        :, :-1
    ]


def _non_zeros(
    run: Callable[..., list[Any]], values: Sequence[Any], given: Sequence[Any]
) -> np.ndarray:
    """Where the Jacobian at one point is not zero. NaN counts as an entry."""
    of = lambda values: jnp.concatenate([jnp.ravel(y) for y in run(values, given)])
    jacobians = jax.jit(jax.jacfwd(of))(list(values))
    return np.concatenate([np.asarray(j).reshape(j.shape[0], -1) != 0 for j in jacobians], 1)
