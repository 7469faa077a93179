"""The trace program of a learning rule without optimisations: each operation has a trace of its own, or none."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from ..algorithms import Algorithm, Choice, Context
from ..analyse import Analysis, Reach, WeightOp
from ..errors import Code
from ..ir import (
    Compression,
    Feed,
    Length,
    OutputPaths,
    TraceNode,
    TraceProgram,
    WindowSpec,
    terms_of,
    with_values,
)
from ..schedule import Schedule, Target
from ._choice import settled

AT_LEAST = 16
"""The steps of a window where the rule leaves them open and no pass chooses them."""
UNLIKE = ", unlike under SnAp and RTRL"


class Why(NamedTuple):
    """Why an operation has no trace."""

    code: Code
    text: str


def plain(
    algorithm: Algorithm, asked: Context, choice: Choice, untraced: Collection[int], target: Target
) -> TraceProgram:
    """The program; `untraced` are the numbers of the operations that have no trace.

    Forms that meet the credit of each step by themselves see the values of the step that count as new states too.
    """
    analysis = asked.analysis
    nodes = {op: _node(op, asked, choice) for op in analysis.live if op.number not in untraced}
    of_steps = [op for op, node in nodes.items() if node.form.of_steps]
    if algorithm.backprop == "cut" and of_steps:
        analysis = with_values(analysis)
        for op, node in nodes.items():
            block = analysis.reach[op.number].block
            if op not in of_steps:  # what is not carried is in no trace that is read later
                shape, block = block.shape, sp.csr_array(block[:, : analysis.hidden.carried])
                block.resize(shape)
            nodes[op] = dataclasses.replace(node, blocks=block)
    window = _window(algorithm, analysis, nodes)
    grads = {op: terms_of(op, nodes.get(op), window.credit) for op in analysis.live}
    return TraceProgram(
        *(analysis, algorithm, tuple(nodes.values()), grads, grads, Compression(analysis), window),
        paths=OutputPaths(analysis, range(len(analysis.hidden.leaves))),
        target=target,
        schedule=Schedule(target.devices),
        extension=choice.extension,
    )


def _node(op: WeightOp, asked: Context, choice: Choice) -> TraceNode:
    block, form = asked.analysis.reach[op.number].block, choice.forms[op.number]
    assert form is not None
    dtype, rows = asked.site(op).dtype, _rows(op, asked, choice)
    node = TraceNode(form, block, (Feed((op,)),), dtype, rows)
    return dataclasses.replace(node, form=settled(form, node.site, op.path))


def _rows(op: WeightOp, asked: Context, choice: Choice) -> int:
    """How many rows of an extension the trace of an operation has."""
    extension = choice.extension
    return 0 if extension is None else extension.rows(asked.site(op), asked.escapes(op))


def _window(
    algorithm: Algorithm, analysis: Analysis, nodes: Mapping[WeightOp, TraceNode]
) -> WindowSpec:
    """The window of a rule.

    Where the steps are not cut, it is one number for all sequences: a gradient depends much more on the length of
    such windows than on how often a trace is reduced.
    """
    credit = "step" if algorithm.backprop == "cut" else "window"
    reduces = any(node.form.reduces for node in nodes.values())
    length: Length = "meant" if reduces else "asked"
    if credit == "window":
        length = "meant"
    elif not all(analysis.reach[op.number].closed for op in nodes):
        length = "step"
    elif algorithm.window == "auto":
        length = "near" if reduces else "open"
    steps = algorithm.window
    if steps == "auto":
        steps = 1 if length == "step" else min(AT_LEAST, algorithm.lookback or AT_LEAST)
    return WindowSpec(
        steps,
        credit,
        behind=max((algorithm.lookback or 0) - steps, 0),
        length=length,
    )


def steps_back(algorithm: Algorithm) -> int:
    """Through how many steps at most the credit of a loss goes back to a weight without a trace."""
    if algorithm.backprop == "cut":
        return 1
    return algorithm.lookback or (AT_LEAST if algorithm.window == "auto" else algorithm.window)


def last_steps(algorithm: Algorithm) -> str:
    """These steps in words."""
    back = steps_back(algorithm)
    return "the current step" if back == 1 else f"the last {back} steps"


def no_trace(
    op: WeightOp, algorithm: Algorithm, asked: Context, choice: Choice, unchosen: Why
) -> Why | None:
    """Why an operation has no trace, `unchosen` if it was not asked for; `None` if it has one."""
    reach = asked.analysis.reach[op.number]
    if reach.role == "output":
        verdict = "has other feedback" if reach.escapes else "is exact"
        filtered = f"filtered({op.path})" in [path for path, _ in asked.analysis.step.added]
        why = "its data is filtered, so that it" if filtered else "it"
        text = f"{why} reaches no hidden state; the gradient of each step {verdict}"
        return Why(Code.OTHER_FEEDBACK if reach.escapes else Code.NO_STATE_REACHED, text)
    if reach.role == "nothing":
        return Why(Code.UNUSED, "it reaches no output, at this step or later")
    name, why = type(algorithm).__name__, None if op in asked.ops else unchosen
    if why is None and choice.forms[op.number] is None:
        why = Why(Code.NO_FORM, f"{name} gives it none")
    gradient = f"it gets the gradient of {last_steps(algorithm)}"
    if why is None and not reach.block.nnz and not _rows(op, asked, choice):
        through = ", ".join(_entrances(asked.analysis, op))
        cuts = "cuts" if algorithm.backprop == "cut" else "cuts between windows"
        text = f"it acts on the states only through {through}, where {name} {cuts}"
        why = Why(Code.BEHIND_WEIGHTS, text)
        gradient += UNLIKE
    return None if why is None else Why(why.code, f"{why.text}; {gradient}")


def ends(reach: Reach, algorithm: Algorithm) -> Why:
    """Why an operation has no trace whose influence ends with the step."""
    text = "no later step reads what it does to the states"
    if not reach.escapes:
        return Why(Code.NOT_READ_LATER, f"{text}; the gradient of each step is exact")
    cut = f"as data that {type(algorithm).__name__} cuts"
    gradient = f"it gets the gradient of {last_steps(algorithm)}{UNLIKE}"
    return Why(Code.READ_AS_CUT_DATA, f"{text} but {cut}; {gradient}")


def _entrances(analysis: Analysis, op: WeightOp) -> list[str]:
    """The weights through which the output of an operation enters the states, where their data is cut."""
    reads = np.array([reach.dependence.ops for reach in analysis.reach], bool)
    reads &= np.array([reader.number in analysis.cut for reader in analysis.ops])[:, None]
    reached = reads[:, op.number]
    for _ in analysis.ops:
        reached = reached | reads[:, reached].any(1)
    ends = [o.path for o in analysis.ops if reached[o.number] and analysis.immediate[o.number].nnz]
    return list(dict.fromkeys(ends))
