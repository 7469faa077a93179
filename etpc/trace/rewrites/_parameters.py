"""What depends on parameters alone."""

from collections.abc import Collection

from ..._jax import Flat, Variable


def of_parameters(
    flat: Flat, parameters: Collection[Variable]
) -> tuple[set[Variable], set[Variable]]:
    """The values that depend on no data, and those of them that depend on a float parameter."""
    fixed: set[Variable] = {*flat.constants, *parameters}
    weights = {v for v in parameters if v.is_float}
    for eqn in flat.equations:
        if fixed.issuperset(eqn.inputs):
            fixed.update(eqn.outputs)
            if not weights.isdisjoint(eqn.inputs):
                weights.update(v for v in eqn.outputs if v.is_float)
    return fixed, weights
