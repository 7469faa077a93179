"""Kinds that a user registers, checked against the derivative of the operation itself."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._errors import InputError
from .._jax import Equation, Primitive, canonicalise, evaluate, is_float, partition
from .._primitives import check_rule, register
from ._kind import Kind, KindRule, Values

POINTS = 4


def register_kind(
    primitive: Primitive, rule: KindRule, function: Callable[..., Any], *args: Any
) -> None:
    """Give the weight operations of a primitive a kind of their own.

    The rule is checked at once, on a function that uses the primitive: a kind that is wrong makes programs claim that
    gradients are exact which are not.

    **Arguments:**

    - `primitive`: the JAX primitive; [`etpc.ops.primitive_of`][] finds it.
    - `rule`: called with the equation, the number of the operand that is the weight, and a
        function that gives the value of a variable where it is known at compile time, else `None`.
        Returns the [`Kind`][etpc.ops.Kind], or `None` to have the general form, `Direct`.
    - `function`, `*args`: a function of arrays that uses the primitive, and what to call it with. Random values are
        taken in place of float arrays. What is known when a model is compiled, such as indices, is closed over. Take
        axes of different lengths, more than one.

    **Raises** `ValueError` where the primitive has a kind already; `InputError` where the gradient of the weight is not
    what JAX gives, with the methods that are wrong, or where `function` has no operation to which the rule gives a
    kind; `InputTypeError` where it cannot be called so. Then the primitive has no new kind.
    """
    check_rule(primitive, "kind", rule, "rule(equation, operand, known)")
    leaves, treedef = jax.tree.flatten(args)
    flat = canonicalise(
        lambda *leaves: jax.tree.leaves(function(*jax.tree.unflatten(treedef, leaves))), leaves
    )
    environments: list[dict[Any, Any]] = []
    for key in jax.random.split(jax.random.key(0), POINTS):
        environment = flat.environment(_random(key, leaves))
        environments.append(evaluate(flat.equations, environment))
    fixed = partition(flat.equations, flat.constants)[2]
    known = lambda v: np.asarray(environments[0][v]) if v in fixed else None
    is_checked = False
    for eqn in flat.equations:
        for operand, weight in enumerate(eqn.inputs):
            if eqn.primitive is not primitive or not weight.is_float or weight in fixed:
                continue
            kind = rule(eqn, operand, known)
            if kind is not None:
                check_kind(kind, eqn, operand, [[e[v] for v in eqn.inputs] for e in environments])
                is_checked = True
    if not is_checked:
        raise InputError(
            f"The kind of {primitive.name} was not checked, as its rule gives no operation of `function` a kind. Pass "
            "a function that uses the primitive, with the weight and the data as float arguments, and close over what "
            "is known when a model is compiled, such as indices."
        )
    register([primitive], kind=rule)


def check_kind(kind: Kind, equation: Equation, operand: int, points: Sequence[Values]) -> None:
    """Compare the gradient of a weight, as a kind gives it, with JAX's, at some values of the operands.

    **Raises** `InputError` that names what differs.
    """
    lacks = [n for n in vars(Kind) if not n.startswith("_") and not hasattr(kind, n)]
    problem = f"lacks {', '.join(lacks)}. `etpc.ops.Kind` says what each of them is"
    if not lacks:
        with jax.default_matmul_precision("highest"):
            problem = _difference(kind, equation, operand, points)
    if problem:
        raise InputError(f"The kind {type(kind).__name__} of {equation.primitive.name} {problem}.")


class _Point(NamedTuple):
    """An operation at some values of its operands, and with a perturbation of zero; and what the gradient of the weight
    is made of, for random cotangents."""

    outputs: list[Any]
    shifted: list[Any]
    wanted: Array
    """The gradient, by JAX."""
    credit: Array
    x: Array


def _at(kind: Kind, equation: Equation, operand: int, key: Array, values: Values) -> _Point:
    def of_weight(weight: Array) -> list[Any]:
        return _floats(equation.bind(*values[:operand], weight, *values[operand + 1 :]))

    def of_delta(delta: Array) -> list[Any]:
        outputs = equation.bind(*kind.shift_inputs(list(values), delta))
        return _floats(kind.shift_outputs(outputs, delta))

    perturbed = equation.inputs[operand] if kind.data is None else equation.outputs[0]
    zero = jnp.zeros((kind.groups, kind.outputs), perturbed.aval.dtype)
    outputs, by_weight = jax.vjp(of_weight, values[operand])
    shifted, by_delta = jax.vjp(of_delta, zero)
    bars = _random(key, outputs)
    x = jnp.ones((kind.groups, kind.inputs), zero.dtype)
    if kind.data is not None:
        x = kind.factor([v if n == kind.data else None for n, v in enumerate(values)])
    return _Point(outputs, shifted, *by_weight(bars), *by_delta(bars), x)


def _difference(kind: Kind, equation: Equation, operand: int, points: Sequence[Values]) -> str:
    """What of a kind does not agree with JAX, in words; empty where all does."""
    keys = jax.random.split(jax.random.key(1), len(points))
    at = [_at(kind, equation, operand, k, values) for k, values in zip(keys, points, strict=True)]
    if any(map(_error, at[0].shifted, at[0].outputs)):
        return (
            "is wrong: `shift_inputs` or `shift_outputs` changes the operation where it adds zero"
        )
    if at[0].x.shape != (kind.groups, kind.inputs):
        shape = [kind.groups, kind.inputs]
        return f"is wrong: `factor` gives an array {list(at[0].x.shape)}, and not [G, I] = {shape}"
    x, credit = (jnp.stack(arrays) for arrays in zip(*((p.x, p.credit) for p in at), strict=True))
    if kind.links is None:
        uses = x[..., None] * credit[..., None, :]
    else:
        uses = x[..., kind.links.inputs] * credit[..., kind.links.outputs]
    by_step = lambda a: a.reshape(2, -1, *a.shape[1:])  # sums are over two axes, steps and examples
    data = None if kind.data is None else by_step(x)
    found = {"contract": kind.contract(data, by_step(credit)), "gather": kind.gather(uses.sum(0))}
    wanted = sum(p.wanted for p in at[1:]) + at[0].wanted
    errors = {method: _error(gradient, wanted) for method, gradient in found.items()}
    wrong = [f"`{method}` ({error})" for method, error in errors.items() if error]
    if not wrong:
        return ""
    why = (
        ", so that what they get may be wrong: `factor`, `shift_inputs`, `shift_outputs` or `links`"
    )
    both = why if len(wrong) == 2 else ""
    return f"gives another gradient of the weight than JAX, by {' and by '.join(wrong)}{both}"


def _floats(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if is_float(value.dtype)]


def _error(found: Array, wanted: Array) -> str:
    """How an array differs from another, in words; empty where it does not."""
    if found.shape != wanted.shape:
        return f"of shape {list(found.shape)}, and not {list(wanted.shape)}"
    size = jnp.max(jnp.abs(wanted), initial=0)
    error = jnp.max(jnp.abs(found - wanted), initial=0)
    is_near = error <= size * jnp.finfo(wanted.dtype).eps ** 0.5
    return "" if is_near else f"with a relative error of {error / size:.0e}"


def _random(key: Array, leaves: Sequence[Any]) -> list[Any]:
    """Arrays of random numbers in place of those that are floats."""
    keys, arrays = jax.random.split(key, max(len(leaves), 1)), map(jnp.asarray, leaves)
    return [
        jax.random.normal(k, a.shape, a.dtype) if is_float(a.dtype) else a
        for k, a in zip(keys, arrays, strict=False)
    ]


__all__ = ["check_kind", "register_kind"]
