"""A matrix of weights meets a vector as `x @ w.T` and not as `w @ x`.

- Pattern: a product of a matrix that depends on no data with a vector that does.
- Proof: the sums are those of the other order of the operands.
- Rewrite: the operands swapped.
- Over a batch the result has the examples first, as all else has; that of the other order would be transposed.
"""

import dataclasses
from collections.abc import Collection

from ..._jax import Equation, Flat, Variable, params, prims
from ._parameters import of_parameters


def vector_first(flat: Flat, parameters: Collection[Variable]) -> Flat:
    fixed, _ = of_parameters(flat, parameters)
    equations = (_swapped(eqn, fixed) for eqn in flat.equations)
    return dataclasses.replace(flat, equations=tuple(equations))


def _swapped(eqn: Equation, fixed: Collection[Variable]) -> Equation:
    if eqn.primitive is not prims.dot_general_p:
        return eqn
    (of_left, of_right), batch = params.product(eqn)
    left, right = eqn.inputs
    is_matrix_first = left in fixed and (len(left.shape), len(right.shape)) == (2, 1)
    # an algorithm may treat the operands differently
    if not is_matrix_first or right in fixed or any(map(len, batch)) or params.has_algorithm(eqn):
        return eqn
    swapped = params.operands_swapped(eqn)
    return params.with_contraction(swapped, (of_right, of_left), inputs=(right, left))
