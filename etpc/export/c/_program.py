"""A function of a module as statements of C: its arrays, and what is written to them."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ..modules import line_of, place_of
from ._helpers import Missing, helper

BITS = (8, 16, 32, 64)
C_TYPES = {"i1": "bool", "f32": "float", "f64": "double"}
C_TYPES |= {"complex<f32>": "float complex", "complex<f64>": "double complex"}
C_TYPES |= {f"{u}i{n}": f"{u and 'u'}int{n}_t" for u in ("", "u") for n in BITS}
C_OF_NUMPY = {"bool": "bool", "float32": "float", "float64": "double"}
C_OF_NUMPY |= {"complex64": "float complex", "complex128": "double complex"}
C_OF_NUMPY |= {f"{u}int{n}": f"{u}int{n}_t" for u in ("", "u") for n in BITS}
SIZES = {c_type: np.dtype(name).itemsize for name, c_type in C_OF_NUMPY.items()}
"""The bytes of each C type."""


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
        self.program = program
        self.lines: list[str] = []
        self.reads: list[tuple[Buffer, str]] = []
        self.known: dict[tuple[Any, ...], str] = {}

    def let(self, c_type: str, text: str) -> str:
        """The name of a constant; what is a name or a number already stays."""
        if re.fullmatch(r"\w+|-?[\w.+]+", text):
            return text
        name = f"t{next(self.program.numbers)}"
        self.lines.append(f"const {c_type} {name} = {text};")
        return name

    def read(self, buffer: Buffer, index: str) -> str:
        self.reads.append((buffer, index))
        return f"@{buffer.name}@[{index}]"


Element = Callable[[list[str], Body], str]
"""C from indices."""


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the module: `at` gives its element at some indices, as C."""

    shape: tuple[int, ...]
    c_type: str
    element: Element
    buffer: Buffer | None = None
    """Where all of it is stored, in rows."""
    line: str = ""
    """The user's line that computes it, as far as JAX knows it."""
    moved: bool = False
    """Whether reading an element costs no more than reading one of a buffer."""

    @classmethod
    def scalar(cls, c_type: str, text: str) -> "Value":
        return cls((), c_type, lambda index, body: text)

    def at(self, index: Sequence[str], body: Body) -> str:
        key = (self, *index)
        if key not in body.known:
            body.known[key] = body.let(self.c_type, self.element(list(index), body))
        return body.known[key]

    @property
    def size(self) -> int:
        return size_of(self.shape)


@dataclasses.dataclass
class Statement:
    """Code with what it reads and writes: pairs of a buffer and an index, `None` for all or any of it."""

    code: str
    writes: Sequence[tuple[Buffer, str | None]] = ()
    reads: Sequence[tuple[Buffer, str | None]] = ()
    opens: int = 0
    """1 where a loop or a branch begins, -1 where it ends."""
    line: str = ""
    """The user's line that it comes from, as far as JAX knows it."""


