"""The tangent map of a function with a backward rule of its own: the transpose of that rule.

JAX transposes what is written as a linear function. A backward rule may be linear and not be written so. It may
pass its cotangent through operations that have no transpose, `jax.lax.stop_gradient` or a function with a
derivative of its own: what counts is what they do to values. And it may add a constant, which makes it another
function than a linear one, though JAX transposes it as if the constant was not there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import source_info_util
from jax.extend.core import primitives as prims

from . import params
from ._control import written_out
from ._flatten import canonicalise, flatten
from ._listed import scatter_sub_p, stack_p
from ._program import Equation, Flat, Primitive, Variable, propagate, replaced

nonlinear_p = Primitive("nonlinear_backward_rule")
"""Stands for the tangent map of a `custom_vjp` that has none, as its rule is not linear."""
nonlinear_p.multiple_results = True
nonlinear_p.def_abstract_eval(lambda *tangents, avals: list(avals))


def forward_mode(equation: Equation) -> Callable[..., list[Any]]:
    """The operation as a function that `jax.jvp` accepts.

    A `custom_vjp` has no forward rule: its tangent map is the transpose of its backward rule. Where
    that is not linear in the cotangent, `nonlinear_p` stands for the tangent map.
    """
    if equation.primitive is not prims.custom_vjp_call_p:
        return lambda *values: equation.bind(*values)
    outs = [i for i, v in enumerate(equation.outputs) if v.is_float]

    @jax.custom_jvp
    def call(*values: Any) -> list[Any]:
        return equation.bind(*values)

    def call_jvp(values: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        # Only what varies: a rule may refuse the derivative by what it closes over.
        zero = jax.custom_derivatives.SymbolicZero
        moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, zero)]

        def on_moving(*moving_values: Any) -> list[Any]:
            out = equation.bind(*replaced(values, moving, moving_values))
            return [out[i] for i in outs]

        primal_out, pullback = jax.vjp(on_moving, *(values[i] for i in moving))
        moving_tangents = [tangents[i] for i in moving]
        try:
            rule = lambda *cotangents: pullback(list(cotangents))
            flat = canonicalise(rule, primal_out)
            _joined([ZERO, *_at_zero(flat, [ZERO] * len(flat.inputs))])
            moved = linear_transpose(rule, *primal_out)(tuple(moving_tangents))
        except Exception:  # whatever the transpose of an operation that is not linear raises
            avals = tuple(jax.typeof(o) for o in primal_out)
            with source_info_util.user_context(equation.traceback.of):
                moved = nonlinear_p.bind(*moving_tangents, avals=avals)
        out = equation.bind(*values)
        still = (np.zeros(o.shape, jax.dtypes.float0) for o in out)
        return out, replaced(still, outs, moved)

    call.defjvp(call_jvp, symbolic_zeros=True)
    return call


def linear_transpose(function: Callable[..., Any], *primals: Any) -> Callable[..., Any]:
    """`jax.linear_transpose`, also of a function that is linear in what it does to values, and in which are
    operations without a transpose."""
    leaves, treedef = jax.tree.flatten(primals)
    flat = canonicalise(lambda *leaves: function(*jax.tree.unflatten(treedef, leaves)), leaves)
    moving = propagate(flat.equations, flat.inputs)
    if not any(_is_in_the_way(eqn, moving) for eqn in flat.equations):
        return jax.linear_transpose(function, *primals)
    results = jax.tree.structure(jax.eval_shape(function, *primals))
    on_values = lambda *args: results.unflatten(_on_values(flat, jax.tree.leaves(args)))
    return jax.linear_transpose(on_values, *primals)


# --- whether a rule adds a constant ---

ZERO = object()
"""The state of a value that depends on cotangents, and is zero where they are zero."""
State = Any
"""`ZERO`; or the array that a value is whatever the cotangents are; or `None` where that is not known."""


def _at_zero(flat: Flat, operands: Sequence[State]) -> list[State]:
    """The states of a program's results, where the cotangents are zero.

    For example, of `lambda ct: 2 * ct + 0` the product is `ZERO`, since a linear operation on one operand that
    vanishes does, and so is the sum, since what is added is zero. `2 * ct + 1` **raises** `ValueError`. Operations
    that are not linear are not looked for, as JAX refuses to transpose them.
    """

    def rule(eqn: Equation, states: list[State]) -> list[State]:
        if not any(state is ZERO for state in states):
            if not eqn.outputs or any(state is None for state in states):
                return [None] * len(eqn.outputs)
            try:
                with jax.ensure_compile_time_eval():
                    return eqn.bind(*states)
            except Exception:  # an operation may not run here, such as one over several devices
                return [None] * len(eqn.outputs)
        if eqn.primitive is prims.cond_p:
            bodies = [flatten(branch) for branch in params.branches(eqn)]
            results = zip(*(_at_zero(body, states[1:]) for body in bodies), strict=True)
            return [_joined(alternatives) for alternatives in results]
        if (inner := written_out(eqn)) is not None:
            return _at_zero(inner, states)
        if eqn.primitive in _JOINS:
            _joined([s for v, s in zip(eqn.inputs, states, strict=True) if v.is_float])
        return [ZERO if v.is_float else None for v in eqn.outputs]

    known = {v: None if isinstance(a, Tracer) else a for v, a in flat.constants.items()}
    return Flat(flat.equations, flat.inputs, flat.outputs, known).run(operands, rule)


def _joined(states: Sequence[State]) -> State:
    """The state of values that are put together, such as terms of a sum.

    **Raises** `ValueError` where one depends on cotangents, and another is not zero.
    """
    others = [state for state in states if state is not ZERO]
    if len(others) == len(states):
        return None
    if any(state is None or np.any(np.asarray(state)) for state in others):
        raise ValueError("what is added to a linear function makes it another")
    return ZERO


_JOINS = {
    *(prims.add_p, prims.add_jaxvals_p, prims.sub_p, prims.select_n_p, prims.concatenate_p),
    *(prims.pad_p, prims.dynamic_update_slice_p, prims.scatter_p, prims.scatter_add_p),
    *(scatter_sub_p, stack_p, prims.complex_p),
}


# --- what a rule does to values, by operations that have transposes ---

_IDENTITIES = {prims.stop_gradient_p, prims.name_p}
_ONLY_VALUES = {
    *(*_IDENTITIES, prims.custom_jvp_call_p, prims.custom_vjp_call_p),
    prims.scatter_p,  # its transpose is of indices alone that JAX knows to be unique
}


def _is_in_the_way(equation: Equation, moving: set[Variable]) -> bool:
    """Whether a cotangent passes through an operation that has no transpose."""
    return any(v in moving for v in equation.inputs) and _has_no_transpose(equation)


def _has_no_transpose(equation: Equation) -> bool:
    if equation.primitive in _ONLY_VALUES or not equation.outputs:
        return True
    bodies = [flatten(inner) for inner in params.inner_jaxprs(equation)]
    return any(_has_no_transpose(eqn) for body in bodies for eqn in body.equations)


def _on_values(flat: Flat, operands: Sequence[Any]) -> list[Any]:
    """The results of a program, computed by operations that have transposes if they are linear."""
    moving = propagate(flat.equations, flat.inputs)

    def rule(eqn: Equation, values: list[Any]) -> list[Any] | None:
        if not _is_in_the_way(eqn, moving):
            return None
        if eqn.primitive in _IDENTITIES:
            return values
        if eqn.primitive is prims.scatter_p:
            operand, indices, updates = values
            scatter = lambda *moved: eqn.bind(moved[0], indices, moved[1])[0]
            zeros = jnp.zeros_like(operand), jnp.zeros_like(updates)
            return [jax.jvp(scatter, zeros, (operand, updates))[1]]
        if not eqn.outputs:  # it prints
            return []
        if eqn.primitive is prims.cond_p:
            bodies = [flatten(branch) for branch in params.branches(eqn)]
            run = [lambda *args, body=body: _on_values(body, args) for body in bodies]
            return jax.lax.switch(jnp.asarray(values[0], jnp.int32), run, *values[1:])
        inner = written_out(eqn)
        return None if inner is None else _on_values(inner, values)

    return flat.run(operands, rule)
