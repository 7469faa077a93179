"""The text of optimised HLO, taken apart: computations, their instructions, types, trips of loops."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
BITS = re.compile(r"[a-z]+?(\d+)")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][\w\-]*)\((.*)")
CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
KERNELS = re.compile("fusion|custom-call|copy|dot|convolution|reduce|sort|scatter|transpose")
"""Opcodes that a GPU launches a kernel for."""


class Instruction(NamedTuple):
    """One of them; `rest` is what stands after the opcode: operands, attributes, metadata."""

    name: str
    type: str
    """Those of its results, with their layouts."""
    opcode: str
    rest: str

    @property
    def cycles(self) -> int:
        """As the compiler of a TPU estimates them; 0 of others."""
        found = re.search(r'estimated_cycles"?:\s*"(\d+)"', self.rest)
        return int(found[1]) if found else 0

    @property
    def op_name(self) -> str:
        """Where JAX's operation comes from."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return unescaped(found[1]) if found else ""

    @property
    def called(self) -> list[tuple[str, str]]:
        """The computations that it calls: as what, and their names. Branches are in their order."""
        found = BRANCHES.search(self.rest)
        names = found[1].split(",") if found else []
        return CALLED.findall(self.rest) + [("branch", name.strip().lstrip("%")) for name in names]


class Module(NamedTuple):
    """A module: what stands before the computations, these by name, and the name of the first that runs."""

    head: str
    computations: Mapping[str, list[Instruction]]
    entry: str

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop runs: as XLA notes it, or the one number that its condition compares with."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        condition = list(self.computations[dict(loop.called)["condition"]])
        for op in [*condition]:
            condition += self.computations.get(dict(op.called).get("calls", ""), [])
        whole = [op for op in condition if re.match(r"[su]32\[\]", op.type)]
        of = [op.rest for op in whole if op.opcode == "constant"]
        return max((int(rest.split(")")[0]) for rest in of), default=None)


def parsed(text: str) -> Module:
    """A module from its text."""
    computations: dict[str, list[Instruction]] = {}
    head: list[str] = []
    entry, inside = "", None
    for line in text.splitlines():
        if line[:1].strip() and line.endswith("{") and "->" in line:
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
            entry = name if line.startswith("ENTRY") else entry
            inside = computations.setdefault(name, [])
        elif inside is None:
            head.append(line)
        elif match := INSTRUCTION.match(line):
            inside.append(Instruction(*match.groups()))
    return Module("\n".join(head), computations, entry)


def arrays(type: str) -> Iterator[tuple[int, str]]:
    """Bytes and layout of each array of a type."""
    for dtype, shape, layout in ARRAY.findall(type):
        match = BITS.match(dtype)
        bits = 8 if dtype == "pred" else int(match[1]) if match else 0
        yield math.prod(int(n.strip("<=")) for n in shape.split(",") if n) * bits // 8, layout


def bytes_of(type: str) -> int:
    """Those of all arrays of a type."""
    return sum(size for size, _ in arrays(type))


def unescaped(text: str) -> str:
    """A string of HLO, without the backslashes before quotes."""
    return re.sub(r"\\(.)", r"\1", text)
