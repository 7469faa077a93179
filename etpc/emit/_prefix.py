"""What depends on the model alone, differentiated: where no gradient comes in, none goes out."""

from typing import Any

import jax
import jax.numpy as jnp

from .._jax import Equation
from .._primitives import facts


def zero_stays_zero(eqn: Equation, values: list[Any]) -> list[Any] | None:
    """The rule of the prefix: where no gradient comes in, none goes out, be the derivative infinite.

    The gradient of an effective weight is zero where the branch that reads it was never taken.
    """
    if not facts(eqn.primitive).singular:
        return None
    floats = [i for i, v in enumerate(eqn.inputs) if v.is_float]

    def bind(*args):  # all operands are arguments: a rule that closes over tracers would keep them
        return eqn.bind(*args)[0]

    def forward(*args):
        def of_floats(*moving):
            full = list(args)
            for i, value in zip(floats, moving, strict=True):
                full[i] = value
            return bind(*full)

        return jax.vjp(of_floats, *(args[i] for i in floats))

    def back(pull, bar):
        is_zero = bar == 0
        bars: list[Any] = [None] * len(eqn.inputs)
        for i, gradient in zip(floats, pull(bar), strict=True):
            # of an operand that is a scalar, where nothing comes in at all
            mask = is_zero if gradient.shape == bar.shape else is_zero.all()
            bars[i] = jnp.where(mask, jnp.zeros_like(gradient), gradient)
        return tuple(bars)

    guarded = jax.custom_vjp(bind)
    guarded.defvjp(forward, back)
    return [guarded(*values)]


__all__ = ["zero_stays_zero"]
