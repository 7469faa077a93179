"""Bounds of the blocks of traces if nothing were cut, without forming the patterns."""

import numpy as np

from ..analyse import Analysis, Pattern


def uncut_block(analysis: Analysis, number: int) -> int:
    """At most how many states an output of operation `number` reaches if nothing is cut.

    `analysis` is one in which every operation that mixes is cut. Each of them is
    taken to pass on whatever enters its data to all that it reaches; where each of its outputs
    reads all of its inputs, the number is exact.
    """
    reach = analysis.reach
    members = np.zeros(analysis.hidden.size, bool)
    members[reach[number].states] = True
    passed = np.zeros_like(members)
    entered: set[int] = set()
    reads = lambda j: (
        (members & reach[j].dependence.states).any()
        or any(reach[j].dependence.ops[k] for k in {number, *entered})
    )
    while more := {j for j in analysis.cut - entered if reads(j)}:
        entered |= more
        for j in more:
            passed[reach[j].states] = True
        members |= passed
    return int(passed.sum()) + _most(~passed, reach[number].block)


def one_step_block(analysis: Analysis, number: int) -> int:
    """At most how many states an output of operation `number` reaches in its own step, uncut."""
    sources = {number}
    passed = np.zeros(analysis.hidden.size, bool)
    reads = lambda j: any(analysis.reach[j].dependence.ops[k] for k in sources)
    while more := {j for j in analysis.cut - sources if reads(j)}:
        sources |= more
    for j in sources - {number}:
        passed[np.flatnonzero(np.diff(analysis.immediate[j].indptr))] = True
    return int(passed.sum()) + _most(~passed, analysis.immediate[number].T.tocsr())


def _most(counted: np.ndarray, block: Pattern) -> int:
    """The largest number of counted states in a row."""
    counts = np.concatenate([[0], np.cumsum(counted[block.indices])])[block.indptr]
    return int(np.diff(counts).max(initial=0))
