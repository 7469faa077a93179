"""In windows of one step, the whole gradient of a trace is that trace at the end of the step times the learning signal.

- Pattern: a form that can be read after it was moved.
- Proof: no path leads to the output past the new states, neither from old states nor from the operations, and the trace
  has all states at which credit is taken. Credit of a state that no trace holds is passed on where it can be, if no
  term was left out as zero before: it may not be zero then.
- Rewrite: one term, the trace at the end times the learning signal, in windows of one step.
- One loop over the trace replaces two: up to 1.2x faster.
"""

import dataclasses

from ...forms import ReadsEnd
from ...ir import Change, OutputPaths, TraceProgram, end_of
from .._paths import credited_at, credited_whole
from ._pass import REGROUPING, Pass


def _run(program: TraceProgram) -> TraceProgram:
    if program.window.credit == "window":
        return program
    before = program.paths.credited
    if not program.zeros:  # these were proved of the paths as they are
        paths = OutputPaths(program.analysis, credited_at(program))
        program = dataclasses.replace(program, paths=paths)
    found = {node for node in credited_whole(program) if isinstance(node.form, ReadsEnd)}
    of_op = {op: node for node in found for op in node.ops}
    first = {node.op: (end_of(node),) for node in found}
    grads = {
        op: first.get(op, ()) if op in of_op else terms for op, terms in program.step_grads.items()
    }
    text = "the gradient of a window of one step is read after the step"
    changes = [Change(NAME, node.op.path, text) for node in program.traces if node in found]
    if program.paths.credited != before:
        changes.append(Change(NAME, "", "credit of states that no trace holds is passed on"))
    return dataclasses.replace(program, step_grads=grads).noted(*changes)


NAME = "read_after"
READ_AFTER = Pass(
    NAME,
    "in windows of one step, the gradient is read from the trace at the end of the step",
    _run,
    after=(*REGROUPING, "drop_unlasting"),
)
