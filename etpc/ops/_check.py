"""Kinds that a user registers, checked against the derivative of the operation itself."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import Equation, Primitive, canonicalise, evaluate, is_float, partition
from .._jax.primitives import check_rule, register
from ..errors import InputError
from ._kind import Kind, KindRule, Values

POINTS = 4


def register_kind(
    primitive: Primitive, rule: KindRule, function: Callable[..., Any], *args: Any
) -> None:
    """Give the weight operations of a primitive a kind of their own.

    The rule is checked at once, on a function that uses the primitive: with a wrong kind, programs would claim that
    wrong gradients are exact.

    **Arguments:**

    - `primitive`: the JAX primitive; [`etpc.ops.primitive_of`][] finds it.
    - `rule`: called with the equation, the number of the operand that is the weight, and a
        function that gives the value of a variable where it is known at compile time, else `None`.
        Returns the [`Kind`][etpc.ops.Kind], or `None` to have the general form, `Elementwise`.
    - `function`, `*args`: a function of arrays that uses the primitive, and what to call it with. Random values are
        taken in place of float arrays. Close over what is known when a model is compiled, such as indices, and take
        axes of different lengths.

    **Raises** `ValueError` where the primitive has a kind already; `InputError` where the gradient of the weight is not
    that of JAX, with the methods that are wrong, or where the rule gives no operation of `function` a kind;
    `InputTypeError` where it cannot be called so. Then nothing is registered.
    """
    check_rule(primitive, "kind", rule, "rule(equation, operand, known)")
    leaves, treedef = jax.tree.flatten(args)
    flat = canonicalise(
        lambda *leaves: jax.tree.leaves(function(*jax.tree.unflatten(treedef, leaves))), leaves
    )
    points = [
        evaluate(flat.equations, flat.environment(_random(key, leaves)))
        for key in jax.random.split(jax.random.key(0), POINTS)
    ]
    fixed = partition(flat.equations, flat.constants)[2]
    known = lambda v: np.asarray(points[0][v]) if v in fixed else None
    kinds = [
        (kind, eqn, operand)
        for eqn in flat.equations
        if eqn.primitive is primitive
        for operand, v in enumerate(eqn.inputs)
        if v.is_float and v not in fixed and (kind := rule(eqn, operand, known)) is not None
    ]
    if not kinds:
        raise InputError(
            f"The kind of {primitive.name} was not checked, as the rule gives no operation of `function` a kind. Pass "
            "a function that uses the primitive, with weight and data as float arguments, and close over what is known "
            "when a model is compiled."
        )
    for kind, eqn, operand in kinds:
        _check(kind, eqn, operand, [[values[v] for v in eqn.inputs] for values in points])
    register([primitive], kind=rule)


def _check(kind: Any, equation: Equation, operand: int, points: Sequence[Values]) -> None:
    """**Raises** `InputError` where a kind does not give JAX's gradient of the weight, with what differs."""
    lacks = [n for n in vars(Kind) if not n.startswith("_") and not hasattr(kind, n)]
    with jax.default_matmul_precision("highest"):
        problem = f"lacks {', '.join(lacks)}" if lacks else _fault(kind, equation, operand, points)
    if problem:
        raise InputError(
            f"The kind {type(kind).__name__} of {equation.primitive.name} {problem}. `etpc.ops.Kind` says what each of "
            "its methods gives."
        )


def _fault(kind: Kind, equation: Equation, operand: int, points: Sequence[Values]) -> str:
    """What a kind gets wrong, in words; empty where it gets nothing wrong. Gradients are summed over the points."""
    floats = lambda values: [value for value in values if is_float(value.dtype)]
    perturbed = equation.inputs[operand] if kind.data is None else equation.outputs[0]
    zero = jnp.zeros((kind.groups, kind.outputs), perturbed.aval.dtype)
    xs, credits, uses, wanted = list[Array](), list[Array](), list[Array](), list[Array]()
    for values in points:
        bind = lambda w, v=values: floats(equation.bind(*v[:operand], w, *v[operand + 1 :]))
        shifted = lambda delta, v=values: floats(
            kind.shift_outputs(equation.bind(*kind.shift_inputs(list(v), delta)), delta)
        )
        outputs, by_weight = jax.vjp(bind, values[operand])
        moved, by_delta = jax.vjp(shifted, zero)
        if any(map(_error, moved, outputs)):
            return "changes the operation where `shift_inputs` or `shift_outputs` adds zero"
        bars = _random(jax.random.key(1), outputs)
        wanted += by_weight(bars)
        credits += by_delta(bars)
        x = jnp.ones((kind.groups, kind.inputs), zero.dtype)
        if kind.data is not None:
            x = kind.factor([v if n == kind.data else None for n, v in enumerate(values)])
        if x.shape != (kind.groups, kind.inputs):
            return f"gives {list(x.shape)} as `factor`, not [G, I] = {[kind.groups, kind.inputs]}"
        xs.append(x)
        if kind.links is None:
            uses.append(x[:, :, None] * credits[-1][:, None])
        else:
            uses.append(x[:, kind.links.inputs] * credits[-1][:, kind.links.outputs])
    by_step = lambda a: jnp.stack(a).reshape(2, -1, *a[0].shape)  # sums are over two axes
    contracted = kind.contract(None if kind.data is None else by_step(xs), by_step(credits))
    found = {"contract": contracted, "gather": kind.gather(sum(uses[1:], uses[0]))}
    errors = {n: _error(gradient, sum(wanted[1:], wanted[0])) for n, gradient in found.items()}
    wrong = [f"`{method}` ({error})" for method, error in errors.items() if error]
    both = ", so that the fault may be in `factor`, `links` or `shift_outputs`" * (len(wrong) == 2)
    return f"gives another gradient than JAX by {' and by '.join(wrong)}{both}" if wrong else ""


def _error(found: Array, wanted: Array) -> str:
    """How an array differs from another, in words; empty where it does not."""
    if found.shape != wanted.shape:
        return f"of shape {list(found.shape)}, not {list(wanted.shape)}"
    size, error = (jnp.max(jnp.abs(a), initial=0) for a in (wanted, found - wanted))
    is_near = error <= size * jnp.finfo(wanted.dtype).eps ** 0.5
    return "" if is_near else f"a relative error of {error / size:.0e}"


def _random(key: Array, leaves: Sequence[Any]) -> list[Any]:
    """Arrays of random numbers in place of those that are floats."""
    draw = lambda n, a: jax.random.normal(jax.random.fold_in(key, n), a.shape, a.dtype)
    arrays = map(jnp.asarray, leaves)
    return [draw(n, a) if is_float(a.dtype) else a for n, a in enumerate(arrays)]
