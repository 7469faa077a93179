"""The trace program of a learning rule without optimisations: each operation has a trace of its own, or none."""

import dataclasses

import numpy as np

from ..algorithms import Algorithm, Choice
from ..analyse import Analysis, Reach, WeightOp, trace_dtype
from ..forms import Site
from ..ir import Direct, Feed, Past, Reads, Term, Through, TraceNode, TraceProgram, WindowSpec
from ._choice import settled
from ._proofs import Proofs

AT_LEAST = 16
"""The steps of a window where the rule leaves them open and no pass chooses them."""
BEHIND = "it acts on the states only through"
"""How the reason begins why a weight whose output only other weights read has no trace."""
UNLIKE = ", unlike under SnAp and RTRL"


def plain(
    proofs: Proofs, algorithm: Algorithm, choice: Choice, untraced: dict[int, str]
) -> TraceProgram:
    """The program; `untraced` are the reasons why operations have no trace, by number."""
    analysis = proofs.analysis
    live = [op for op in analysis.ops if analysis.reach[op.number].role == "state"]
    nodes = {op: _node(analysis, op, choice) for op in live if op.number not in untraced}
    within = (
        algorithm.backprop == "cut"
    )  # else the gradient within a window is that of reverse mode

    def terms(op: WeightOp) -> tuple[Term, ...]:
        node = nodes.get(op)
        past = () if node is None else (Past(node),)
        return (Direct(op), Through(op, node), *past) if within else past

    grads = {op: terms(op) for op in live}
    program = TraceProgram(
        *(analysis, algorithm, tuple(nodes.values()), grads, grads, Reads(analysis)),
        window=WindowSpec(AT_LEAST, "step" if within else "window"),
        credited=frozenset(range(len(analysis.hidden.leaves))),
        proofs=proofs,
        extension=choice.extension,
    )
    return dataclasses.replace(program, window=_window(program))


def _node(analysis: Analysis, op: WeightOp, choice: Choice) -> TraceNode:
    reach, form = analysis.reach[op.number], choice.forms[op.number]
    assert form is not None
    rows = _rows(analysis, op, choice)
    node = TraceNode(form, reach.block, (Feed((op,)),), trace_dtype(analysis, op), rows)
    return dataclasses.replace(node, form=settled(form, node.site, op.path))


def _rows(analysis: Analysis, op: WeightOp, choice: Choice) -> int:
    """How many rows of an extension the trace of an operation has."""
    reach, extension = analysis.reach[op.number], choice.extension
    site = Site(op.kind, reach.size, trace_dtype(analysis, op))
    escapes = bool(reach.escapes) or not reach.block.nnz
    return 0 if extension is None else extension.rows(site, escapes)


def _window(program: TraceProgram) -> WindowSpec:
    """The window of a rule.

    Where the steps are not cut, it is one number for all sequences: a gradient depends much more on the length of
    such windows than on how often a trace is reduced.
    """
    algorithm, credit = program.algorithm, program.window.credit
    step_by_step = credit == "step" and not all(map(program.closed, program.traces))
    matters = credit == "window" or any(node.form.reduces for node in program.traces)
    open_ = algorithm.window == "auto"
    steps = AT_LEAST if algorithm.window == "auto" else algorithm.window
    if open_ and step_by_step:
        steps = 1
    elif open_ and matters:
        steps = min(steps, algorithm.lookback or steps)
    return WindowSpec(
        steps,
        credit,
        behind=max((algorithm.lookback or 0) - steps, 0),
        matters=matters,
        free=open_ and not matters and not step_by_step,
        divides=open_ and credit == "step" and not step_by_step,
        step_by_step=step_by_step,
    )


def no_trace(
    analysis: Analysis, op: WeightOp, algorithm: Algorithm, choice: Choice, unchosen: str
) -> str:
    """Why an operation has no trace; empty if it has one."""
    reach = analysis.reach[op.number]
    if reach.role == "output":
        return "it reaches no hidden state; the gradient of each step is exact"
    if reach.role == "nothing":
        return "it reaches no output, at this step or later"
    reason = unchosen
    if not reason and choice.forms[op.number] is None:
        reason = f"{type(algorithm).__name__} gives it none"
    steps = "current step" if algorithm.backprop == "cut" else "last steps"
    gradient = f"it gets the gradient of the {steps}"
    if not reason and not reach.block.nnz and not _rows(analysis, op, choice):
        through = ", ".join(_entrances(analysis, op))
        cuts = "cuts" if algorithm.backprop == "cut" else "cuts between windows"
        reason = f"{BEHIND} {through}, where {type(algorithm).__name__} {cuts}"
        gradient += UNLIKE
    return reason and f"{reason}; {gradient}"


def ends(reach: Reach, algorithm: Algorithm) -> str:
    """Why an operation has no trace whose influence ends with the step."""
    if not reach.escapes:
        return "no later step reads what it does to the states; the gradient of each step is exact"
    cut = f"as data that {type(algorithm).__name__} cuts"
    gradient = f"it gets the gradient of the current step{UNLIKE}"
    return f"no later step reads what it does to the states but {cut}; {gradient}"


def _entrances(analysis: Analysis, op: WeightOp) -> list[str]:
    """The weights through which the output of an operation enters the states, where their data is cut."""
    reads = np.array([reach.reads.ops for reach in analysis.reach], bool)
    reads &= np.array([reader.number in analysis.cut for reader in analysis.ops])[:, None]
    reached = reads[:, op.number]
    for _ in analysis.ops:
        reached = reached | reads[:, reached].any(1)
    ends = [o.path for o in analysis.ops if reached[o.number] and analysis.immediate[o.number].nnz]
    return list(dict.fromkeys(ends))
