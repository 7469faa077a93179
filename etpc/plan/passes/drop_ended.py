"""A weight whose influence on the states ends with the step needs no trace.

- Pattern: a whole trace none of whose states lasts, as that of an LSTM's output gate where it is a product of its own.
- Proof: as that of states that do not last, for all states of the block.
- Rewrite: no trace; the gradient is that of each step.
- It saves the trace, and is up to 1.4x faster.
"""

from ...forms import Full
from ...ir import Change, TraceProgram
from .._proofs import Proofs
from ._pass import Pass


def _run(program: TraceProgram) -> TraceProgram:
    proofs = Proofs.of(program.analysis, program.algorithm.backprop)
    gone = [n for n in program.traces if n.form == Full() and all(map(proofs.ends, n.ops))]
    text = "no later step reads its trace"
    changes = [Change(NAME, node.op.path, text, node.bytes) for node in gone]
    return program.regrouped(dict.fromkeys(gone, ())).noted(*changes)


NAME = "drop_ended"
DROP_ENDED = Pass(NAME, "a weight whose influence ends with the step has no trace", _run)
