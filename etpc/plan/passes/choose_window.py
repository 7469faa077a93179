"""How many steps are processed at once where no gradient depends on it, from what moves and what is kept.

- Pattern: a rule that leaves the window open.
- Proof: credit is cut as the traces are, and no form reduces its trace after a window.
- Rewrite: the number of steps of a window.
- On a CPU, where traces are small it is 1.2x faster, and a window keeps 2.5x less memory. A v5e has 0.4x to 0.8x of the
  estimated cycles with the longer windows that it gets.
"""

import dataclasses

import numpy as np

from ...ir import Change, TraceProgram
from .._plain import AT_LEAST
from ._pass import REGROUPING, Pass

SHORTEST, AT_MOST = 8, 64
"""Bounds of a window, in steps. With more than `AT_MOST`, a window saved less than the rest of a step takes, on every
network that was measured. It is shorter than `AT_LEAST` only where the traces take less memory than one step."""
AT_MOST_ELSEWHERE, KEPT_ELSEWHERE = 200, 4
"""The same bound where there is no cache to stay in, as on a TPU, and how many times the bytes of the traces a window
may keep there by `bytes_of_step`. That counts all arrays of a step; a TPU had a quarter to a half of them at a time,
beside the copies of the traces that a window takes in any case."""
CACHED = 640 << 10
"""Bytes that a window may keep of the steps of one example on a CPU where the traces are small; measured on the cells
of the benchmarks in batches of 32, with windows of 8 to 50 steps."""


def _run(program: TraceProgram) -> TraceProgram:
    """As many steps as keep no more than the traces take.

    Each window makes one pass over the traces, which moves their bytes two or three times, and keeps the arrays of each
    of its steps. Where the traces take less than a single step, passes cost nothing, and the arrays should stay in a
    cache.
    """
    if program.window.length != "open":
        return program
    traces = sum(node.bytes for node in program.traces)
    step, cached = max(bytes_of_step(program), 1), program.target.cache is not None
    kept, at_most = (1, AT_MOST) if cached else (KEPT_ELSEWHERE, AT_MOST_ELSEWHERE)
    times = "" if kept == 1 else f"{kept} times "
    steps, why = kept * traces // step, f"what its steps keep takes {times}as much as the traces"
    if steps == 0 and cached and AT_LEAST * step > CACHED:
        steps, why = max(CACHED // step, SHORTEST), "what its steps keep is to stay in a cache"
    elif steps <= AT_LEAST:
        return program
    elif steps >= at_most:
        steps, why = at_most, f"what its steps keep takes less than {times}the traces"
    window = dataclasses.replace(program.window, steps=int(steps), why=why)
    change = Change(NAME, "", f"{steps} steps in place of {AT_LEAST}: {why}")
    return dataclasses.replace(program, window=window).noted(change)


def bytes_of_step(program: TraceProgram) -> int:
    """About how many bytes a window keeps of one step of one example.

    It keeps inputs, states before and after, the compressed Jacobians and the data of operations; and for each
    trace F and D, as they are and moved to the end of the window.
    """
    step, hidden, compression = program.analysis.step, program.analysis.hidden, program.compression
    colours = compression.colours.count
    numbers = sum(v.size for v in step.inputs) + (2 + colours) * hidden.size
    for op in program.grads:
        inputs = op.kind.groups * op.kind.inputs if op.kind.data is not None else 0
        numbers += colours * op.size + inputs
    numbers += sum(2 * node.block * node.op.size * len(node.feeds) for node in program.traces)
    layouts = {compression.layout(node.blocks) for node in program.traces}
    numbers += 2 * sum(layout.transition.at.size for layout in layouts)
    return numbers * np.dtype(hidden.dtype).itemsize


NAME = "choose_window"
CHOOSE_WINDOW = Pass(
    NAME,
    "a window has as many steps as take no more memory than the traces",
    _run,
    after=(*REGROUPING, "drop_unlasting", "holomorphic", "by_columns"),
)
