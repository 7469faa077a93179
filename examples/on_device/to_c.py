"""An exported learner as C99: python -m examples.on_device.to_c learner/ -o build/

Reads what `etpc.Exported.save` wrote, and writes `learner.h` and `learner.c`: no allocation, no library but libm, and
nothing of JAX or etpc. What a call needs beside the state is one static array for each type of number, in which arrays
that are not alive at the same time share their places. The next value of a state is written over the old one where
nothing reads that any more, so that a trace is there once.

Operations by element, and those that only move elements, are computed where they are read; contractions, reductions
and what is read several times have an array each. An operation that is not in `OPERATIONS` is refused by its name.
"""

import argparse
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.extend import mlir
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import chlo, func, stablehlo  # noqa: F401

import etpc

INTEGERS = {f"{s}i{n}": f"{s and 'u'}int{n}_t" for s in ("", "ui"[:1]) for n in (8, 16, 32, 64)}
C_TYPES = {"i1": "bool", "f32": "float", "f64": "double", **INTEGERS}
C_TYPES |= {"complex<f32>": "float complex", "complex<f64>": "double complex"}
C_OF_NUMPY = {"bool": "bool", "float32": "float", "float64": "double"}
C_OF_NUMPY |= {"complex64": "float complex", "complex128": "double complex"}
C_OF_NUMPY |= {f"{u}int{n}": f"{u}int{n}_t" for u in ("", "u") for n in (8, 16, 32, 64)}


class Refused(Exception):
    """A module holds what this file has no C for."""


# --- values -----------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Buffer:
    """An array of the C program."""

    name: str
    c_type: str
    size: int
    fixed: bool = False
    """Whether it has a place of its own: an argument, a result or a constant."""
    place: "Buffer | None" = None
    """Another buffer that it is written over."""

    @property
    def end(self) -> "Buffer":
        return self if self.place is None else self.place.end


