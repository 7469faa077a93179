"""What a program costs on an accelerator that is not there, by the compiler of that accelerator.

`libtpu` compiles for any TPU topology on a CPU, and JAX's CUDA plugin for a GPU that is described in text. Nothing is
run. The optimised HLO says of a TPU how many cycles XLA estimates for each instruction, and of a GPU which kernels are
launched; here they are multiplied by the trips of the loops around them, where XLA's own totals count the body of a
loop once.

Not in it: on a TPU, transfers that overlap with work and the start of a loop; on a GPU any time at all, and the
launches of a loop's condition. A conditional counts as its last branch, which is the one that is taken where its
predicate holds.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .chips import Place

KERNELS = "fusion|custom-call|copy|dot|convolution|reduce|sort|scatter|transpose"
COLLECTIVES = ["all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"]
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
FAST = "S(1)"
"""An array that XLA keeps in the memory of a TPU's core, VMEM, in place of HBM."""


class Instruction(NamedTuple):
    """One of the optimised HLO."""

    name: str
    result: str
    """Types of its results, with their layouts."""
    opcode: str
    rest: str
    """Operands and attributes."""

    def called(self, attribute: str) -> str:
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return match[1] if match else ""


@dataclasses.dataclass
class Cost:
    """What a program costs, with the trips of its loops."""

    cycles: int = 0
    """Estimated by the compiler of a TPU; 0 for others."""
    kernels: int = 0
    temporary: int = 0
    arguments: int = 0
    fast: int = 0
    """The most bytes that a loop carries in VMEM."""
    collectives: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """By kind, how many run and the bytes of their results."""
    copies: Counter[int] = dataclasses.field(default_factory=Counter)
    """How many arrays of so many bytes are copied."""
    written: Counter[int] = dataclasses.field(default_factory=Counter)
    """How many arrays of so many bytes are written."""
    by_line: Counter[str] = dataclasses.field(default_factory=Counter)
    """Cycles, or kernels where there are none, by where JAX's operation comes from."""
    unknown: list[str] = dataclasses.field(default_factory=list)
    """Loops whose trips the text does not say; they count once."""


def compile_for(place: Place, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """`jax.jit(function)`, compiled for arguments of these shapes and dtypes on one device of a place."""
    on_one = NamedSharding(Mesh(np.array(place.devices[:1]), ("one",)), PartitionSpec())
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
    return jax.jit(function, in_shardings=on_one, **options).lower(*shapes).compile()


def cost(compiled: Any) -> Cost:
    """What a compiled program costs."""
    memory = compiled.memory_analysis()
    of_text = read(compiled.as_text())
    of_text.temporary = memory.temp_size_in_bytes
    of_text.arguments = memory.argument_size_in_bytes
    return of_text


def read(text: str) -> Cost:
    """What optimised HLO says of its cost; bytes of memory are not in it."""
    computations, entry = _computations(text)
    found = Cost()

    def visit(name: str, times: int) -> None:
        for op in computations[name]:
            cycles = re.search(r'estimated_cycles"?:\s*"(\d+)"', op.rest)
            count = times * int(cycles[1]) if cycles else 0
            kind = op.opcode.removesuffix("-start")
            if op.opcode == "while":
                in_fast = [size for size, layout in _arrays(op.result) if FAST in layout]
                found.fast = max(found.fast, sum(in_fast))
                trips = _trips(op, computations)
                if trips is None:
                    found.unknown.append(op.name)
                visit(op.called("body"), times * (trips or 1))
                continue
            if op.opcode == "call" and op.called("to_apply") in computations:
                visit(op.called("to_apply"), times)
                continue
            if op.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
                last = branches[1].split(",")[-1] if branches else op.called("true_computation")
                visit(last.strip().lstrip("%"), times)
                continue
            ended = op.opcode.removesuffix("-done")  # a start has the operands in its result too
            if ended in COLLECTIVES:
                runs, total = found.collectives.get(ended, (0, 0))
                size = sum(size for size, _ in _arrays(op.result))
                found.collectives[ended] = (runs + times, total + times * size)
            launched = times if re.fullmatch(KERNELS, op.opcode) else 0
            if count or launched:
                found.cycles += count
                found.kernels += launched
                source = re.search(r'op_name="([^"]*)"', op.rest)
                found.by_line[source[1] if source else op.name] += count or launched
                for size, _ in _arrays(op.result):
                    found.written[size] += times
                    if kind == "copy":
                        found.copies[size] += times

    visit(entry, 1)
    return found


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of each computation, and the name of the first that runs."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
            if found:
                current.append(Instruction(*found.groups()))
    return computations, entry


def _trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """How often a loop runs: as XLA notes it, or the one number that its condition compares with."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = list(computations[loop.called("condition")])
    for op in computations[loop.called("condition")]:
        condition += computations.get(op.called("calls"), [])
    constants = [
        op.rest
        for op in condition
        if op.opcode == "constant" and re.match(r"[su]32\[\]", op.result)
    ]
    return max((int(rest.split(")")[0]) for rest in constants), default=None)


def _arrays(types: str) -> Iterator[tuple[int, str]]:
    """Bytes and layout of each array in the types of an instruction."""
    for dtype, lengths, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", types):
        bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype)[:2] or 0)
        yield math.prod(int(n) for n in lengths.split(",") if n) * bits // 8, layout
