"""Uses of one weight that reach the same states need the sum of their traces alone.

- Pattern: whole traces of one weight with equal blocks, whose kinds have equal `uses`.
- Proof: a whole trace is linear in what enters it, and its gradient is linear in the trace.
- Rewrite: one trace with a feed for each use.
- It saves the memory of all traces but one.
"""

import dataclasses
from collections.abc import Hashable

from ...analyse import entries_of
from ...forms import Full
from ...ir import Change, TraceNode, TraceProgram
from ._pass import Pass


def _run(program: TraceProgram) -> TraceProgram:
    alike: dict[Hashable, list[TraceNode]] = {}
    for node in program.traces:
        uses = getattr(node.site.kind, "uses", None)  # a kind may leave it out
        if uses is not None and node.form == Full():
            of_node = entries_of(node.blocks), node.dtype, node.virtual, program.closed(node)
            alike.setdefault((node.op.weight, uses, *of_node), []).append(node)
    for first, *others in alike.values():
        if others:
            program = _shared(program, first, others)
    return program


def _shared(program: TraceProgram, first: TraceNode, others: list[TraceNode]) -> TraceProgram:
    nodes = first, *others
    new = dataclasses.replace(first, feeds=tuple(feed for node in nodes for feed in node.feeds))
    text = f"added to the trace of its use at {first.op.equation.source}"
    traces = {first: (new,), **dict.fromkeys(others, ())}
    changes = [Change(NAME, node.op.path, text, node.bytes) for node in others]
    return program.regrouped(traces).noted(*changes)


NAME = "share_uses"
SHARE_USES = Pass(
    NAME,
    "uses of one weight that reach the same states have one trace, the sum of theirs",
    _run,
    after=("drop_unlasting", "drop_ended"),
)