class Body:
    """The inner lines of a loop."""

    def __init__(self, program: "Program"):
        self.program, self.lines, self.reads = program, [], []
        self.known: dict[tuple[Any, ...], str] = {}

    def let(self, c_type: str, text: str) -> str:
        if re.fullmatch(r"\w+|-?[\w.+]+", text):
            return text
        name = f"t{next(self.program.numbers)}"
        self.lines.append(f"const {c_type} {name} = {text};")
        return name

    def read(self, buffer: Buffer, index: str) -> str:
        self.reads.append((buffer, index))
        return f"@{buffer.name}@[{index}]"


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the module: `at` gives its element at some indices, as C."""

    shape: tuple[int, ...]
    c_type: str
    element: Callable[[list[str], Body], str]
    buffer: Buffer | None = None
    """Where all of it is stored, in rows."""
    moved: bool = False
    """Whether reading an element costs no more than reading one of a buffer."""

    def at(self, index: Sequence[str], body: Body) -> str:
        key = (self, *index)
        if key not in body.known:
            body.known[key] = body.let(self.c_type, self.element(list(index), body))
        return body.known[key]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=int))


def flat(index: Sequence[str], shape: Sequence[int]) -> str:
    """The place of an element in an array that is stored in rows."""
    terms, stride = [], 1
    for i, n in zip(reversed(index), reversed(shape), strict=True):
        if i != "0" and n != 1:
            terms.append(
                i if stride == 1 else f"{i} * {stride}" if i.isalnum() else f"({i}) * {stride}"
            )
        stride *= n
    return " + ".join(reversed(terms)) or "0"


def stored(buffer: Buffer, shape: tuple[int, ...]) -> Value:
    element = lambda index, body: body.read(buffer, flat(index, shape))
    return Value(shape, buffer.c_type, element, buffer, moved=True)


@dataclasses.dataclass
class Statement:
    """Code with what it reads and writes: pairs of a buffer and an index, `None` for all or any of it."""

    code: str
    writes: list[tuple[Buffer, str | None]] = dataclasses.field(default_factory=list)
    reads: list[tuple[Buffer, str | None]] = dataclasses.field(default_factory=list)
    opens: int = 0
    """1 where a loop or a branch begins, -1 where it ends."""


def nested(index: Sequence[str], shape: Sequence[int], lines: Sequence[str]) -> str:
    """Lines in loops over the indices that have more than one value."""
    lines = without_unused(lines)
    loops = [(i, n) for i, n in zip(index, shape, strict=True) if i != "0"]
    heads = [f"for (int {i} = 0; {i} < {n}; {i}++) {{" for i, n in loops]
    return "\n".join(["{", *heads, *lines, "}" * len(loops) + "}"])


def without_unused(lines: Sequence[str]) -> list[str]:
    """Lines without the constants that no later one uses."""
    kept: list[str] = []
    used: set[str] = set()
    for line in reversed(lines):
        name = re.match(r"const [\w ]+ (t\d+) = ", line)
        if name is None or name[1] in used:
            kept.append(line)
            used |= set(re.findall(r"\bt\d+\b", line))
    return kept[::-1]


def indices(shape: Sequence[int], letter: str = "i") -> list[str]:
    return ["0" if n == 1 else f"{letter}{d}" for d, n in enumerate(shape)]


def type_of(value: Any) -> tuple[tuple[int, ...], str]:
    match = re.fullmatch(r"tensor<((?:\d+x)*)(.+)>", str(value.type))
    if match is None or match[2] not in C_TYPES:
        raise Refused(f"There is no C for an array of {value.type}.")
    return tuple(map(int, match[1].split("x")[:-1])), C_TYPES[match[2]]


def literal(number: Any, c_type: str) -> str:
    if c_type in ("float", "double"):
        number = float(number)
        text = "NAN" if np.isnan(number) else "INFINITY" if np.isinf(number) else abs(number).hex()
        suffix = "f" if c_type == "float" and text[0] == "0" else ""
        return f"(-{text}{suffix})" if number < 0 else text + suffix
    if "complex" in c_type:
        part = c_type.split()[0]
        return f"({literal(number.real, part)} + {literal(number.imag, part)} * I)"
    if c_type == "bool":
        return str(int(number))
    number = int(number)
    suffix = ("u" if c_type[0] == "u" else "") + ("ll" if "64" in c_type else "")
    return f"({number + 1}{suffix} - 1)" if number < 0 else f"{number}{suffix}"


class Program:
    """A function of the module as C statements."""

    def __init__(self, module: Any, name: str):
        self.functions = {str(f.attributes["sym_name"])[1:-1]: f for f in module.body.operations}
        self.name, self.statements, self.buffers, self.constants = name, [], {}, {}
        self.values: dict[Any, Value] = {}
        self.numbers = iter(range(1_000_000))

    def new(self, c_type: str, size: int, name: str = "", fixed: bool = False) -> Buffer:
        buffer = Buffer(name or f"b{next(self.numbers)}", c_type, size, fixed)
        self.buffers[buffer.name] = buffer
        return buffer

    def add(self, code: str, writes: Any = (), reads: Any = (), opens: int = 0) -> None:
        self.statements.append(Statement(code, list(writes), list(reads), opens))

    def assign(
        self,
        shape: Sequence[int],
        buffer: Buffer,
        element: Callable[[list[str], Body], str],
        place: Callable[[list[str], Body], str] | None = None,
    ) -> None:
        """Write an element for all indices of a shape."""
        body, index = Body(self), indices(shape)
        text = element(index, body)
        where = flat(index, shape) if place is None else place(index, body)
        lines = [*body.lines, f"@{buffer.name}@[{where}] = {text};"]
        self.add(nested(index, shape, lines), [(buffer, where)], body.reads)

    def store(self, value: Value, buffer: Buffer | None = None) -> Value:
        """The value in an array: in this one, or in any."""
        if buffer is None and value.buffer is not None:
            return value
        buffer = buffer or self.new(value.c_type, value.size)
        self.assign(value.shape, buffer, value.at)
        return stored(buffer, value.shape)

    def readable(self, value: Value) -> Value:
        """A value whose elements may be read several times."""
        return value if value.moved else self.store(value)

    def run(self, block: Any, arguments: Sequence[Value]) -> list[Value]:
        """The statements of a block. **Returns** what it returns."""
        self.values.update(zip(block.arguments, arguments, strict=True))
        for op in block.operations:
            name, values = op.operation.name, [self.values[v] for v in op.operands]
            if name in ("func.return", "stablehlo.return"):
                return values
            if name not in OPERATIONS:
                raise Refused(f"There is no C for the operation {name}:\n{op}")
            results = OPERATIONS[name](self, op, values)
            results = results if isinstance(results, list) else [results]
            for result, value in zip(op.results, results, strict=True):
                once = value.moved or sum(1 for _ in result.uses) < 2
                self.values[result] = value if once else self.store(value)
        raise AssertionError("a block returns")

    def combined(self, op: Any, arguments: Sequence[Value], body: Body) -> list[str]:
        """What the region of an operation gives for single numbers, as lines of a loop."""
        count = len(self.statements)
        results = self.run(op.regions[0].blocks[0], arguments)
        assert len(self.statements) == count, "numbers need no arrays"
        return [result.at([], body) for result in results]

    # --- places ---

    def overwrites(self, buffer: Buffer, target: Buffer, first: int, last: int) -> bool:
        """Whether what is written to a buffer may be written over another one, and let it be so.

        That is so where nothing reads the other one after the first element is written, but for each element itself.
        `first`, `last`: the statements among which the buffer and the other one are used.
        """
        if buffer.fixed or buffer.place is not None or buffer.c_type != target.c_type:
            return False
        part = list(enumerate(self.statements))[first:last]
        writers = [n for n, s in part if any(b.end is buffer for b, _ in s.writes)]
        outside = self.statements[:first] + self.statements[last:]
        if not writers or any(b.end is buffer for s in outside for b, _ in s.writes):
            return False
        begin = writers[0]
        for n, s in part:
            where = {i for b, i in s.writes if b.end is buffer}
            for b, i in s.reads:
                if b.end is target and (n > begin or (n == begin and where != {i})):
                    return False
            if n > begin and any(b.end is target for b, _ in s.writes):
                return False
        buffer.place = target
        return True

    def drop_unread(self) -> None:
        """Leave out what only writes what nothing reads."""
        before: list[Statement] = []
        while len(before) != len(self.statements):
            before = self.statements
            read = {b.end for s in before for b, _ in s.reads}
            self.statements = [
                s
                for s in before
                if not s.writes or any(b.end in read or b.end.fixed for b, _ in s.writes)
            ]

    def write_back(self, values: Sequence[Value], targets: Sequence[Buffer], first: int) -> None:
        """Give values that were computed since a statement to arrays that were read until then."""
        ready: list[Value] = []
        for value, target in zip(values, targets, strict=True):
            own = value.buffer is not None and value.buffer.end is target
            fresh = (
                value.buffer is not None and not value.buffer.fixed and value.buffer not in targets
            )
            ready.append(
                value if own or fresh else self.store(value, self.new(value.c_type, value.size))
            )
        last = len(self.statements)
        for value, target in zip(ready, targets, strict=True):
            buffer = value.buffer
            assert buffer is not None
            if buffer.end is not target and not self.overwrites(buffer, target, first, last):
                self.store(value, target)


def by_element(formula: Callable[..., str]) -> Callable[..., Value]:
    """An operation by element. `formula`: from the C types of the result and the first operand, and the operands."""

    def handler(program: Program, op: Any, values: list[Value]) -> Value:
        shape, c_type = type_of(op.results[0])
        values = [v if v.shape == shape else program.readable(v) for v in values]

        def element(index: list[str], body: Body) -> str:
            return formula(
                c_type, values[0].c_type, *(v.at(index if v.shape else [], body) for v in values)
            )

        return Value(shape, c_type, element)

    return handler


def call(name: str) -> Callable[..., str]:
    """A function of libm, under the name that it has for a type."""

    def formula(c_type: str, of: str, *arguments: str) -> str:
        prefix = "c" if "complex" in of and name not in ("creal", "cimag", "cabs") else ""
        suffix = "f" if of.startswith("float") else ""
        return f"{prefix}{name}{suffix}({', '.join(arguments)})"

    return formula


def infix(operator: str) -> Callable[..., str]:
    return lambda t, of, a, b: f"({t})({a} {operator} {b})"


def extreme(operator: str) -> Callable[..., str]:
    def formula(t: str, of: str, a: str, b: str) -> str:
        is_nan = f" || {a} != {a}" if t in ("float", "double") else ""  # as in XLA, NaN wins
        return f"({a} {operator} {b}{is_nan}) ? {a} : {b}"

    return formula


def shifted(operator: str, unsigned: bool = True) -> Callable[..., str]:
    def formula(t: str, of: str, a: str, b: str) -> str:
        bits = int("".join(c for c in t if c.isdigit()))
        number = f"(u{t.lstrip('u')}){a}" if unsigned else a
        beyond = "0" if unsigned else f"({a} < 0 ? -1 : 0)"
        return f"({t})((uint64_t){b} < {bits} ? ({number} {operator} {b}) : {beyond})"

    return formula


def absolute(t: str, of: str, a: str) -> str:
    if t not in ("float", "double"):
        return f"({t})({a} < 0 ? -{a} : {a})"
    return call("cabs" if "complex" in of else "fabs")(t, of, a)


def sign(t: str, of: str, a: str) -> str:
    return f"({t})({a} != {a} ? {a} : ({t})(({a} > 0) - ({a} < 0)))"


def converted(t: str, of: str, a: str) -> str:
    if "complex" in of and "complex" not in t:
        a = call("creal")(t, of, a)
    return f"({t})({a} != 0)" if t == "bool" else f"({t}){a}"


def compared(program: Program, op: Any, values: list[Value]) -> Value:
    signs = {"EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">="}
    (name,) = re.findall(r"\b[A-Z]{2}\b", str(op.attributes["comparison_direction"]))
    return by_element(infix(signs[name]))(program, op, values)


def clamped(t: str, of: str, low: str, a: str, high: str) -> str:
    return f"{a} < {low} ? {low} : ({a} > {high} ? {high} : {a})"


def complemented(t: str, of: str, a: str) -> str:
    return f"!{a}" if t == "bool" else f"({t})~{a}"


def bitcast(t: str, of: str, a: str) -> str:
    return f"((union {{ {of} from; {t} to; }}){{ .from = {a} }}).to"


def part(name: str) -> Callable[..., str]:
    real = lambda a: a if name == "real" else "0"
    return lambda t, of, a: call(f"c{name}")(t, of, a) if "complex" in of else real(a)


BY_ELEMENT: dict[str, Callable[..., str]] = {
    "add": infix("+"),
    "subtract": infix("-"),
    "multiply": infix("*"),
    "divide": infix("/"),
    "remainder": lambda t, of, a, b: call("fmod")(t, of, a, b) if t in ("float", "double") else f"({t})({a} % {b})",
    "and": infix("&"),
    "or": infix("|"),
    "xor": infix("^"),
    "not": complemented,
    "maximum": extreme(">"),
    "minimum": extreme("<"),
    "shift_left": shifted("<<"),
    "shift_right_logical": shifted(">>"),
    "shift_right_arithmetic": shifted(">>", unsigned=False),
    "negate": lambda t, of, a: f"({t})(-{a})",
    "abs": absolute,
    "sign": sign,
    "select": lambda t, of, p, a, b: f"{p} ? {a} : {b}",
    "clamp": clamped,
    "convert": converted,
    "bitcast_convert": bitcast,
    "is_finite": lambda t, of, a: f"isfinite({a}) != 0",
    "real": part("real"),
    "imag": part("imag"),
    "complex": lambda t, of, a, b: f"{a} + {b} * I",
    "logistic": lambda t, of, a: f"1 / (1 + {call('exp')(t, of, f'-{a}')})",
    "rsqrt": lambda t, of, a: f"1 / {call('sqrt')(t, of, a)}",
    "power": call("pow"),
    **{name: call(c) for name, c in {
        "exponential": "exp", "exponential_minus_one": "expm1", "log": "log", "log_plus_one": "log1p", "tanh": "tanh",
        "sqrt": "sqrt", "cbrt": "cbrt", "sine": "sin", "cosine": "cos", "tan": "tan", "atan2": "atan2",
        "floor": "floor", "ceil": "ceil", "round_nearest_even": "rint", "round_nearest_afz": "round",
    }.items()},
}  # fmt: skip


# --- operations that move elements ------------------------------------------------------------------


def ints(op: Any, name: str) -> list[int]:
    return (
        [int(i) for i in ir.DenseI64ArrayAttr(op.attributes[name])] if name in op.attributes else []
    )


def integer(op: Any, name: str) -> int:
    return ir.IntegerAttr(op.attributes[name]).value


def moving(
    handler: Callable[[Any, Value, tuple[int, ...]], Callable[[list[str]], list[str]]],
) -> Any:
    """An operation whose elements are those of its operand. `handler` gives the indices there of those here."""

    def moved(program: Program, op: Any, values: list[Value]) -> Value:
        (value,), (shape, c_type) = values, type_of(op.results[0])
        if value.size < int(np.prod(shape)):
            value = program.readable(value)
        there = handler(op, value, shape)
        return Value(shape, c_type, lambda i, body: value.at(there(i), body), moved=value.moved)

    return moved


@moving
def broadcast(op: Any, value: Value, shape: tuple[int, ...]) -> Any:
    dims = ints(op, "broadcast_dimensions")
    return lambda i: ["0" if n == 1 else i[d] for d, n in zip(dims, value.shape, strict=True)]


@moving
def transposed(op: Any, value: Value, shape: tuple[int, ...]) -> Any:
    order = ints(op, "permutation")
    return lambda i: [i[order.index(d)] for d in range(len(shape))]


@moving
def sliced(op: Any, value: Value, shape: tuple[int, ...]) -> Any:
    starts, strides = ints(op, "start_indices"), ints(op, "strides")
    return lambda i: [
        plus(f"{j} * {s}" if s > 1 else j, a) for j, a, s in zip(i, starts, strides, strict=True)
    ]


@moving
def reversed_(op: Any, value: Value, shape: tuple[int, ...]) -> Any:
    dims = ints(op, "dimensions")
    return lambda i: [f"{shape[d] - 1} - {j}" if d in dims else j for d, j in enumerate(i)]


def plus(index: str, number: int) -> str:
    return index if number == 0 else str(number) if index == "0" else f"{index} + {number}"


def reshaped(program: Program, op: Any, values: list[Value]) -> Value:
    (value,), (shape, c_type) = values, type_of(op.results[0])
    long = lambda shape: [d for d, n in enumerate(shape) if n != 1]
    ours, theirs = long(shape), long(value.shape)
    if [shape[d] for d in ours] == [
        value.shape[d] for d in theirs
    ]:  # axes of length one come and go
        place = dict(zip(theirs, ours, strict=True))
        there = lambda i: [i[place[d]] if d in place else "0" for d in range(len(value.shape))]
        return Value(
            shape, c_type, lambda i, body: value.at(there(i), body), value.buffer, moved=value.moved
        )
    buffer = program.store(value).buffer
    assert buffer is not None
    return stored(buffer, shape)


def iota(program: Program, op: Any, values: list[Value]) -> Value:
    (shape, c_type), d = type_of(op.results[0]), integer(op, "iota_dimension")
    return Value(shape, c_type, lambda i, body: f"({c_type}){i[d]}", moved=True)


def numbers_of(op: Any, shape: tuple[int, ...], c_type: str) -> np.ndarray:
    """What a constant holds."""
    if "complex" not in c_type:
        return np.array(ir.DenseElementsAttr(op.attributes["value"])).reshape(-1)
    text = str(op)  # the bindings have no complex constants
    dtype = np.complex64 if "float" in c_type else np.complex128
    if packed := re.search(r'"0x([0-9A-F]+)"', text):
        return np.frombuffer(bytes.fromhex(packed[1]), dtype)
    pairs = re.findall(r"\(([^,()]+),([^,()]+)\)", text.split(" : ")[0])
    found = np.array([complex(float(a), float(b)) for a, b in pairs], dtype)
    return np.broadcast_to(found, np.prod(shape, dtype=int)) if found.size == 1 else found


def constant(program: Program, op: Any, values: list[Value]) -> Value:
    shape, c_type = type_of(op.results[0])
    numbers = numbers_of(op, shape, c_type)
    if numbers.size == 1 or (numbers.size > 1 and (numbers == numbers[0]).all()):
        text = literal(numbers[0], c_type)
        return Value(shape, c_type, lambda i, body: text, moved=True)
    buffer = program.new(
        c_type, numbers.size, f"c{next(program.numbers)}_{program.name}", fixed=True
    )
    text = ", ".join(literal(n, c_type) for n in numbers)
    program.constants[buffer.name] = (
        f"static const {c_type} {buffer.name}[{numbers.size}] = {{{text}}};"
    )
    return stored(buffer, shape)


def concatenated(program: Program, op: Any, values: list[Value]) -> Value:
    (shape, c_type), d = type_of(op.results[0]), integer(op, "dimension")
    buffer, start = program.new(c_type, int(np.prod(shape))), 0
    for value in values:

        def place(i: list[str], body: Body, start: int = start) -> str:
            return flat([plus(j, start) if k == d else j for k, j in enumerate(i)], shape)

        program.assign(value.shape, buffer, value.at, place)
        start += value.shape[d]
    return stored(buffer, shape)


def padded(program: Program, op: Any, values: list[Value]) -> Value:
    (value, filling), (shape, c_type) = values, type_of(op.results[0])
    low, gap = ints(op, "edge_padding_low"), ints(op, "interior_padding")
    filling = program.readable(filling)
    buffer = copied(program, Value(shape, c_type, lambda i, body: filling.at([], body)))
    starts = [max(0, (g - a) // (g + 1)) for a, g in zip(low, gap, strict=True)]
    ends = [
        min(n, (m - 1 - a) // (g + 1) + 1)
        for n, m, a, g in zip(value.shape, shape, low, gap, strict=True)
    ]
    part = tuple(max(0, b - a) for a, b in zip(starts, ends, strict=True))
    element = lambda i, body: value.at([plus(j, a) for j, a in zip(i, starts, strict=True)], body)
    spread = lambda j, a, s, g: plus(f"{j} * {g + 1}" if g else j, a + s * (g + 1))
    place = lambda i, body: flat(
        [spread(*of) for of in zip(i, low, starts, gap, strict=True)], shape
    )
    program.assign(part, buffer, element, place)
    return stored(buffer, shape)


def starts_of(values: Sequence[Value], limits: Sequence[int], body: Body) -> list[str]:
    """Indices that are computed, moved to where a slice is inside."""
    texts = []
    for value, limit in zip(values, limits, strict=True):
        if limit:
            a = value.at([], body)
            texts.append(body.let("int", f"{a} < 0 ? 0 : ({a} > {limit} ? {limit} : (int){a})"))
        else:
            texts.append("0")
    return texts


def dynamic_slice(program: Program, op: Any, values: list[Value]) -> Value:
    value, *starts = [program.readable(v) for v in values]
    shape, c_type = type_of(op.results[0])
    limits = [n - m for n, m in zip(value.shape, shape, strict=True)]

    def element(index: list[str], body: Body) -> str:
        begin = starts_of(starts, limits, body)
        return value.at(
            [a if i == "0" else f"{a} + {i}" for a, i in zip(begin, index, strict=True)], body
        )

    return Value(shape, c_type, element, moved=True)


def copied(program: Program, value: Value) -> Buffer:
    """An array that begins as a value, and is written to."""
    buffer = program.new(value.c_type, value.size)
    program.store(value, buffer)
    return buffer


def dynamic_update_slice(program: Program, op: Any, values: list[Value]) -> Value:
    value, update, *starts = values
    starts, limits = (
        [*map(program.readable, starts)],
        [n - m for n, m in zip(value.shape, update.shape, strict=True)],
    )
    if update.buffer is None:
        update = program.store(update)
    buffer = copied(program, value)

    def place(index: list[str], body: Body) -> str:
        begin = starts_of(starts, limits, body)
        return flat([f"{a} + {i}" for a, i in zip(begin, index, strict=True)], value.shape)

    program.assign(update.shape, buffer, update.at, place)
    return stored(buffer, value.shape)


def batch_index(index: Sequence[str], axis: int, k: int, rank: int) -> list[str]:
    """The indices of the k-th number of an index vector."""
    return [*index] if axis == rank else [*index[:axis], str(k), *index[axis:]]


def gathered(program: Program, op: Any, values: list[Value]) -> Value:
    value, places = map(program.readable, values)
    shape, c_type = type_of(op.results[0])
    n = stablehlo.GatherDimensionNumbers(op.attributes["dimension_numbers"])
    sizes, axis = ints(op, "slice_sizes"), n.index_vector_dim
    dropped = {*n.collapsed_slice_dims, *n.operand_batching_dims}

    def element(index: list[str], body: Body) -> str:
        batch = [i for d, i in enumerate(index) if d not in n.offset_dims]
        offsets = iter([index[d] for d in n.offset_dims])
        there = ["0" if d in dropped else next(offsets) for d in range(len(value.shape))]
        for d, b in zip(n.operand_batching_dims, n.start_indices_batching_dims, strict=True):
            there[d] = batch[b - (b > axis)]
        for k, d in enumerate(n.start_index_map):
            a = places.at(batch_index(batch, axis, k, len(places.shape)), body)
            limit = value.shape[d] - sizes[d]
            begin = body.let("int", f"{a} < 0 ? 0 : ({a} > {limit} ? {limit} : (int){a})")
            there[d] = begin if there[d] == "0" else f"{begin} + {there[d]}"
        return value.at(there, body)

    return Value(shape, c_type, element)


def scattered(program: Program, op: Any, values: list[Value]) -> Value:
    if len(values) != 3:
        raise Refused("There is no C for a scatter of several arrays.")
    value, places, updates = values
    places, updates = map(program.readable, (places, updates))
    n = stablehlo.ScatterDimensionNumbers(op.attributes["scatter_dimension_numbers"])
    axis = n.index_vector_dim
    buffer = copied(program, value)
    result, body, index = stored(buffer, value.shape), Body(program), indices(updates.shape)
    batch = [i for d, i in enumerate(index) if d not in n.update_window_dims]
    windows = iter([index[d] for d in n.update_window_dims])
    dropped = {*n.inserted_window_dims, *n.input_batching_dims}
    there = ["0" if d in dropped else next(windows) for d in range(len(value.shape))]
    for d, b in zip(n.input_batching_dims, n.scatter_indices_batching_dims, strict=True):
        there[d] = batch[b - (b > axis)]
    inside = []
    for k, d in enumerate(n.scattered_dims_to_operand_dims):
        a = places.at(batch_index(batch, axis, k, len(places.shape)), body)
        there[d] = body.let("int64_t", f"(int64_t){a} + {there[d]}")
        inside.append(f"{there[d]} >= 0 && {there[d]} < {value.shape[d]}")
    start = len(body.lines)
    of = [
        Value((), value.c_type, lambda i, body, t=t: t)
        for t in (result.at(there, body), updates.at(index, body))
    ]
    (new,) = program.combined(op, of, body)
    inner = [*body.lines[start:], f"@{buffer.name}@[{flat(there, value.shape)}] = {new};"]
    lines = [*body.lines[:start], f"if ({' && '.join(inside) or '1'}) {{", *inner, "}"]
    reads = [(b, None) for b, _ in body.reads]
    program.add(nested(index, updates.shape, lines), [(buffer, None)], reads)
    return result


# --- operations that add up -------------------------------------------------------------------------


def contracted(program: Program, op: Any, values: list[Value]) -> Value:
    a, b = map(program.readable, values)
    (shape, c_type), n = (
        type_of(op.results[0]),
        stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"]),
    )
    batch = n.lhs_batching_dimensions, n.rhs_batching_dimensions
    summed = n.lhs_contracting_dimensions, n.rhs_contracting_dimensions
    free = [
        [d for d in range(len(v.shape)) if d not in batch[side] and d not in summed[side]]
        for side, v in enumerate((a, b))
    ]
    buffer, body = program.new(c_type, int(np.prod(shape))), Body(program)
    index, lengths = indices(shape), [a.shape[d] for d in summed[0]]
    inner = indices(lengths, "k")
    first = len(batch[0]), len(batch[0]) + len(free[0])

    def at(side: int, v: Value) -> str:
        there = ["0"] * len(v.shape)
        own = index[first[0] : first[1]] if side == 0 else index[first[1] :]
        for dims, of in (
            (batch[side], index[: first[0]]),
            (free[side], own),
            (summed[side], inner),
        ):
            for d, i in zip(dims, of, strict=True):
                there[d] = i
        return v.at(there, body)

    product = f"{at(0, a)} * {at(1, b)}"
    sums = nested(inner, lengths, [*body.lines, f"sum += {product};"])
    lines = [f"{c_type} sum = 0;", sums, f"@{buffer.name}@[{flat(index, shape)}] = sum;"]
    reads = [(buffer, None) for buffer, _ in body.reads]
    program.add(nested(index, shape, lines), [(buffer, flat(index, shape))], reads)
    return stored(buffer, shape)


def accumulated(
    program: Program,
    op: Any,
    values: list[Value],
    loops: tuple[list[str], list[int]],
    element: Callable[[Value, list[str], list[str], Body], str],
    inside: Callable[[list[str], list[str]], str] = lambda index, inner: "",
) -> list[Value]:
    """A reduction: for each index of the result, the region over all indices of inner loops."""
    half = len(values) // 2
    operands, first = values[:half], [program.readable(v) for v in values[half:]]
    shape, inner = type_of(op.results[0])[0], loops[0]
    index, start, body = indices(shape), Body(program), Body(program)
    sums = [f"s{next(program.numbers)}" for _ in operands]
    begin = [f"{v.c_type} {s} = {v.at([], start)};" for v, s in zip(first, sums, strict=True)]
    read = [element(v, index, inner, body) for v in operands]
    scalars = zip([v.c_type for v in operands] * 2, [*sums, *read], strict=True)
    of = [Value((), c_type, lambda i, body, t=t: t) for c_type, t in scalars]
    new = program.combined(op, of, body)
    fresh = [body.let(v.c_type, f"({v.c_type}){t}") for v, t in zip(operands, new, strict=True)]
    lines = [*body.lines, *(f"{s} = {t};" for s, t in zip(sums, fresh, strict=True))]
    condition = inside(index, inner)
    lines = [f"if ({condition}) {{", *lines, "}"] if condition else lines
    buffers = [program.new(v.c_type, int(np.prod(shape))) for v in operands]
    end = [f"@{b.name}@[{flat(index, shape)}] = {s};" for b, s in zip(buffers, sums, strict=True)]
    text = nested(index, shape, [*start.lines, *begin, nested(*loops, lines), *end])
    reads = [(b, None) for b, _ in [*start.reads, *body.reads]]
    program.add(text, [(b, flat(index, shape)) for b in buffers], reads)
    return [stored(b, shape) for b in buffers]


def reduced(program: Program, op: Any, values: list[Value]) -> list[Value]:
    dims, shape = ints(op, "dimensions"), values[0].shape
    lengths = [shape[d] for d in dims]

    def element(value: Value, index: list[str], inner: list[str], body: Body) -> str:
        rest, summed = iter(index), dict(zip(dims, inner, strict=True))
        return value.at([summed[d] if d in summed else next(rest) for d in range(len(shape))], body)

    return accumulated(program, op, values, (indices(lengths, "k"), lengths), element)


def windowed(program: Program, op: Any, values: list[Value]) -> list[Value]:
    shape, lengths = values[0].shape, ints(op, "window_dimensions")
    ones = [1] * len(shape)
    steps, gaps = ints(op, "window_strides") or ones, ints(op, "window_dilations") or ones
    if (ints(op, "base_dilations") or ones) != ones:
        raise Refused("There is no C for a reduce_window with base dilations.")
    padding = np.zeros((len(shape), 2), int)
    if "padding" in op.attributes:
        padding = np.array(ir.DenseElementsAttr(op.attributes["padding"])).reshape(-1, 2)
    half = len(values) // 2
    values = [*map(program.readable, values[:half]), *values[half:]]

    def there(index: list[str], inner: list[str]) -> list[str]:
        rows = zip(index, inner, steps, gaps, padding[:, 0], strict=True)
        return [f"{i} * {s} + {k} * {g} - {int(p)}" for i, k, s, g, p in rows]

    def inside(index: list[str], inner: list[str]) -> str:
        rows = zip(there(index, inner), shape, strict=True)
        return " && ".join(f"{i} >= 0 && {i} < {n}" for i, n in rows)

    element = lambda value, index, inner, body: value.at(
        [f"({i})" for i in there(index, inner)], body
    )
    return accumulated(program, op, values, (indices(lengths, "k"), lengths), element, inside)


# --- control flow -----------------------------------------------------------------------------------


def called(program: Program, op: Any, values: list[Value]) -> list[Value]:
    function = program.functions[str(op.attributes["callee"])[1:].strip('"')]
    block = function.regions[0].blocks[0]
    return program.run(block, [program.readable(v) for v in values])


def looped(program: Program, op: Any, values: list[Value]) -> list[Value]:
    targets = [copied(program, v) for v in values]
    carried = [stored(b, v.shape) for b, v in zip(targets, values, strict=True)]
    test, inner = (region.blocks[0] for region in op.regions)
    program.add("for (;;) {", opens=1)
    (go_on,) = program.run(test, carried)
    body = Body(program)
    text = go_on.at([], body)
    program.add("\n".join([*body.lines, f"if (!{text}) break;"]), reads=body.reads)
    first = len(program.statements)
    program.write_back(program.run(inner, carried), targets, first)
    program.add("}", opens=-1)
    return carried


def branched(program: Program, op: Any, values: list[Value]) -> list[Value]:
    choice, body = program.readable(values[0]), Body(program)
    text, last = choice.at([], body), len(op.regions) - 1
    # The first branch of `if` is for true; those of `case` are for 0, 1, ..., and the last also for other numbers.
    tests = [text] if choice.c_type == "bool" else [f"{text} == {k}" for k in range(last)]
    results = [program.new(c, int(np.prod(shape))) for shape, c in map(type_of, op.results)]
    program.add("\n".join([*body.lines, "{"]), reads=body.reads, opens=1)
    for n, region in enumerate(op.regions):
        test = f"if ({tests[n]}) {{" if n < last else "{"
        program.add(test if n == 0 else f"}} else {test}")
        for value, buffer in zip(program.run(region.blocks[0], []), results, strict=True):
            program.store(value, buffer)
    program.add("} }", opens=-1)
    return [stored(b, type_of(r)[0]) for b, r in zip(results, op.results, strict=True)]


def rounded(program: Program, op: Any, values: list[Value]) -> Value:
    exponent, mantissa = integer(op, "exponent_bits"), integer(op, "mantissa_bits")
    if {"float": 8, "double": 11}.get(values[0].c_type) != exponent:
        raise Refused(f"There is no C for reduce_precision with {exponent} bits of exponent.")
    name = f"rounded_{values[0].c_type}"
    return by_element(lambda t, of, a: f"{name}({a}, {mantissa})")(program, op, values)


OPERATIONS: dict[str, Callable[[Program, Any, list[Value]], Any]] = {
    **{f"stablehlo.{name}": by_element(formula) for name, formula in BY_ELEMENT.items()},
    "stablehlo.compare": compared,
    "stablehlo.reduce_precision": rounded,
    "stablehlo.broadcast_in_dim": broadcast,
    "stablehlo.transpose": transposed,
    "stablehlo.slice": sliced,
    "stablehlo.reverse": reversed_,
    "stablehlo.reshape": reshaped,
    "stablehlo.iota": iota,
    "stablehlo.constant": constant,
    "stablehlo.concatenate": concatenated,
    "stablehlo.pad": padded,
    "stablehlo.dynamic_slice": dynamic_slice,
    "stablehlo.dynamic_update_slice": dynamic_update_slice,
    "stablehlo.gather": gathered,
    "stablehlo.scatter": scattered,
    "stablehlo.dot_general": contracted,
    "stablehlo.reduce": reduced,
    "stablehlo.reduce_window": windowed,
    "stablehlo.while": looped,
    "stablehlo.if": branched,
    "stablehlo.case": branched,
    "stablehlo.optimization_barrier": lambda program, op, values: values,
    "func.call": called,
}


# --- the files --------------------------------------------------------------------------------------


def identifier(name: str, known: set[str]) -> str:
    """A name of the manifest as one of C."""
    text = re.sub(r"\W+", "_", name).strip("_") or "value"
    text = text if text[0].isalpha() else f"p_{text}"
    while text in known:
        text += "_"
    known.add(text)
    return text


@dataclasses.dataclass
class Function:
    """A function of the C file."""

    prototype: str
    body: str
    constants: list[str]
    needs: Counter[str]
    """How many elements of each type it takes beside its arguments."""


def function(name: str, code: bytes, entry: dict[str, Any], fields: dict[str, str]) -> Function:
    """A module as a C function. `fields`: the member of the state for the name of each state argument."""
    with ir.Context() as context:
        stablehlo.register_dialect(context)
        chlo.register_dialect(context)
        module = deserialised(context, code)
        program = Program(module, name)
        arguments, results, parameters, known = [], [], [], set(fields.values())
        for leaf in entry["arguments"]:
            c_type, size = C_OF_NUMPY[leaf["dtype"]], int(np.prod(leaf["shape"], dtype=int))
            if leaf["role"] == "state":
                buffer = program.new(c_type, size, f"state->{fields[leaf['name']]}", fixed=True)
            else:
                own = identifier(leaf["name"], known)
                parameters.append(f"const {c_type} *{own}")
                buffer = program.new(c_type, size, own, fixed=True)
            arguments.append(stored(buffer, tuple(leaf["shape"])))
        for leaf in entry["results"]:
            c_type, size = C_OF_NUMPY[leaf["dtype"]], int(np.prod(leaf["shape"], dtype=int))
            if leaf["role"] == "state":
                results.append(program.buffers[f"state->{fields[leaf['name']]}"])
            else:
                own = identifier(leaf["name"], known)
                parameters.append(f"{c_type} *{own}")
                results.append(program.new(c_type, size, own, fixed=True))
        values = program.run(program.functions["main"].regions[0].blocks[0], arguments)
        program.write_back(values, results, 0)
        program.drop_unread()
        places, needs = placed(program)
    text = "\n".join(s.code for s in program.statements)
    read = set(re.findall(r"@([^@]+)@", text))
    text = re.sub(r"@([^@]+)@", lambda m: places[program.buffers[m[1]].end.name], text)
    return Function(
        f"void {name}(learner_state *state{''.join(', ' + p for p in parameters)})",
        text,
        [code for name, code in program.constants.items() if name in read],
        needs,
    )


def deserialised(context: ir.Context, code: bytes) -> Any:
    """The module. Whether the context is an argument depends on the version of JAX."""
    with context:
        try:
            return mlir.deserialize_portable_artifact(code)
        except TypeError:
            return mlir.deserialize_portable_artifact(context, code)


def placed(program: Program) -> tuple[dict[str, str], Counter[str]]:
    """The C name of each array, and how many elements of each type are needed for those without a place."""
    lives: dict[Buffer, list[int]] = {}
    loops, open_at = [], []
    for n, s in enumerate(program.statements):
        if s.opens > 0:
            open_at.append(n)
        elif s.opens < 0:
            loops.append((open_at.pop(), n))
        for buffer, _ in [*s.writes, *s.reads]:
            lives.setdefault(buffer.end, [n, n])[1] = n
    for begin, end in loops:  # what a loop reads, each of its rounds reads
        for life in lives.values():
            if life[0] < begin <= life[1] < end:
                life[1] = end
    places = {name: name for name, buffer in program.buffers.items() if buffer.fixed}
    needs: Counter[str] = Counter()
    taken: list[tuple[str, int, int, list[int]]] = []
    free = [b for b in lives if not b.fixed]
    for buffer in sorted(free, key=lambda b: -b.size):
        at, life = 0, lives[buffer]
        others = sorted(
            t for t in taken if t[0] == buffer.c_type and t[3][0] <= life[1] and life[0] <= t[3][1]
        )
        for _, begin, end, _ in others:
            if begin < at + buffer.size and at < end:
                at = end
        taken.append((buffer.c_type, at, at + buffer.size, life))
        needs[buffer.c_type] = max(needs[buffer.c_type], at + buffer.size)
        places[buffer.name] = f"(work_{identifier(buffer.c_type, set())} + {at})"
    return places, needs


# What C99 lacks.
HELPERS = """\
static inline float rounded_float(float a, int bits) {
    uint32_t u, unit = (uint32_t)1 << (23 - bits);
    memcpy(&u, &a, sizeof u);
    if (a != a || unit == 1) return a;
    u = (u + unit / 2 - 1 + (u / unit & 1)) & ~(unit - 1);
    memcpy(&a, &u, sizeof u);
    return a;
}
static inline double rounded_double(double a, int bits) {
    uint64_t u, unit = (uint64_t)1 << (52 - bits);
    memcpy(&u, &a, sizeof u);
    if (a != a || unit == 1) return a;
    u = (u + unit / 2 - 1 + (u / unit & 1)) & ~(unit - 1);
    memcpy(&a, &u, sizeof u);
    return a;
}
static inline double complex cexpm1(double complex a) {
    const double x = creal(a), y = cimag(a), half = sin(y / 2);
    return expm1(x) * cos(y) - 2 * half * half + I * (exp(x) * sin(y));
}
static inline float complex cexpm1f(float complex a) {
    const float x = crealf(a), y = cimagf(a), half = sinf(y / 2);
    return expm1f(x) * cosf(y) - 2 * half * half + I * (expf(x) * sinf(y));
}
static inline double complex clog1p(double complex a) {
    const double x = creal(a), y = cimag(a);
    return log1p(x * (2 + x) + y * y) / 2 + I * atan2(y, 1 + x);
}
static inline float complex clog1pf(float complex a) {
    const float x = crealf(a), y = cimagf(a);
    return log1pf(x * (2 + x) + y * y) / 2 + I * atan2f(y, 1 + x);
}"""

HEADER = """\
/* A learner: {rule}, an update every {every} steps. Written by examples/on_device/to_c.py. */
#ifndef LEARNER_H
#define LEARNER_H
#include <complex.h>
#include <stdbool.h>
#include <stdint.h>

