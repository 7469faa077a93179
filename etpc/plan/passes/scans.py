"""On a TPU or a GPU, linear recurrences over the steps of a small network's window are associative scans.

- Pattern: a target without a cache. The states of a block are few, and for the credit that is passed back, each state
  depends on states at its own place alone.
- Proof: products of transitions are associative.
- Rewrite: the schedule of the program.
- An H100 has 0.4x to 0.7x of the kernels, and a v5e that learns from one stream, 0.5x of the cycles.
"""

import dataclasses

from ...ir import Change, TraceProgram
from ._pass import Pass

ABREAST = {"tpu": (512, 32), "cuda": (1 << 18, 4), "rocm": (1 << 18, 4)}
"""At most so many numbers at each step, and in windows of more than so many steps. For more numbers a scan takes longer
than a loop on a v5e, as XLA estimates, and on a GPU about what it saves in launches of 5 us, at 3.4 TB/s."""


def _run(program: TraceProgram) -> TraceProgram:
    if program.target.platform not in ABREAST:
        return program
    abreast, longest_loop = ABREAST[program.target.platform]
    schedule = dataclasses.replace(program.schedule, abreast=abreast, longest_loop=longest_loop)
    text = f"linear recurrences of up to {abreast:,} numbers at each step are associative scans"
    return dataclasses.replace(program, schedule=schedule).noted(Change(NAME, "", text))


NAME = "scans"
SCANS = Pass(NAME, "on a TPU or a GPU, linear recurrences of small networks are scans", _run)
