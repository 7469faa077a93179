"""The collective operations of compiled programs, each once, however often it runs."""

from etpc.estimating import hlo
from etpc.estimating.compiled import COLLECTIVES


def collectives(text):
    """The kind of each of optimised HLO, and the bytes of its result."""
    for instructions in hlo.parsed(text).computations.values():
        for op in instructions:
            if (kind := op.opcode.removesuffix("-start")) in COLLECTIVES:
                yield kind, hlo.bytes_of(op.type)