/* What a device keeps from call to call: {state_bytes} bytes. A call works in {work_bytes} bytes beside it. */
typedef struct {{
{members}
}} learner_state;

void learner_init(learner_state *state);
{prototypes}
#endif
"""


def write_c(exported: etpc.Exported, folder: Path) -> dict[str, int]:
    """Write `learner.h` and `learner.c`. **Returns** the bytes of state and of work beside it."""
    files = exported.manifest["files"]
    known: set[str] = {"state"}
    fields = {name: identifier(name, known) for name in exported.state}
    functions = [
        function(f"learner_{name.split('.')[0]}", code, files[name], fields)
        for name, code in exported.modules.items()
    ]
    members, init, constants = [], ["memset(state, 0, sizeof *state);"], []
    for name, value in exported.state.items():
        c_type, size = C_OF_NUMPY[value.dtype.name], max(1, value.size)
        members.append(f"    {c_type} {fields[name]}[{size}];  /* {name} {list(value.shape)} */")
        numbers = value.reshape(-1)
        if not numbers.any():
            continue
        if (numbers == numbers[0]).all():
            init.append(
                f"for (int i = 0; i < {size}; i++) state->{fields[name]}[i] = {literal(numbers[0], c_type)};"
            )
            continue
        text = ", ".join(literal(n, c_type) for n in numbers)
        constants.append(f"static const {c_type} first_{fields[name]}[{size}] = {{{text}}};")
        init.append(
            f"memcpy(state->{fields[name]}, first_{fields[name]}, sizeof first_{fields[name]});"
        )
    needs: Counter[str] = Counter()
    for f in functions:
        needs |= f.needs
        constants += f.constants
    work = [
        f"static {c_type} work_{identifier(c_type, set())}[{size}];"
        for c_type, size in needs.items()
        if size
    ]
    sizes = {
        "state": sum(max(1, a.size) * a.itemsize for a in exported.state.values()),
        "work": sum(np.dtype(n).itemsize * needs[c] for n, c in C_OF_NUMPY.items()),
    }
    header = HEADER.format(
        rule=exported.manifest["rule"],
        every=exported.manifest["every"],
        members="\n".join(members),
        prototypes="\n".join(f"{f.prototype};" for f in functions),
        state_bytes=sizes["state"],
        work_bytes=sizes["work"],
    )
    includes = ['#include "learner.h"', "#include <math.h>", "#include <string.h>", HELPERS]
    bodies = [f"{f.prototype} {{\n{f.body}\n}}" for f in functions]
    start = "void learner_init(learner_state *state) {\n" + "\n".join(init) + "\n}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "learner.h").write_text(header)
    (folder / "learner.c").write_text("\n".join([*includes, *constants, *work, start, *bodies, ""]))
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description="An exported learner as C99.")
    parser.add_argument("learner", type=Path, help="the folder that Exported.save wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    sizes = write_c(etpc.load_exported(arguments.learner), arguments.output)
    print(f"{sizes['state']:,} bytes of state, {sizes['work']:,} bytes to work in")


if __name__ == "__main__":
    main()
