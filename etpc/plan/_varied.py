"""A quick look at whole arrays: between which parts of the states D differs from element to element.

It decides whether a closer look may pay, and proves nothing. A part is a leaf of the states, or half of a complex one.
"""

import math
from collections.abc import Sequence

import numpy as np
from jax import Array

from .._jax import Variable, propagate, prune
from .._jax.primitives import facts
from ..analyse import Analysis


def varied(analysis: Analysis) -> list[int]:
    """For each part of the new states, the old parts on which its elements depend each by a factor of its own.

    Old parts are bits of a number. For example, with `g' = 0.9 g + x` and `v' = a v + g'`, where a is a vector, part 0
    has 0, and part 1 has 2, which says part 1.
    """
    tangents, parts = analysis.tangents, analysis.hidden.parts
    outputs, first = tangents.outputs[: len(parts)], -len(parts) - len(analysis.ops)
    seeds = tangents.inputs[first:][: len(parts)]
    equations = prune(tangents.equations, outputs)
    moving = propagate(equations, tangents.inputs[first:])
    differing = {v for v in tangents.inputs[:first] if v.size > 1}
    differing |= {v for v, a in tangents.constants.items() if v not in moving and _differs(a)}
    present = {v: 1 << j for j, v in enumerate(seeds)}
    found: dict[Variable, int] = {}
    for eqn in equations:
        known = facts(eqn.primitive)
        rearranges, along = known.rearranges is not None, known.element_wise
        for out in eqn.outputs:
            factors = [
                v for v in eqn.inputs if v in differing and (rearranges or v.size == out.size)
            ]
            if rearranges:  # what is repeated is shared by several elements
                sources = [v for v in eqn.inputs if v not in moving and v.size > 1]
                differs = bool(factors) and len(factors) == len(sources) and _keeps(factors, out)
            else:
                differs = bool(factors) if along else True
            differs = differs and out.size > 1
            if out not in moving:
                if differs:
                    differing.add(out)
                continue
            entering = [v for v in eqn.inputs if v in moving]
            reached = _joined(present, entering)
            present[out] = reached
            if rearranges:
                found[out] = _joined(found, entering) if _keeps(entering, out) else 0
            elif along:
                found[out] = reached if differs else _joined(found, entering)
            else:
                found[out] = reached if out.size > 1 else 0
    return [found.get(v, 0) for v in outputs]


def _joined(bits: dict[Variable, int], variables: Sequence[Variable]) -> int:
    total = 0
    for v in variables:
        total |= bits.get(v, 0)
    return total


def _keeps(operands: Sequence[Variable], out: Variable) -> bool:
    """Whether the result of a move has no element of the operands twice, as far as sizes say."""
    return 1 < out.size <= sum(v.size for v in operands)


def _differs(value: Array | np.ndarray) -> bool:
    """Whether most elements of a constant differ from each other."""
    size = math.prod(value.shape)
    if size < 2 or value.dtype.kind not in "biufc":
        return False
    return 2 * len(np.unique(np.asarray(value))) > size