class Program:
    """A function of the module as C statements."""

    def __init__(self, module: Any, name: str, operations: Mapping[str, "Operation"]):
        self.functions = {str(f.attributes["sym_name"])[1:-1]: f for f in module.body.operations}
        self.name, self.operations = name, operations
        self.statements: list[Statement] = []
        self.buffers: dict[str, Buffer] = {}
        self.constants: dict[str, str] = {}
        self.values: dict[Any, Value] = {}
        self.numbers = iter(range(1_000_000))
        self.line = ""
        """The user's line that the next statements come from."""
        self.of_numbers = False
        """Whether a block of single numbers is run, which need no arrays."""

    def new(self, c_type: str, size: int, name: str = "", fixed: bool = False) -> Buffer:
        buffer = Buffer(name or f"b{next(self.numbers)}", c_type, size, fixed)
        self.buffers[buffer.name] = buffer
        return buffer

    def add(
        self,
        code: str,
        writes: Sequence[tuple[Buffer, str | None]] = (),
        reads: Sequence[tuple[Buffer, str | None]] = (),
        opens: int = 0,
    ) -> None:
        self.statements.append(Statement(code, writes, reads, opens, self.line))

    def assign(
        self, shape: Sequence[int], buffer: Buffer, element: Element, place: Element | None = None
    ) -> None:
        """Write an element for all indices of a shape."""
        body, index = Body(self), indices(shape)
        text = element(index, body)
        where = flat(index, shape) if place is None else place(index, body)
        lines = [*body.lines, f"@{buffer.name}@[{where}] = {text};"]
        self.add(nested(index, shape, lines), [(buffer, where)], body.reads)

    def copied(self, value: Value) -> Buffer:
        """A new array that holds a value."""
        buffer, line = self.new(value.c_type, value.size), self.line
        self.line = value.line or line
        self.assign(value.shape, buffer, value.at)
        self.line = line
        return buffer

    def stored(self, value: Value) -> Value:
        """The value in an array."""
        return value if value.buffer is not None else stored(self.copied(value), value.shape)

    def readable(self, value: Value) -> Value:
        """A value whose elements may be read several times."""
        return value if value.moved else self.stored(value)

    def run(self, block: Any, arguments: Sequence[Value]) -> list[Value]:
        """The statements of a block. **Returns** what it returns; **raises** `UnsupportedError`."""
        self.values.update(zip(block.arguments, arguments, strict=True))
        for op in block.operations:
            name, values = op.operation.name, [self.values[v] for v in op.operands]
            self.line = line = line_of(str(op.location))
            if name in ("func.return", "stablehlo.return"):
                return values
            try:
                if name not in self.operations:
                    raise Missing(f"the operation {name}")
                results = self.operations[name](self, op, values)
            except Missing as missing:
                raise UnsupportedError(
                    f"There is no C for {missing}{place_of(str(op.location))}, which `{self.name}` computes. "
                    "Compute it by other operations of JAX, or run the exported file under IREE."
                ) from None
            results = results if isinstance(results, list) else [results]
            self.line = line
            for result, value in zip(op.results, results, strict=True):
                value.line = value.line or line
                once = value.moved or self.of_numbers or sum(1 for _ in result.uses) < 2
                self.values[result] = value if once else self.stored(value)
        raise AssertionError("a block returns")

    def combined(self, op: Any, arguments: Sequence[Value], body: Body) -> list[str]:
        """What the region of an operation gives for single numbers, as lines of a loop."""
        self.of_numbers = True
        results = self.run(op.regions[0].blocks[0], arguments)
        self.of_numbers = False
        return [result.at([], body) for result in results]

    def write_back(self, values: Sequence[Value], targets: Sequence[Buffer], first: int) -> None:
        """Give values that were computed since a statement to arrays that were read until then."""
        ready: list[Buffer] = []
        for value, target in zip(values, targets, strict=True):
            buffer = value.buffer
            own = buffer is not None and buffer.end is target
            fresh = buffer is not None and not buffer.fixed and buffer not in targets
            ready.append(buffer if buffer is not None and (own or fresh) else self.copied(value))
        last = len(self.statements)
        for buffer, value, target in zip(ready, values, targets, strict=True):
            if buffer.end is not target and not self._overwrites(buffer, target, first, last):
                self.assign(value.shape, target, stored(buffer, value.shape).at)

    def _overwrites(self, buffer: Buffer, target: Buffer, first: int, last: int) -> bool:
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
            kept = lambda s, read=read: any(b.end in read or b.end.fixed for b, _ in s.writes)
            self.statements = [s for s in before if not s.writes or kept(s)]


Operation = Callable[[Program, Any, list[Value]], "Value | list[Value]"]
"""From an operation of StableHLO and the values of its operands to its results; statements are added to the program."""


def size_of(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=int))


def flat(index: Sequence[str], shape: Sequence[int]) -> str:
    """The place of an element in an array that is stored in rows."""
    terms: list[str] = []
    stride = 1
    for i, n in zip(reversed(index), reversed(shape), strict=True):
        if i != "0" and n != 1:
            factor = i if i.isalnum() else f"({i})"
            terms.append(i if stride == 1 else f"{factor} * {stride}")
        stride *= n
    return " + ".join(reversed(terms)) or "0"


