"""Two products of data with weights, one right after the other, are one with the product of the weights.

- Pattern: `(x @ A) @ B`, as low-rank weights are often written.
- Proof: `x @ (A @ B)` is the same; the gradient of that one weight is pulled back to both.
- Rewrite: a product of the weights, and one of the data with it.
- Without it `A` would reach the state only through `B`, whose data a trace holds constant.
"""

import dataclasses
import math
from collections.abc import Collection

import jax

from ..._jax import Equation, Flat, Variable, params, prims
from ._parameters import of_parameters

MAX_PRODUCT = 1 << 24
"""Products of more elements than this are not formed: a rank is small for a reason."""


def merge_products(flat: Flat, parameters: Collection[Variable]) -> Flat:
    fixed, weights = of_parameters(flat, parameters)
    makers: dict[Variable, Equation] = {}
    kept: list[Equation] = []
    for eqn in flat.equations:
        if eqn.primitive is prims.dot_general_p and not fixed.issuperset(eqn.inputs):
            merged = _merged(eqn, makers, weights)
            if merged is not None:
                product, eqn = merged
                kept.append(product)
                fixed.update(product.outputs)
                weights.update(product.outputs)
            makers[eqn.outputs[0]] = eqn
        kept.append(eqn)
    return dataclasses.replace(flat, equations=tuple(kept))


def _merged(
    second: Equation, makers: dict[Variable, Equation], weights: Collection[Variable]
) -> tuple[Equation, Equation] | None:
    """The product of two weights, and the product of the data with that; `None` if `second` does not follow a
    product with a weight."""
    for b in (0, 1):
        weight, between = second.inputs[b], second.inputs[1 - b]
        first = makers.get(between)
        if weight not in weights or first is None:
            continue
        a = 0 if first.inputs[0] in weights else 1
        if first.inputs[a] not in weights:
            continue
        pair = _pair(first, a, second, b)
        if pair is not None:
            return pair
    return None


def _pair(first: Equation, a: int, second: Equation, b: int) -> tuple[Equation, Equation] | None:
    contract1, batch1 = params.product(first)
    contract2, batch2 = params.product(second)
    if any(map(len, (*batch1, *batch2))):
        return None
    data, left, right = first.inputs[1 - a], first.inputs[a], second.inputs[b]
    free_a = [d for d in range(len(left.shape)) if d not in contract1[a]]
    free_x = len(data.shape) - len(contract1[1 - a])
    # between[n] = d: axis n of the value between the two products is axis d of the first weight
    between = {(0 if a == 0 else free_x) + n: d for n, d in enumerate(free_a)}
    if set(contract2[1 - b]) != set(between):
        return None
    product_dims = (tuple(between[d] for d in contract2[1 - b]), tuple(contract2[b]))
    free_b = [d for d in range(len(right.shape)) if d not in contract2[b]]
    rest_a = [d for d in range(len(left.shape)) if d in contract1[a]]
    shape = tuple([left.shape[d] for d in rest_a] + [right.shape[d] for d in free_b])
    if math.prod(shape) > MAX_PRODUCT:
        return None
    aval = jax.ShapeDtypeStruct(shape, left.aval.dtype)
    product = Variable(second.outputs[0].number, aval)
    made = params.with_contraction(first, product_dims, inputs=(left, right), outputs=(product,))
    place = {d: n for n, d in enumerate(rest_a)}
    summed = (tuple(contract1[1 - a]), tuple(place[d] for d in contract1[a]))
    operands, dims = (data, product), summed
    if b == 0:
        operands, dims = (product, data), (summed[1], summed[0])
    return made, params.with_contraction(second, dims, inputs=operands)
