"""Operations that add up."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..._jax.mlir import integers, numbers, stablehlo
from ._elements import FORMULAS
from ._helpers import Missing
from ._program import (
    Body,
    Operation,
    Program,
    Value,
    flat,
    indices,
    nested,
    size_of,
    stored,
    type_of,
)


def _contracted(program: Program, op: Any, values: list[Value]) -> Value:
    sides, (shape, c_type) = [*map(program.readable, values)], type_of(op.results[0])
    n = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    batch = n.lhs_batching_dimensions, n.rhs_batching_dimensions
    summed = n.lhs_contracting_dimensions, n.rhs_contracting_dimensions
    free = [
        [d for d in range(len(v.shape)) if d not in batch[side] and d not in summed[side]]
        for side, v in enumerate(sides)
    ]
    buffer, body = program.new(c_type, size_of(shape)), Body(program)
    index, lengths = indices(shape), [sides[0].shape[d] for d in summed[0]]
    inner = indices(lengths, "k")
    first, second = len(batch[0]), len(batch[0]) + len(free[0])
    own = index[first:second], index[second:]

    def at(side: int) -> str:
        there = ["0"] * len(sides[side].shape)
        parts = (batch[side], index[:first]), (free[side], own[side]), (summed[side], inner)
        for dims, of in parts:
            for d, i in zip(dims, of, strict=True):
                there[d] = i
        return sides[side].at(there, body)

    convert, multiply, add = (FORMULAS[name] for name in ("convert", "multiply", "add"))
    pair = [body.let(c_type, convert(c_type, v.c_type, at(n))) for n, v in enumerate(sides)]
    product, where = body.let(c_type, multiply(c_type, c_type, *pair)), flat(index, shape)
    if size_of(lengths) == 1:
        lines = [*body.lines, f"@{buffer.name}@[{where}] = {product};"]
    else:
        total = f"s{next(program.numbers)}"
        more = f"{total} = {add(c_type, c_type, total, product)};"
        sums = nested(inner, lengths, [*body.lines, more])
        lines = [f"{c_type} {total} = 0;", sums, f"@{buffer.name}@[{where}] = {total};"]
    program.add(nested(index, shape, lines), [(buffer, where)], [(b, None) for b, _ in body.reads])
    return stored(buffer, shape)


def _accumulated(
    program: Program,
    op: Any,
    values: list[Value],
    lengths: Sequence[int],
    element: Callable[[Value, list[str], list[str], Body], str],
    inside: Callable[[list[str], list[str]], str] = lambda index, inner: "",
) -> list[Value]:
    """A reduction: for each index of the result, the region over all indices of inner loops of these lengths."""
    half = len(values) // 2
    operands, first = values[:half], [program.readable(v) for v in values[half:]]
    shape, inner = type_of(op.results[0])[0], indices(lengths, "k")
    index, start, body = indices(shape), Body(program), Body(program)
    sums = [f"s{next(program.numbers)}" for _ in operands]
    begin = [f"{v.c_type} {s} = {v.at([], start)};" for v, s in zip(first, sums, strict=True)]
    read = [element(v, index, inner, body) for v in operands]
    scalars = zip([v.c_type for v in operands] * 2, [*sums, *read], strict=True)
    new = program.combined(op, [Value.scalar(*scalar) for scalar in scalars], body)
    fresh = [body.let(v.c_type, f"({v.c_type}){t}") for v, t in zip(operands, new, strict=True)]
    lines = [*body.lines, *(f"{s} = {t};" for s, t in zip(sums, fresh, strict=True))]
    condition, where = inside(index, inner), flat(index, shape)
    lines = [f"if ({condition}) {{", *lines, "}"] if condition else lines
    buffers = [program.new(v.c_type, size_of(shape)) for v in operands]
    end = [f"@{b.name}@[{where}] = {s};" for b, s in zip(buffers, sums, strict=True)]
    text = nested(index, shape, [*start.lines, *begin, nested(inner, lengths, lines), *end])
    reads = [(b, None) for b, _ in [*start.reads, *body.reads]]
    program.add(text, [(b, where) for b in buffers], reads)
    return [stored(b, shape) for b in buffers]


def _reduced(program: Program, op: Any, values: list[Value]) -> list[Value]:
    dims, shape = integers(op, "dimensions"), values[0].shape

    def element(value: Value, index: list[str], inner: list[str], body: Body) -> str:
        rest, summed = iter(index), dict(zip(dims, inner, strict=True))
        return value.at([summed[d] if d in summed else next(rest) for d in range(len(shape))], body)

    return _accumulated(program, op, values, [shape[d] for d in dims], element)


def _windowed(program: Program, op: Any, values: list[Value]) -> list[Value]:
    shape, lengths = values[0].shape, integers(op, "window_dimensions")
    ones = [1] * len(shape)
    steps = integers(op, "window_strides") or ones
    gaps = integers(op, "window_dilations") or ones
    if (integers(op, "base_dilations") or ones) != ones:
        raise Missing("a reduce_window with base dilations")
    padding = np.zeros((len(shape), 2), int)
    if "padding" in op.attributes:
        padding[:] = numbers(op, "padding").reshape(-1, 2)
    half = len(values) // 2
    values = [*map(program.readable, values[:half]), *values[half:]]

    def there(index: list[str], inner: list[str]) -> list[str]:
        rows = zip(index, inner, steps, gaps, padding[:, 0], strict=True)
        return [f"{i} * {s} + {k} * {g} - {int(p)}" for i, k, s, g, p in rows]

    def inside(index: list[str], inner: list[str]) -> str:
        rows = zip(there(index, inner), shape, strict=True)
        return " && ".join(f"{i} >= 0 && {i} < {n}" for i, n in rows)

    def element(value: Value, index: list[str], inner: list[str], body: Body) -> str:
        return value.at([f"({i})" for i in there(index, inner)], body)

    return _accumulated(program, op, values, lengths, element, inside)


SUMS: dict[str, Operation] = {
    "stablehlo.dot_general": _contracted,
    "stablehlo.reduce": _reduced,
    "stablehlo.reduce_window": _windowed,
}
