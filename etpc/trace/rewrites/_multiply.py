"""A product with a weight that sums nothing is the element-wise one that it is otherwise written as.

- Pattern: `dot_general` without a contraction, such as `einsum("i,i->i", w, h)`. What counts is whether there is an
  axis to sum over, and not its size, so that a layer is cut alike however many units it has.
- Proof: each element of the result is one product.
- Rewrite: the operands with their axes in the order of the result, and `mul`.
- Without it the data would be held constant as that of a sum is.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax

from ..._jax import Equation, Flat, Variable, in_place_of, params, prims
from ._parameters import of_parameters


def multiply(flat: Flat, parameters: Collection[Variable]) -> Flat:
    fixed, weights = of_parameters(flat, parameters)
    constants, kept = dict(flat.constants), list[Equation]()
    for eqn in flat.equations:
        is_product = eqn.primitive is prims.dot_general_p and not fixed.issuperset(eqn.inputs)
        if (
            is_product
            and not weights.isdisjoint(eqn.inputs)
            and not params.product(eqn).contract[0]
        ):
            multiplied = _multiplied(eqn)
            constants.update(multiplied.constants)
            kept += multiplied.equations
        else:
            kept.append(eqn)
    return dataclasses.replace(flat, equations=tuple(kept), constants=constants)


def _multiplied(eqn: Equation) -> Flat:
    """A `dot_general` without a contraction, as a multiplication."""
    (out,) = eqn.outputs
    batch = params.product(eqn).batch

    def multiply(*operands: Any) -> Any:
        aligned = []
        for n, x in enumerate(operands):
            free = [d for d in range(x.ndim) if d not in batch[n]]
            x = x.transpose(*batch[n], *free)
            # the free axes of the first operand come before those of the second
            lead, absent = len(batch[n]), len(out.shape) - x.ndim
            first = lead if n else x.ndim
            x = jax.lax.expand_dims(x, range(first, first + absent))
            aligned.append(x.astype(out.aval.dtype))
        return aligned[0] * aligned[1]

    return in_place_of(eqn, multiply)
