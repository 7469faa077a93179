"""Where the past of a trace and the first step of a window have one credit, they are one product.

- Pattern: `Through` and `Past` of a form whose past is data that the credit of a step is multiplied with, as a decay's.
- Proof: no path leads to the output past the new states, so that the credit of the past has no part of its own.
- Rewrite: the past is added to the data of the first step.
- It buys a product: 1.6 times the time of a GRU at each step.
"""

from ...analyse import WeightOp
from ...forms import AddsToFirst
from ...ir import Change, Past, Term, Through, TraceProgram
from .._paths import credited_whole
from ._pass import Pass


def _run(program: TraceProgram) -> TraceProgram:
    if program.window.credit == "window":
        return program
    found = [node for node in credited_whole(program) if isinstance(node.form, AddsToFirst)]

    def term(op: WeightOp, term: Term) -> Term | None:
        match term:
            case Through(_, trace) if trace in found and op in trace.feeds[0].ops:
                return Through(op, trace, Past(trace, trace.feeds[0].ops.index(op)))
            case Past(trace) if trace in found:
                return None
            case _:
                return term

    text = "one product for the first step of a window and what was before it"
    changes = [Change(NAME, node.op.path, text) for node in found]
    return program.rewritten({}, term).noted(*changes)


NAME = "join_past"
JOIN_PAST = Pass(
    NAME,
    "under a decay, the past is added to the data of the first step, as both have one credit",
    _run,
)
