"""What depends on the model alone: how it is evaluated, and its derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import Equation, Rule, prims
from .._jax.primitives import facts
from ..schedule import Schedule

SymbolicZero: Any = jax.custom_derivatives.SymbolicZero


def prefix_rule(schedule: Schedule) -> Rule:
    """The rule by which the equations of the prefix are evaluated."""

    def rule(eqn: Equation, values: list[Any]) -> list[Any] | None:
        results = _zero_stays_zero(eqn, values)
        if eqn.primitive not in (prims.sin_p, prims.cos_p):
            return results
        # Sines of parameters, as in an LRU's transitions, are cheap to store, and not to compute in each loop.
        return [schedule.stored(a) for a in (eqn.bind(*values) if results is None else results)]

    return rule


def _zero_stays_zero(eqn: Equation, values: list[Any]) -> list[Any] | None:
    """Where no gradient comes in none goes out, even if the derivative is infinite.

    The gradient of an effective weight is zero if the branch that reads it was never taken. Then it is zero
    for everything that the branch computes from parameters, whatever the operations are. For `sqrt(p)` at
    `p = 0` in such a branch, plain differentiation would give `0 * inf = NaN`.
    """
    element_wise = facts(eqn.primitive).singular
    floats = [any(v.is_float for v in side) for side in (eqn.inputs, eqn.outputs)]
    if not all(floats) or not (element_wise or eqn.in_branch):
        return None
    if eqn.primitive in (prims.stop_gradient_p, prims.while_p):
        return None  # they pass on no gradient, and JAX would give zeros to a custom rule

    # All operands are arguments: a rule that closed over tracers would keep them.
    def bind(*args: Any) -> list[Any]:
        return eqn.bind(*args)

    def forward(*args: Any) -> tuple[list[Any], Any]:
        # Operands that are not perturbed may stand where there is no derivative, as in a `while`.
        def of_perturbed(*values: Any) -> list[Any]:
            pairs = zip(args, values, strict=True)
            return bind(*(v if a.perturbed else jax.lax.stop_gradient(v) for a, v in pairs))

        return jax.vjp(of_perturbed, *(a.value for a in args))

    def back(pull: Any, bars: Any) -> tuple[Any, ...]:
        if all(isinstance(bar, SymbolicZero) for bar in bars):
            return (None,) * len(eqn.inputs)  # what is stopped later may have no derivative
        bars = [instantiated(bar) for bar in bars]
        is_zero = [bar == 0 for bar in bars if bar.dtype != jax.dtypes.float0]

        def masked(gradient: Any) -> Any:
            if gradient.dtype == jax.dtypes.float0:
                return gradient
            # by element, but for an operand that is a scalar, where nothing comes in at all
            if element_wise and gradient.shape == is_zero[0].shape:
                mask = is_zero[0]
            else:
                mask = jnp.stack([zero.all() for zero in is_zero]).all()
            return jnp.where(mask, jnp.zeros_like(gradient), gradient)

        return tuple(masked(gradient) for gradient in pull(bars))

    guarded = jax.custom_vjp(bind)
    guarded.defvjp(forward, back, symbolic_zeros=True)
    return guarded(*values)


def instantiated(cotangent: Any) -> Any:
    """A cotangent as an array, where JAX says by a symbol that it is zero."""
    if not isinstance(cotangent, SymbolicZero):
        return cotangent
    if cotangent.dtype == jax.dtypes.float0:
        return np.zeros(cotangent.shape, jax.dtypes.float0)
    return jnp.zeros(cotangent.shape, cotangent.dtype)
