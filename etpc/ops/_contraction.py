"""Products of a weight and data: `dot_general` with any dimension numbers."""

import dataclasses
import math
from collections.abc import Sequence

from jax import Array

from .._jax import Equation, params, prims
from .._jax.primitives import register
from ._kind import Factored, Known, Rearrangement, Values


@dataclasses.dataclass(frozen=True)
class Contraction(Factored):
    """`dot_general` of a weight and data, in either order.

    Batch dimensions (h) are shared by both; the data has free dimensions (f), the weight its own
    (o), and i is summed.
    """

    x_order: tuple[int, ...]

    def factor(self, values: Values) -> Array:
        return values[self.data].transpose(self.x_order).reshape(self.groups, self.i)


def contraction(equation: Equation, operand: int, known: Known) -> Contraction:
    """The canonical form of a `dot_general` whose operand number `operand` is the weight."""
    contract, batch = params.product(equation)
    shapes = [v.shape for v in equation.inputs]
    w, x = operand, 1 - operand
    free = [
        tuple(a for a in range(len(shapes[n])) if a not in contract[n] and a not in batch[n])
        for n in (0, 1)
    ]

    def count(shape: Sequence[int], axes: Sequence[int]) -> int:
        return math.prod(shape[a] for a in axes)

    h, f = count(shapes[w], batch[w]), count(shapes[x], free[x])
    i, o = count(shapes[w], contract[w]), count(shapes[w], free[w])
    w_order = (*batch[w], *contract[w], *free[w])
    inverse = tuple(sorted(range(len(w_order)), key=lambda axis: w_order[axis]))
    return Contraction(
        name=equation.primitive.name,
        data=x,
        h=h,
        f=f,
        i=i,
        o=o,
        to_weight=Rearrangement(tuple(shapes[w][a] for a in w_order), inverse, shapes[w]),
        # dot_general puts the free dimensions of its first operand first
        to_output=Rearrangement(
            (h, f, o), (0, 2, 1) if operand == 0 else (0, 1, 2), equation.outputs[0].shape
        ),
        x_order=(*batch[x], *free[x], *contract[x]),
    )


register([prims.dot_general_p], kind=contraction)
