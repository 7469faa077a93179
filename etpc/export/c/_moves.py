"""Operations that move elements, and constants."""

from collections.abc import Callable, Sequence
from typing import Any

from ..._jax.mlir import integer, integers, numbers, stablehlo
from ._helpers import Missing
from ._program import (
    Body,
    Operation,
    Program,
    Value,
    fixed_array,
    flat,
    indices,
    is_filled,
    literal,
    nested,
    size_of,
    stored,
    type_of,
)


def _moving(
    places: Callable[[Any, Value, tuple[int, ...]], Callable[[list[str]], list[str]]],
) -> Operation:
    """An operation whose elements are those of its operand. `places` gives the indices there of those here."""

    def moved(program: Program, op: Any, values: list[Value]) -> Value:
        (value,), (shape, c_type) = values, type_of(op.results[0])
        if value.size < size_of(shape):
            value = program.readable(value)
        there = places(op, value, shape)
        return Value(shape, c_type, lambda i, body: value.at(there(i), body), moved=value.moved)

    return moved


@_moving
def _broadcast(op: Any, value: Value, shape: tuple[int, ...]) -> Any:
    dims = integers(op, "broadcast_dimensions")
    return lambda i: ["0" if n == 1 else i[d] for d, n in zip(dims, value.shape, strict=True)]


@_moving
def _transposed(op: Any, value: Value, shape: tuple[int, ...]) -> Any:
    order = integers(op, "permutation")
    return lambda i: [i[order.index(d)] for d in range(len(shape))]


@_moving
def _sliced(op: Any, value: Value, shape: tuple[int, ...]) -> Any:
    starts, strides = integers(op, "start_indices"), integers(op, "strides")
    spread = lambda j, s: f"{j} * {s}" if s > 1 else j
    return lambda i: [_plus(spread(j, s), a) for j, a, s in zip(i, starts, strides, strict=True)]


@_moving
def _reversed(op: Any, value: Value, shape: tuple[int, ...]) -> Any:
    dims = integers(op, "dimensions")
    return lambda i: [f"{shape[d] - 1} - {j}" if d in dims else j for d, j in enumerate(i)]


def _plus(index: str, number: int) -> str:
    return index if number == 0 else str(number) if index == "0" else f"{index} + {number}"


def _reshaped(program: Program, op: Any, values: list[Value]) -> Value:
    (value,), (shape, c_type) = values, type_of(op.results[0])
    long = lambda shape: [d for d, n in enumerate(shape) if n != 1]
    ours, theirs = long(shape), long(value.shape)
    if [shape[d] for d in ours] == [value.shape[d] for d in theirs]:  # axes of length one alone
        place = dict(zip(theirs, ours, strict=True))
        there = lambda i: [i[place[d]] if d in place else "0" for d in range(len(value.shape))]
        element = lambda i, body: value.at(there(i), body)
        return Value(shape, c_type, element, value.buffer, moved=value.moved)
    buffer = program.stored(value).buffer
    assert buffer is not None
    return stored(buffer, shape)


def _iota(program: Program, op: Any, values: list[Value]) -> Value:
    (shape, c_type), d = type_of(op.results[0]), integer(op, "iota_dimension")
    return Value(shape, c_type, lambda i, body: f"({c_type}){i[d]}", moved=True)


def _constant(program: Program, op: Any, values: list[Value]) -> Value:
    (shape, c_type), held = type_of(op.results[0]), numbers(op, "value")
    if not held.size or is_filled(held):
        text = literal(held[0], c_type) if held.size else "0"
        return Value(shape, c_type, lambda i, body: text, moved=True)
    code, name = fixed_array(f"c{next(program.numbers)}_{program.name}", held, c_type)
    program.constants[name] = code
    return stored(program.new(c_type, held.size, name, fixed=True), shape)


def _concatenated(program: Program, op: Any, values: list[Value]) -> Value:
    (shape, c_type), d = type_of(op.results[0]), integer(op, "dimension")
    buffer, start = program.new(c_type, size_of(shape)), 0
    for value in values:

        def place(i: list[str], body: Body, start: int = start) -> str:
            return flat([_plus(j, start) if k == d else j for k, j in enumerate(i)], shape)

        program.assign(value.shape, buffer, value.at, place)
        start += value.shape[d]
    return stored(buffer, shape)


