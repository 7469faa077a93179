"""A product of complex numbers notes which of its operands are real.

- Pattern: an operand that a conversion gave the complex type of the other one.
- Proof: a conversion adds zeros.
- Rewrite: `real` of the equation names these operands.
- The product over a batch then takes half the multiplications.
"""

import dataclasses
from collections.abc import Collection

from ..._jax import Equation, Flat, Variable, is_complex, prims


def real_operands(flat: Flat, parameters: Collection[Variable]) -> Flat:
    widened = {eqn.outputs[0] for eqn in flat.equations if _is_widened(eqn)}

    def noted(eqn: Equation) -> Equation:
        if eqn.primitive is not prims.dot_general_p:
            return eqn
        real = tuple(n for n, v in enumerate(eqn.inputs) if v in widened)
        return dataclasses.replace(eqn, real=real)

    return dataclasses.replace(flat, equations=tuple(map(noted, flat.equations)))


def _is_widened(eqn: Equation) -> bool:
    """Whether real numbers get a complex type."""
    if eqn.primitive is not prims.convert_element_type_p:
        return False
    return is_complex(eqn.outputs[0].aval) and not is_complex(eqn.inputs[0].aval)
