"""Products of data with weights in the form in which they are analysed.

Two products, one right after the other, are one with the product of the weights. `(x @ A) @ B`, as
low-rank weights are often written, is `x @ (A @ B)`: then the pair is one weight operation, whose
gradient is pulled back to both. Else `A` would reach the state only through `B`, whose data a trace
holds constant.

A product that sums nothing, such as `einsum("i,i->i", w, h)`, is the element-wise one that it is
otherwise written as. What counts is whether there is an axis to sum over, and not its size, so that a
layer is cut alike however many units it has.

A matrix of weights meets a vector as `x @ w.T` and not as `w @ x`: over a batch the result of the first has the
examples first, as all else has, and that of the second would have to be transposed.

A product of complex numbers notes which of its operands are real: they were given the complex type of the
other one.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax

from .._jax import Equation, Flat, Variable, canonicalise, is_complex, params, prims

MAX_PRODUCT = 1 << 24
"""Products of more elements than this are not formed: a rank is small for a reason."""


def merge_products(flat: Flat, parameters: Collection[Variable]) -> Flat:
    """The program with pairs of products merged, and products that sum nothing as multiplications."""
    constants = dict(flat.constants)
    fixed: set[Variable] = {*flat.constants, *parameters}
    weights: set[Variable] = {v for v in parameters if v.is_float}
    makers: dict[Variable, Equation] = {}
    kept: list[Equation] = []
    for eqn in flat.equations:
        if all(v in fixed for v in eqn.inputs):
            fixed.update(eqn.outputs)
            if any(v in weights for v in eqn.inputs):
                weights.update(v for v in eqn.outputs if v.is_float)
        elif eqn.primitive is prims.dot_general_p:
            merged = _merged(eqn, makers, weights)
            if merged is not None:
                product, eqn = merged
                kept.append(product)
                fixed.update(product.outputs)
                weights.update(product.outputs)
            makers[eqn.outputs[0]] = eqn
            if any(v in weights for v in eqn.inputs) and not params.product(eqn).contract[0]:
                multiplied = _multiplied(eqn)
                constants.update(multiplied.constants)
                kept += multiplied.equations
                continue
        kept.append(eqn)
    converted = {eqn.outputs[0] for eqn in kept if _is_widened(eqn)}

    def put(eqn: Equation) -> Equation:
        if eqn.primitive is not prims.dot_general_p:
            return eqn
        real = tuple(n for n, v in enumerate(eqn.inputs) if v in converted)
        return _vector_first(dataclasses.replace(eqn, real=real), fixed)

    return dataclasses.replace(flat, equations=tuple(map(put, kept)), constants=constants)


def _vector_first(eqn: Equation, fixed: Collection[Variable]) -> Equation:
    """A product of a matrix of weights and a vector, with the vector as its first operand."""
    (of_left, of_right), batch = params.product(eqn)
    left, right = eqn.inputs
    is_matrix_first = left in fixed and (len(left.shape), len(right.shape)) == (2, 1)
    # an algorithm may treat the operands differently
    if not is_matrix_first or right in fixed or any(map(len, batch)) or params.has_algorithm(eqn):
        return eqn
    swapped = params.operands_swapped(eqn)
    return params.with_contraction(swapped, (of_right, of_left), inputs=(right, left))


def _is_widened(eqn: Equation) -> bool:
    """Whether real numbers get a complex type."""
    if eqn.primitive is not prims.convert_element_type_p:
        return False
    return is_complex(eqn.outputs[0].aval) and not is_complex(eqn.inputs[0].aval)


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

    flat = canonicalise(multiply, [v.aval for v in eqn.inputs])
    actual = {**dict(zip(flat.inputs, eqn.inputs, strict=True)), flat.outputs[0]: out}
    equations = [
        dataclasses.replace(
            e,
            inputs=tuple(actual.get(v, v) for v in e.inputs),
            outputs=tuple(actual.get(v, v) for v in e.outputs),
            source=eqn.source,
            traceback=eqn.traceback,
        )
        for e in flat.equations
    ]
    return dataclasses.replace(flat, equations=tuple(equations))


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
