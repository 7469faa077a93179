"""Traces to which all credit comes by way of new states, for the passes that read them otherwise then."""

import numpy as np

from ..ir import OutputPaths, TraceNode, TraceProgram

PAST_NEW_STATES = "no path leads to the output past the new states"


def credited_at(program: TraceProgram) -> frozenset[int]:
    """The hidden states at which credit is taken, by number, where that of others is passed on.

    Credit of a state that no trace holds is passed on if it depends on other new states and on operations alone. An
    example is the output of an LSTM, which weights alone read in the next step.
    """
    a = program.analysis
    held = np.zeros(a.hidden.size, bool)
    for node in program.traces:
        held[node.blocks.indices] = True
    leaves = range(len(a.hidden.leaves))
    traced = {n for n in leaves if held[a.hidden.offsets[n] : a.hidden.offsets[n + 1]].any()}
    past = OutputPaths(a, traced).bypassing
    return frozenset(n for n in leaves if n in traced or a.hidden.new[n] in past)


def credited_whole(program: TraceProgram) -> list[TraceNode]:
    """The traces to which all credit comes by way of new states.

    No path leads past these to the output, neither from old states nor from the operations, and the trace has all
    states at which credit is taken.
    """
    whole = lambda node: program.all_through(node) and program.has_credited(node)
    return [node for node in program.traces if whole(node)]
