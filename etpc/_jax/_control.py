"""Loops, and functions with derivatives of their own."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import primitives as prims

from . import params
from ._flatten import canonicalise, flatten
from ._program import Equation, Flat, Variable, evaluate, leading, partition, propagate


def unrolled(equation: Equation) -> Flat:
    """A `scan` as the operations of its iterations, one after another.

    What depends on the loop's constants alone is computed once.
    """
    loop = params.scan(equation)
    body = flatten(loop.body)
    consts, slices_from = loop.consts, loop.consts + loop.carry
    invariant, varying, _ = partition(body.equations, [*body.constants, *body.inputs[:consts]])

    def run(*operands: Any) -> list[Any]:
        env: dict[Variable, Any] = dict(body.constants)
        env.update(zip(body.inputs[:consts], operands, strict=False))
        evaluate(invariant, env)
        carry = list(operands[consts:slices_from])
        ys: list[Any] = [None] * loop.length
        for t in reversed(range(loop.length)) if loop.reverse else range(loop.length):
            slices = [jax.lax.index_in_dim(x, t, 0, keepdims=False) for x in operands[slices_from:]]
            bindings = zip(body.inputs[consts:], [*carry, *slices], strict=True)
            values = evaluate(varying, {**env, **dict(bindings)})
            out = [values[v] for v in body.outputs]
            carry, ys[t] = out[: loop.carry], out[loop.carry :]
        if not ys:  # there is no iteration
            ends = equation.outputs[loop.carry :]
            return [*carry, *(jnp.zeros(v.shape, v.aval.dtype) for v in ends)]
        return [*carry, *(jnp.stack(several) for several in zip(*ys, strict=True))]

    return canonicalise(run, [v.aval for v in equation.inputs])


def written_out(equation: Equation) -> Flat | None:
    """The operations that a `scan`, or a function with a derivative of its own, stands for; `None` for others."""
    if equation.primitive is prims.scan_p:
        return unrolled(equation)
    body = params.custom_body(equation)
    return None if body is None else flatten(body)


def active(goes_on: Any, new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """The carry after an iteration. Under `vmap` each example has a condition of its own, along the first axes of the
    carry, and keeps what it had where that is false."""
    if not jnp.ndim(goes_on):
        return list(new)
    return [jnp.where(leading(goes_on, b), a, b) for a, b in zip(new, old, strict=True)]


def is_checkpointed_loop(equation: Equation) -> bool:
    """Whether a `custom_vjp` is a loop of Equinox, whose backward rule is the loop's derivative.

    The rule is told by the object that it closes over, and not by a name that others may have too.
    """
    loop_rule = _checkpointed_loop()
    if loop_rule is None or equation.primitive is not prims.custom_vjp_call_p:
        return False
    waiting, seen = [params.backward_rule(equation)], set[int]()
    while waiting:
        value = waiting.pop()
        if value is loop_rule:
            return True
        if value is None or id(value) in seen or len(seen) > 64:
            continue
        seen.add(id(value))
        waiting += [getattr(value, name, None) for name in ("f", "func", "__wrapped__")]
        waiting += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    return False


@functools.cache
def _checkpointed_loop() -> Any:
    """The object behind Equinox's checkpointed loops; `None` where this version has none."""
    try:
        from equinox.internal._loop import checkpointed
    except ImportError:
        return None
    return getattr(checkpointed, "_checkpointed_while_loop", None)


_ONE_EXAMPLE = ("maybe_set", "nonbatchable", "select_if_vmap", "unvmap_any")


def of_one_example(equation: Equation) -> Flat | None:
    """An operation of Equinox in such a loop that acts on a whole batch under `vmap`, as JAX functions of one example;
    `None` for others."""
    if equation.primitive.name not in _ONE_EXAMPLE:
        return None

    def plain(*operands: Any) -> list[Any]:
        if equation.primitive.name == "select_if_vmap":
            return [operands[1]]  # the result of an iteration that does not run is not used
        results = equation.primitive.impl(*operands, **equation.params)
        return list(results) if equation.primitive.multiple_results else [results]

    return canonicalise(plain, [v.aval for v in equation.inputs])


def is_spike(equation: Equation) -> bool:
    """Whether an operation is a spike: it has a derivative of its own, and its true one is zero.

    Inside it, no float output depends on a float input through floats alone.
    """
    body = params.custom_body(equation)
    if body is None:
        return False
    flat = flatten(body)
    touched = propagate(flat.equations, (v for v in flat.inputs if v.is_float))
    floats = [v for v in flat.outputs if v.is_float]
    return bool(floats) and not any(v in touched for v in floats)
