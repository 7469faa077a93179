"""How many steps are processed at once where that is left open, from what moves and what is kept."""

from collections.abc import Sequence

import numpy as np

from ..analyse import Analysis
from ..tuning import tuning
from ._blocks import Layout
from ._records import OpPlan

SHORTEST, AT_LEAST, AT_MOST = 8, 16, 64
"""Bounds of a window, in steps. With more than `AT_MOST`, a window saved less than the rest of a step takes, on every
network that was measured. It is shorter than `AT_LEAST` only where the traces take less memory than one step."""


def chosen_window(analysis: Analysis, ops: Sequence[OpPlan], colours: int) -> tuple[int, str]:
    """A window, and why it is not the least.

    Each window makes one pass over the traces, which moves their bytes two or three times, and keeps the arrays
    of each of its steps. So a window is as long as it can be while these arrays take no more than the traces.
    Where the traces take less than a single step, passes cost nothing, and the arrays should stay in a cache.
    """
    traces = sum(p.trace_bytes for p in ops)
    step, cached = max(bytes_of_step(analysis, ops, colours), 1), tuning().window
    window = traces // step
    if window == 0 and cached is not None and cached < AT_LEAST * step:
        return max(cached // step, SHORTEST), "what its steps keep is to stay in a cache"
    if window <= AT_LEAST:
        return AT_LEAST, ""
    if window >= AT_MOST:
        return AT_MOST, "what its steps keep takes less than the traces"
    return int(window), "what its steps keep takes as much as the traces"


def bytes_of_step(analysis: Analysis, ops: Sequence[OpPlan], colours: int) -> int:
    """About how many bytes a window keeps of one step of one example.

    It keeps inputs, states before and after, the compressed Jacobians and the data of operations; and for each
    trace F and D, as they are and moved to the end of the window.
    """
    step, states = analysis.step, analysis.hidden.size
    numbers = sum(v.size for v in step.inputs) + (2 + colours) * states
    layouts: dict[Layout, int] = {}
    for p in ops:
        kind = p.op.kind
        outputs = kind.groups * kind.outputs
        if analysis.reach[p.op.number].role == "state":
            numbers += colours * outputs + (
                kind.groups * kind.inputs if kind.data is not None else 0
            )
        if p.trace is not None and not p.trace.beside:
            layouts[p.trace.layout] = p.trace.layout.transition.at.size
            numbers += 2 * p.block * outputs
    numbers += 2 * sum(layouts.values())
    return numbers * np.dtype(analysis.hidden.dtype).itemsize