def stored(buffer: Buffer, shape: tuple[int, ...]) -> Value:
    """The value that a buffer holds."""
    element = lambda index, body: body.read(buffer, flat(index, shape))
    return Value(shape, buffer.c_type, element, buffer, moved=True)


def indices(shape: Sequence[int], letter: str = "i") -> list[str]:
    return ["0" if n == 1 else f"{letter}{d}" for d, n in enumerate(shape)]


def nested(index: Sequence[str], shape: Sequence[int], lines: Sequence[str]) -> str:
    """Lines in loops over the indices that have more than one value."""
    loops = [(i, n) for i, n in zip(index, shape, strict=True) if i != "0"]
    heads = [f"for (int {i} = 0; {i} < {n}; {i}++) {{" for i, n in loops]
    return "\n".join([*heads, *_without_unused(lines), *"}" * len(loops)])


def _without_unused(lines: Sequence[str]) -> list[str]:
    """Lines without the constants that no later one uses."""
    kept: list[str] = []
    used: set[str] = set()
    for line in reversed("\n".join(lines).split("\n")):
        name = re.match(r"const [\w ]+ (t\d+) = ", line)
        if name is None or name[1] in used:
            kept.append(line)
            used |= set(re.findall(r"\bt\d+\b", line))
    return kept[::-1]


def type_of(value: Any) -> tuple[tuple[int, ...], str]:
    """Shape and C type of an array of the module. **Raises** `Missing`."""
    match = re.fullmatch(r"tensor<((?:\d+x)*)(.+)>", str(value.type))
    if match is None or match[2] not in C_TYPES:
        raise Missing(f"an array of {value.type}")
    return tuple(map(int, match[1].split("x")[:-1])), C_TYPES[match[2]]


def literal(number: Any, c_type: str) -> str:
    """A number as C."""
    if c_type in ("float", "double"):
        number = float(number)
        text = "NAN" if np.isnan(number) else "INFINITY" if np.isinf(number) else abs(number).hex()
        text = re.sub(r"\.?0*p", "p", text)
        suffix = "f" if c_type == "float" and text[0] == "0" else ""
        return f"(-{text}{suffix})" if np.signbit(number) else text + suffix
    if "complex" in c_type:
        parts = literal(number.real, c_type.split()[0]), literal(number.imag, c_type.split()[0])
        return f"{helper('made', c_type)}({', '.join(parts)})"
    if c_type == "bool":
        return str(int(number))
    number = int(number)
    suffix = ("u" if c_type[0] == "u" else "") + ("ll" if "64" in c_type else "")
    return f"({number + 1}{suffix} - 1)" if number < 0 else f"{number}{suffix}"


def is_filled(numbers: np.ndarray) -> bool:
    """Whether all numbers are the first one, bit for bit."""
    return numbers.tobytes() == numbers[:1].tobytes() * numbers.size


def fixed_array(name: str, numbers: np.ndarray, c_type: str) -> tuple[str, str]:
    """An array that is never written: its definition, and its name in the code."""
    size, of_complex = numbers.size, "complex" in c_type
    if of_complex:  # C99 has no literals of complex numbers that keep -0 and what is not finite
        parts = [np.real(numbers), np.imag(numbers)]
        numbers, c_type = np.stack(parts, -1).reshape(-1), c_type.split()[0]
    texts = [literal(n, c_type) for n in numbers]
    rows = [", ".join(texts[n : n + 4]) for n in range(0, len(texts), 4)]
    text = "    " + ",\n    ".join(rows)
    if of_complex:
        of = f"union {{ {c_type} parts[{2 * size}]; {c_type} complex numbers[{size}]; }}"
        return f"static const {of} {name} = {{{{\n{text}\n}}}};", f"{name}.numbers"
    return f"static const {c_type} {name}[{size}] = {{\n{text}\n}};", name
