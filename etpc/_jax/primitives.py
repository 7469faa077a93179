"""A record of facts for each of JAX's primitives, keyed on the primitive.

The families are listed here. Pattern rules and kinds of weight operation are functions, and the modules
that define them register them. A name that JAX does not have is an error: all of these are in JAX
0.10.2 to 0.12. A primitive without a record is dense, its results are new values, and it moves no data.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import InputTypeError, origin
from . import (
    Primitive,
    bcoo_dot_general_primitive,
    etp_p,
    optimization_barrier_p,
    prims,
    pvary_p,
    split_p,
    stack_p,
    tile_p,
)

BCOO = bcoo_dot_general_primitive
"""Stands for the product of a sparse and a dense array, a primitive that exists once its module is imported."""
Key = Primitive | Callable[[], Primitive | None]


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts about one primitive."""

    element_wise: bool = False
    """Each element of the result is one function of the elements at its place in the operands."""
    rearranges: Any = None
    """The results have the elements of the operands, or copies of them, at places that data does not change: a
    function of NumPy arrays that does the same, `rearranges(*arrays, **params) -> [arrays]`."""
    data_movement: bool = False
    """It does not change values, but for a conversion that rounds; data may say where they go."""
    keeps: bool = False
    """It is data movement, and each element of its operands is among its results."""
    linear: bool = False
    """It is linear in each float operand, with the other operands held constant. All that moves data is linear too."""
    singular: bool = False
    """It is element-wise, and its derivative is infinite somewhere."""
    heavy: bool = False
    """It is worth batching over the steps of a window."""
    by_step: bool = False
    """It must run step by step: batched, JAX makes a dense array of the sparse operand for each vector."""
    pattern: Any = None
    """The rule by which sparsity patterns pass through, as `etpc.analyse._interpreter.Rule`."""
    kind: Any = None
    """The rule that gives the kind of a weight operation, an `etpc.ops.KindRule`."""


FACTS: dict[Key, Facts] = {}


def facts(primitive: Primitive) -> Facts:
    """The facts about a primitive."""
    return FACTS.get(_key(primitive), Facts())


def forget(primitive: Primitive, name: str) -> None:
    """Take one fact out of the record of a primitive."""
    FACTS[_key(primitive)] = dataclasses.replace(facts(primitive), **{name: Facts.__dict__[name]})


def register(primitives: Iterable[Key], **known: Any) -> None:
    """Add facts to the records of primitives. A rule that is defined again takes the place of the one before.

    **Raises** `ValueError` where one has such a fact already.
    """
    for key in map(_key, primitives):
        old = FACTS.get(key, Facts())
        for name in known:
            fact = getattr(old, name)
            if fact and not (callable(fact) and origin(fact) == origin(known[name])):
                shown = getattr(key, "name", "bcoo_dot_general")
                raise ValueError(f"the primitive {shown} has a {name} already: {fact}")
        FACTS[key] = dataclasses.replace(old, **known)


def check_rule(primitive: Any, what: str, rule: Any, call: str) -> None:
    """**Raises** `InputTypeError` where a rule cannot be called as `call` says, or is for no primitive."""
    if not isinstance(primitive, Primitive):
        raise InputTypeError(
            f"A {what} rule is registered for a primitive of JAX, not {primitive!r}."
        )
    try:
        inspect.signature(rule).bind(*call.split(","))
    except TypeError as error:
        raise InputTypeError(
            f"The {what} rule of {primitive.name} is called as `{call}`: {error}."
        ) from None


def named(*names: str) -> list[Primitive]:
    """Primitives by their names. **Raises** `AttributeError` for one that JAX does not have."""
    return [getattr(prims, name + "_p") for name in names]


def _key(primitive: Key) -> Key:
    return BCOO if primitive is BCOO() else primitive


UNLISTED = [p for p in (split_p, stack_p, tile_p) if p is not None]
"""Primitives that JAX does not list; where it composes one of others, there is none."""

IDENTITIES = [
    p
    for p in (
        etp_p,
        *named("name", "device_put", "sharding_constraint"),
        optimization_barrier_p,
        pvary_p,
    )
    if p is not None
]
"""Primitives whose results are their operands."""

_ELEMENT_WISE = (
    *("add", "add_jaxvals", "sub", "mul", "div", "rem", "neg", "sign", "abs", "max", "min", "pow"),
    *("integer_pow", "square", "sqrt", "rsqrt", "cbrt", "exp", "exp2", "expm1", "log", "log1p"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh"),
    *("acosh", "atanh", "logistic", "erf", "erfc", "erf_inv", "floor", "ceil", "round"),
    *("is_finite", "eq", "ne", "lt", "le", "gt", "ge", "not", "and", "or", "xor", "select_n"),
    *("clamp", "convert_element_type", "reduce_precision", "copy", "real", "imag", "conj"),
    *("complex", "stop_gradient"),
)
_LINEAR = ("add", "add_jaxvals", "sub", "mul", "scatter_add", "dot_general", "conv_general_dilated")
_SINGULAR = (
    *("sqrt", "rsqrt", "cbrt", "log", "log1p", "pow", "integer_pow", "div"),
    *("acos", "asin", "acosh", "atanh"),
)
_KEEPING = (
    *("reshape", "squeeze", "transpose", "rev", "broadcast_in_dim", "concatenate", "copy"),
    "convert_element_type",
)
_DROPPING = ("slice", "pad", "dynamic_slice", "dynamic_update_slice", "gather", "scatter")

register(named(*_ELEMENT_WISE), element_wise=True)
register([*named(*_LINEAR), BCOO], linear=True)
register(named(*_SINGULAR), singular=True)
register([*named(*_KEEPING), *IDENTITIES, *UNLISTED], data_movement=True, keeps=True)
register(named(*_DROPPING), data_movement=True)
register(named("dot_general", "conv_general_dilated"), heavy=True)
register([BCOO], by_step=True)
