"""Loops over steps on a TPU or a GPU.

A step of a small network is a dozen kernels there, and starting one takes longer than what it computes: XLA estimates
1,800 cycles for each on a v5e, and a launch on a GPU takes some microseconds. Where two steps follow each other in the
body of a loop, XLA makes one kernel of what would be several: it reads the slices of the data where they are used, and
a trace is moved by both steps in one pass over its memory.
"""

import dataclasses

from ._schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Unrolled(Schedule):
    """Loops over steps with several steps in their body.

    - `steps`: how many of a window.
    - `updates`: how many windows of one step, each of which moves the traces. For 2, a TPU writes a trace once, and a
        GPU copies it. For 4, XLA computes a large trace a second time where it is read.
    """

    steps: int = 4
    updates: int = 1

    def unroll(self, moves_traces: bool) -> int:
        return self.updates if moves_traces else self.steps

    def __str__(self) -> str:
        return f"loops over steps with {self.steps} steps in their body"