def _padded(program: Program, op: Any, values: list[Value]) -> Value:
    (value, filling), (shape, c_type) = values, type_of(op.results[0])
    low, gap = integers(op, "edge_padding_low"), integers(op, "interior_padding")
    filling = program.readable(filling)
    buffer = program.copied(Value(shape, c_type, lambda i, body: filling.at([], body)))
    starts = [max(0, (g - a) // (g + 1)) for a, g in zip(low, gap, strict=True)]
    rows = zip(value.shape, shape, low, gap, strict=True)
    ends = [min(n, (m - 1 - a) // (g + 1) + 1) for n, m, a, g in rows]
    part = tuple(max(0, b - a) for a, b in zip(starts, ends, strict=True))
    element = lambda i, body: value.at([_plus(j, a) for j, a in zip(i, starts, strict=True)], body)
    spread = lambda j, a, s, g: _plus(f"{j} * {g + 1}" if g else j, a + s * (g + 1))

    def place(i: list[str], body: Body) -> str:
        return flat([spread(*of) for of in zip(i, low, starts, gap, strict=True)], shape)

    program.assign(part, buffer, element, place)
    return stored(buffer, shape)


def _limited(value: Value, index: list[str], low: int, high: int, body: Body) -> str:
    """A place that is computed, or the limit that it is beyond."""
    a = value.at(index, body)
    below = "" if value.c_type[0] == "u" else f"{a} < {low} ? {low} : "
    return body.let("int", f"{below}{a} > {high} ? {high} : (int){a}")


def _starts(values: Sequence[Value], limits: Sequence[int], body: Body) -> list[str]:
    rows = zip(values, limits, strict=True)
    return [_limited(value, [], 0, limit, body) if limit else "0" for value, limit in rows]


def _dynamic_slice(program: Program, op: Any, values: list[Value]) -> Value:
    value, *starts = [program.readable(v) for v in values]
    shape, c_type = type_of(op.results[0])
    limits = [n - m for n, m in zip(value.shape, shape, strict=True)]

    def element(index: list[str], body: Body) -> str:
        rows = zip(_starts(starts, limits, body), index, strict=True)
        return value.at([a if i == "0" else f"{a} + {i}" for a, i in rows], body)

    return Value(shape, c_type, element, moved=True)


def _dynamic_update_slice(program: Program, op: Any, values: list[Value]) -> Value:
    value, update, *starts = values
    starts = [*map(program.readable, starts)]
    limits = [n - m for n, m in zip(value.shape, update.shape, strict=True)]
    update = program.stored(update)
    buffer = program.copied(value)

    def place(index: list[str], body: Body) -> str:
        rows = zip(_starts(starts, limits, body), index, strict=True)
        return flat([f"{a} + {i}" for a, i in rows], value.shape)

    program.assign(update.shape, buffer, update.at, place)
    return stored(buffer, value.shape)


def _of_vector(index: Sequence[str], axis: int, k: int, rank: int) -> list[str]:
    """The indices of the k-th number of an index vector."""
    return [*index] if axis == rank else [*index[:axis], str(k), *index[axis:]]


def _gathered(program: Program, op: Any, values: list[Value]) -> Value:
    value, places = map(program.readable, values)
    shape, c_type = type_of(op.results[0])
    n = stablehlo.GatherDimensionNumbers(op.attributes["dimension_numbers"])
    sizes, axis = integers(op, "slice_sizes"), n.index_vector_dim
    dropped = {*n.collapsed_slice_dims, *n.operand_batching_dims}

    def element(index: list[str], body: Body) -> str:
        batch = [i for d, i in enumerate(index) if d not in n.offset_dims]
        offsets = iter([index[d] for d in n.offset_dims])
        there = ["0" if d in dropped else next(offsets) for d in range(len(value.shape))]
        for d, b in zip(n.operand_batching_dims, n.start_indices_batching_dims, strict=True):
            there[d] = batch[b - (b > axis)]
        for k, d in enumerate(n.start_index_map):
            at = _of_vector(batch, axis, k, len(places.shape))
            begin = _limited(places, at, 0, value.shape[d] - sizes[d], body)
            there[d] = begin if there[d] == "0" else f"{begin} + {there[d]}"
        return value.at(there, body)

    return Value(shape, c_type, element)


def _scattered(program: Program, op: Any, values: list[Value]) -> Value:
    if len(values) != 3:
        raise Missing("a scatter of several arrays")
    value, *rest = values
    places, updates = map(program.readable, rest)
    n = stablehlo.ScatterDimensionNumbers(op.attributes["scatter_dimension_numbers"])
    axis = n.index_vector_dim
    buffer = program.copied(value)
    result, body, index = stored(buffer, value.shape), Body(program), indices(updates.shape)
    batch = [i for d, i in enumerate(index) if d not in n.update_window_dims]
    windows = iter([(index[d], updates.shape[d]) for d in n.update_window_dims])
    dropped = {*n.inserted_window_dims, *n.input_batching_dims}
    of_window = [("0", 1) if d in dropped else next(windows) for d in range(len(value.shape))]
    there, sizes = [i for i, _ in of_window], [size for _, size in of_window]
    for d, b in zip(n.input_batching_dims, n.scatter_indices_batching_dims, strict=True):
        there[d] = batch[b - (b > axis)]
    inside: list[str] = []
    for k, d in enumerate(n.scattered_dims_to_operand_dims):
        at, last = _of_vector(batch, axis, k, len(places.shape)), value.shape[d] - sizes[d]
        begin = _limited(places, at, -1, last + 1, body)
        # as in XLA, a window that is outside in part is not written at all
        inside.append(f"{begin} >= 0 && {begin} <= {last}")
        there[d] = begin if there[d] == "0" else body.let("int", f"{begin} + {there[d]}")
    start = len(body.lines)
    before, update = result.at(there, body), updates.at(index, body)
    of = [Value.scalar(value.c_type, text) for text in (before, update)]
    (new,) = program.combined(op, of, body)
    inner = [*body.lines[start:], f"@{buffer.name}@[{flat(there, value.shape)}] = {new};"]
    lines = [*body.lines[:start], f"if ({' && '.join(inside) or '1'}) {{", *inner, "}"]
    reads = [(b, None) for b, _ in body.reads]
    program.add(nested(index, updates.shape, lines), [(buffer, None)], reads)
    return result


MOVES: dict[str, Operation] = {
    "stablehlo.broadcast_in_dim": _broadcast,
    "stablehlo.transpose": _transposed,
    "stablehlo.slice": _sliced,
    "stablehlo.reverse": _reversed,
    "stablehlo.reshape": _reshaped,
    "stablehlo.iota": _iota,
    "stablehlo.constant": _constant,
    "stablehlo.concatenate": _concatenated,
    "stablehlo.pad": _padded,
    "stablehlo.dynamic_slice": _dynamic_slice,
    "stablehlo.dynamic_update_slice": _dynamic_update_slice,
    "stablehlo.gather": _gathered,
    "stablehlo.scatter": _scattered,
    "stablehlo.optimization_barrier": lambda program, op, values: values,
}
