"""Loops of unknown length in reverse mode, by their Jacobian.

JAX can push a tangent through a `while`, and cannot pull a cotangent back, as it does not know the number of
iterations. Enough tangents give the whole Jacobian. The tangent map of the loop is then the product with it, which has
a transpose:

    columns[k] = the loop's tangent, where all elements of colour k vary     (of values alone)
    t  ->  sum_k columns[k] * t[owners[k]]                                   (linear in t)

Elements of the operands have one colour where no element of a result depends on two of them. So a loop in which each
neuron is by itself takes as many tangents as a neuron has values that enter.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import primitives as prims

from ..errors import Code, UnsupportedError
from . import params
from ._backward import forward_mode, nonlinear_p
from ._control import active, is_checkpointed_loop, of_one_example
from ._flatten import canonicalise, flatten
from ._program import Equation, Flat, is_float, of_real_parts, real_parts, replaced


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnTangents:
    """Which columns of the Jacobian of a function of n real numbers one tangent gives."""

    colour: np.ndarray
    """The tangent, of K, in which each number varies; int [n]."""
    owners: Sequence[np.ndarray]
    """For each result, whose column each element of each tangent is of, n for none; int [K, size]."""


Choose = Callable[[Flat, Sequence[int]], ColumnTangents]
"""How columns are put together: from the tangent map as a program, and the sizes of the tangents that it ends with."""


def one_by_one(tangents: Flat, sizes: Sequence[int]) -> ColumnTangents:
    """A tangent for each column, whatever the function is."""
    every = np.arange(sum(sizes))
    return ColumnTangents(every, [np.repeat(every[:, None], v.size, 1) for v in tangents.outputs])


def is_unbounded(eqn: Equation) -> bool:
    """Whether an equation is a loop of unknown length, or a loop or a branch with one inside."""
    if eqn.primitive is prims.scan_p:
        bodies = [params.scan(eqn).body]
    else:
        bodies = params.branches(eqn) if eqn.primitive is prims.cond_p else []
    if any(is_unbounded(inner) for body in bodies for inner in flatten(body).equations):
        return True
    return eqn.primitive is prims.while_p or is_checkpointed_loop(eqn)


def with_reverse_mode(
    eqn: Equation, wanted: Sequence[bool], choose: Choose = one_by_one
) -> Callable[..., list[Any]]:
    """Such an equation as a function that has both modes of differentiation, of any order.

    The float results that are not wanted have no derivative.
    """
    function = functools.partial(_forward, eqn) if _has_backward_rule(eqn) else eqn.bind
    return _Loop(eqn.bind, function, wanted, choose, eqn.source).by_jacobian()


def with_loops_reversed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of PyTrees, in which loops of unknown length have a reverse mode. All else, and the values of these
    loops, are computed by JAX as the function is written."""

    def reversed_loops(*args: Any) -> Any:
        arrays, rest = eqx.partition(args, eqx.is_array)
        leaves, treedef = jax.tree.flatten(arrays)
        kept: list[Any] = []

        def flat(*leaves: Any) -> list[Any]:
            result = function(*eqx.combine(treedef.unflatten(leaves), rest))
            found, others = eqx.partition(result, eqx.is_array)
            values, structure = jax.tree.flatten(found)
            kept[:] = structure, others
            return values

        def rule(eqn: Equation, values: list[Any]) -> list[Any] | None:
            if not is_unbounded(eqn) or is_checkpointed_loop(eqn):  # which has one
                return None
            return with_reverse_mode(eqn, [v.is_float for v in eqn.outputs])(*values)

        values = flatten(jax.make_jaxpr(flat)(*leaves), rewritten=False).run(leaves, rule)
        structure, others = kept
        return eqx.combine(structure.unflatten(values), others)

    return reversed_loops


def _has_backward_rule(eqn: Equation) -> bool:
    """Whether an equation is a function with a backward rule of its own, or has such a one inside."""
    inner = (
        e for body in params.inner_jaxprs(eqn) for e in flatten(body, rewritten=False).equations
    )
    return eqn.primitive is prims.custom_vjp_call_p or any(map(_has_backward_rule, inner))


def _forward(eqn: Equation, *values: Any, checkpointed: bool = False) -> list[Any]:
    """The results of an equation with a backward rule inside, as a function that `jax.jvp` accepts.

    `checkpointed`: whether it is in a loop of Equinox, whose condition and body then are those of one example.
    """
    checkpointed = checkpointed or is_checkpointed_loop(eqn)

    def inside(eqn: Equation, values: list[Any]) -> list[Any]:
        return _forward(eqn, *values, checkpointed=checkpointed)

    if is_checkpointed_loop(eqn):
        return flatten(params.custom_body(eqn)).run(values, inside)
    if checkpointed and (plain := of_one_example(eqn)) is not None:
        return plain.run(values)
    if eqn.primitive is not prims.while_p:
        return forward_mode(eqn)(*values)
    skip, count, *programs = params.while_loop(eqn)
    cond, body = map(flatten, programs)
    held, start = values[skip : skip + count], list(values[skip + count :])

    def goes_on(carry: list[Any]) -> Array:
        (continues,) = cond.run([*values[:skip], *carry], inside)
        return continues

    def iterate(carry: list[Any]) -> list[Any]:
        return active(goes_on(carry), body.run([*held, *carry], inside), carry)

    return jax.lax.while_loop(lambda carry: goes_on(carry).any(), iterate, start)


