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
from collections import Counter
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .chips import Place
from .hlo import KERNELS, arrays, bytes_of, parsed

COLLECTIVES = ["all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"]
FAST = "S(1)"
"""An array that XLA keeps in the memory of a TPU's core, VMEM, in place of HBM."""


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
    """`jax.jit(function)`, compiled for arguments of these shapes and dtypes on one device of a place; numbers of
    Python are constants."""
    on_one = NamedSharding(Mesh(np.array(place.devices[:1]), ("one",)), PartitionSpec())
    given, rest = eqx.partition(args, lambda a: hasattr(a, "shape"))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), given)
    run = lambda *given: function(*eqx.combine(given, rest))
    return jax.jit(run, in_shardings=on_one, **options).lower(*shapes).compile()


def cost(compiled: Any) -> Cost:
    """What a compiled program costs."""
    memory = compiled.memory_analysis()
    of_text = read(compiled.as_text())
    of_text.temporary = memory.temp_size_in_bytes
    of_text.arguments = memory.argument_size_in_bytes
    return of_text


def read(text: str) -> Cost:
    """What optimised HLO says of its cost; bytes of memory are not in it."""
    module, found = parsed(text), Cost()

    def visit(name: str, times: int) -> None:
        for op in module.computations[name]:
            called = dict(op.called)  # of several branches the last
            if op.opcode == "while":
                in_fast = [size for size, layout in arrays(op.type) if FAST in layout]
                found.fast = max(found.fast, sum(in_fast))
                trips = module.trips(op)
                if trips is None:
                    found.unknown.append(op.name)
                visit(called["body"], times * (trips or 1))
                continue
            if op.opcode == "call" and called.get("to_apply") in module.computations:
                visit(called["to_apply"], times)
                continue
            if op.opcode == "conditional":
                visit(called.get("branch") or called["true_computation"], times)
                continue
            ended = op.opcode.removesuffix("-done")  # a start has the operands in its result too
            if ended in COLLECTIVES:
                runs, total = found.collectives.get(ended, (0, 0))
                found.collectives[ended] = (runs + times, total + times * bytes_of(op.type))
            cycles, launched = times * op.cycles, times * bool(KERNELS.fullmatch(op.opcode))
            if cycles or launched:
                found.cycles += cycles
                found.kernels += launched
                found.by_line[op.op_name or op.name] += cycles or launched
                for size, _ in arrays(op.type):
                    found.written[size] += times
                    if op.opcode.removesuffix("-start") == "copy":
                        found.copies[size] += times

    visit(module.entry, 1)
    return found
