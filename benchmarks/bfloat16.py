"""What a TPU computes of a function, on a CPU: products of float32 arrays from factors rounded to bfloat16.

That is what a TPU does with a product of default precision, whose terms it adds up in float32. All else, and a product
of a higher precision, is computed as it is written. A TPU may compute a product with a vector in full, so that no more
is rounded there than here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.core import primitives as prims

PRODUCTS = (prims.dot_general_p, prims.conv_general_dilated_p)
BODIES = {
    prims.jit_p: "jaxpr",
    prims.remat_p: "jaxpr",
    prims.closed_call_p: "call_jaxpr",
    prims.custom_jvp_call_p: "call_jaxpr",
    prims.custom_vjp_call_p: "call_jaxpr",
}
"""What calls a program once, and the parameter that holds it."""


def rounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of PyTrees of arrays, with its products as a TPU computes them.

    Raises `NotImplementedError` for products that would be rounded inside what is no call, loop or branch.
    """

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(
            jax.tree.structure(shape), evaluate(closed, jax.tree.leaves(args))
        )

    return run


def evaluate(program: ClosedJaxpr | Jaxpr, args: Sequence[Any]) -> list[Any]:
    """The results of a program, with its products as a TPU computes them."""
    closed = program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    known |= dict(zip(jaxpr.invars, args, strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
    for eqn in jaxpr.eqns:
        known |= dict(zip(eqn.outvars, _results(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def products(program: ClosedJaxpr | Jaxpr) -> tuple[int, int]:
    """How many products a program has, in calls, loops and branches too, and how many of these are rounded."""
    count = of_default = 0
    for eqn in program.eqns:
        inner = [products(body) for body in _programs(eqn)]
        count += (eqn.primitive in PRODUCTS) + sum(n for n, _ in inner)
        of_default += _is_rounded(eqn) + sum(n for _, n in inner)
    return count, of_default


def to_bfloat16(a: Array) -> Array:
    """float32 numbers, or complex ones of these, with the bits that bfloat16 has. XLA may drop a conversion there and
    back, and never this."""
    if a.dtype == jnp.complex64:
        return lax.complex(to_bfloat16(a.real), to_bfloat16(a.imag))
    return lax.reduce_precision(a, 8, 7) if a.dtype == jnp.float32 else a


def _is_rounded(eqn: JaxprEqn) -> bool:
    if eqn.primitive not in PRODUCTS:
        return False
    precision = eqn.params["precision"]
    of_factors = precision if isinstance(precision, tuple) else (precision,)
    return all(p in (None, lax.Precision.DEFAULT) for p in of_factors)


def _programs(eqn: JaxprEqn) -> list[ClosedJaxpr | Jaxpr]:
    leaves = jax.tree.leaves(
        eqn.params, is_leaf=lambda value: isinstance(value, ClosedJaxpr | Jaxpr)
    )
    return [value for value in leaves if isinstance(value, ClosedJaxpr | Jaxpr)]


def _results(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    if eqn.primitive in BODIES:
        return evaluate(eqn.params[BODIES[eqn.primitive]], values)
    if eqn.primitive is prims.scan_p:
        return _scan(values, **eqn.params)
    if eqn.primitive is prims.while_p:
        return _while(values, **eqn.params)
    if eqn.primitive is prims.cond_p:
        branches = [partial(_branch, branch) for branch in eqn.params["branches"]]
        return lax.switch(values[0], branches, *values[1:])
    if any(products(program)[1] for program in _programs(eqn)):
        raise NotImplementedError(f"{eqn.primitive} has products inside that are not looked into.")
    if _is_rounded(eqn):
        values = [to_bfloat16(jnp.asarray(value)) for value in values]
    results = eqn.primitive.bind(*values, **eqn.params)
    return results if eqn.primitive.multiple_results else [results]


def _branch(branch: ClosedJaxpr, *values: Any) -> list[Any]:
    return evaluate(branch, values)


def _scan(
    values: list[Any],
    *,
    jaxpr: ClosedJaxpr,
    num_consts: int,
    num_carry: int,
    length: int,
    reverse: bool,
    unroll: int,
    **_: Any,
) -> list[Any]:
    consts, rest = values[:num_consts], values[num_consts:]

    def body(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        results = evaluate(jaxpr, [*consts, *carry, *xs])
        return results[:num_carry], results[num_carry:]

    options: Any = dict(length=length, reverse=reverse, unroll=unroll)
    last, ys = lax.scan(body, rest[:num_carry], rest[num_carry:], **options)
    return [*last, *ys]


def _while(
    values: list[Any],
    *,
    cond_nconsts: int,
    cond_jaxpr: ClosedJaxpr,
    body_nconsts: int,
    body_jaxpr: ClosedJaxpr,
    **_: Any,
) -> list[Any]:
    of_cond, rest = values[:cond_nconsts], values[cond_nconsts:]
    of_body, start = rest[:body_nconsts], rest[body_nconsts:]
    return lax.while_loop(
        lambda carry: evaluate(cond_jaxpr, [*of_cond, *carry])[0],
        lambda carry: evaluate(body_jaxpr, [*of_body, *carry]),
        start,
    )