def _has_none(eqn: Equation) -> bool:
    """Whether an equation stands for a tangent map that there is not, or has such a one inside."""
    inner = (e for body in params.inner_jaxprs(eqn) for e in flatten(body).equations)
    return eqn.primitive is nonlinear_p or any(map(_has_none, inner))


@dataclasses.dataclass(frozen=True, eq=False)
class _Loop:
    """A function of which those float results that are wanted have a derivative."""

    values: Callable[..., list[Any]]
    function: Callable[..., list[Any]]
    """The same, as one that `jax.jvp` accepts."""
    wanted: Sequence[bool]
    choose: Choose
    source: str

    def by_jacobian(self) -> Callable[..., list[Any]]:
        """The function, whose tangent map is the product with its Jacobian."""

        @jax.custom_jvp
        def loop(*values: Any) -> list[Any]:
            return self.values(*values)

        def loop_jvp(values: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            found = iter(self.tangents(values, tangents) if any(self.wanted) else [])
            results = loop(*values)
            pairs = zip(results, self.wanted, strict=True)
            return results, [next(found) if wanted else _still(y) for y, wanted in pairs]

        loop.defjvp(loop_jvp, symbolic_zeros=True)
        return loop

    def tangents(self, values: Sequence[Any], tangents: Sequence[Any]) -> list[Array]:
        """The tangents of the results that are wanted."""
        zero = jax.custom_derivatives.SymbolicZero
        varying = [i for i, t in enumerate(tangents) if not isinstance(t, zero)]
        parts = real_parts(tangents[i] for i in varying)

        def push(values: Sequence[Any], parts: Sequence[Array]) -> list[Array]:
            def results(*changed: Any) -> list[Any]:
                full = replaced(values, varying, changed)
                found = zip(self.function(*full), self.wanted, strict=True)
                return [y for y, wanted in found if wanted]

            moving = [values[i] for i in varying]
            return jax.jvp(results, moving, of_real_parts(parts, moving))[1]

        program = self.traced(push, values, parts)
        found = self.choose(program, [part.size for part in parts])
        seeds = _seeds(found.colour, parts)
        jacobian = lambda *values: jax.vmap(lambda *seed: push(values, seed))(*seeds)
        every = [True] * len(found.owners)
        columns = dataclasses.replace(
            self, values=jacobian, function=jacobian, wanted=every
        ).by_jacobian()
        pairs = zip(columns(*values), found.owners, strict=True)
        return [_product(column, owner, parts) for column, owner in pairs]

    def traced(self, push: Any, values: Sequence[Any], parts: Sequence[Array]) -> Flat:
        """The tangent map as a program, of values and tangents. **Raises** `UnsupportedError` where there is none."""
        avals = [*map(jax.typeof, values)]
        of_all = lambda *args: push(args[: len(avals)], args[len(avals) :])
        try:
            program = canonicalise(of_all, [*avals, *parts])
            if any(map(_has_none, program.equations)):
                raise TypeError("the backward rule of a `custom_vjp` is not linear")
        except Exception as error:  # whatever an operation without a forward rule raises
            reason = next(iter(str(error.__cause__ or error).splitlines()), "").rstrip(".")
            raise UnsupportedError(
                f"A derivative passes through the loop of unknown length at {self.source}. This is because it "
                "changes what depends on a hidden state or a weight; its derivative is carried forward, and what is "
                f"inside has none that can be: {reason}. Give it one by `jax.custom_jvp`, or use "
                "`lax.stop_gradient` on what enters the loop.",
                code=Code.UNBOUNDED_LOOP,
            ) from error
        return program


def _still(a: Array) -> Any:
    """The tangent of a result that does not vary."""
    return jnp.zeros_like(a) if is_float(a.dtype) else np.zeros(a.shape, jax.dtypes.float0)


def _seeds(colour: np.ndarray, parts: Sequence[Array]) -> list[np.ndarray]:
    """For each array the tangents of all colours, [K, ...]."""
    varying = colour == np.arange(colour.max() + 1)[:, None]
    each = np.split(varying, np.cumsum([part.size for part in parts])[:-1], axis=1)
    return [
        a.reshape(-1, *part.shape).astype(part.dtype) for a, part in zip(each, parts, strict=True)
    ]


def _product(columns: Array, owner: np.ndarray, parts: Sequence[Array]) -> Array:
    """The product of a Jacobian with a tangent."""
    shape, flat = columns.shape[1:], [part.reshape(-1).astype(columns.dtype) for part in parts]
    whole = jnp.concatenate(flat)
    starts = np.cumsum([0, *(part.size for part in flat)])

    def owned(row: np.ndarray) -> Array:
        for start, part in zip([0, *starts], [whole, *flat], strict=False):
            if np.array_equal(row, np.arange(start, start + part.size)):
                return part
        return jnp.take(whole, row, mode="fill", fill_value=0)

    if owner.size and (owner == owner[:, :1]).all():
        return jnp.tensordot(owned(owner[:, 0]), columns, 1)
    terms = [c * owned(row).reshape(shape) for c, row in zip(columns, owner, strict=True)]
    return functools.reduce(jnp.add, terms)
