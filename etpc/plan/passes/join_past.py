"""Where the past of a trace and the first step of a window have one credit, they are one product.

- Pattern: `Through` and `Past` of a form whose past is data that the credit of a step is multiplied with, as a decay's.
- Proof: no path leads to the output past the new states, so that the credit of the past has no part of its own.
- Rewrite: the past is added to the data of the first step.
- It buys a product: 1.6 times the time of a GRU at each step.
"""

import dataclasses

from ...forms import AddsToFirst
from ...ir import Change, Past, Through, TraceProgram
from .._paths import credited_whole
from ._pass import Pass


def _run(program: TraceProgram) -> TraceProgram:
    if program.window.credit == "window":
        return program
    found = [node for node in credited_whole(program) if isinstance(node.form, AddsToFirst)]

    def joined(terms: tuple[object, ...]) -> tuple[object, ...]:
        past = next((t for t in terms if isinstance(t, Past) and t.trace in found), None)
        if past is None:
            return terms
        with_past = lambda t: t._replace(past=past) if isinstance(t, Through) else t
        return tuple(with_past(t) for t in terms if t is not past)

    grads, step_grads = (
        {op: joined(terms) for op, terms in of.items()}
        for of in (program.grads, program.step_grads)
    )
    text = "one product for the first step of a window and what was before it"
    changes = [Change(NAME, node.op.path, text) for node in found]
    return dataclasses.replace(program, grads=grads, step_grads=step_grads).noted(*changes)


NAME = "join_past"
JOIN_PAST = Pass(
    NAME,
    "under a decay, the past is added to the data of the first step, as both have one credit",
    _run,
)
