"""On a TPU or a GPU, loops over steps have several steps in their body, which XLA makes fewer kernels of.

- Pattern: a target without a cache.
- Proof: the same steps run in the same order.
- Rewrite: the schedule of the program (`etpc/schedule/accelerator.py`).
- A v5e has 0.3x to 0.8x of the estimated cycles, and an H100 0.4x to 0.6x of the kernels.
"""

import dataclasses

from ...ir import Change, TraceProgram
from ...schedule import Unrolled
from ._pass import Pass


def _run(program: TraceProgram) -> TraceProgram:
    target = program.target
    if target.cache is not None:
        return program
    is_tpu = target.platform == "tpu"
    # States along an axis fill two of eight rows of a TPU's registers; a GPU has more kernels for several arrays.
    schedule = Unrolled(target.devices, updates=2 if is_tpu else 1, carries_apart=is_tpu)
    text = f"loops over steps have {schedule.steps} steps in their body"
    return dataclasses.replace(program, schedule=schedule).noted(Change(NAME, "", text))


NAME = "unroll"
UNROLL = Pass(NAME, "on a TPU or a GPU, loops over steps have several steps in their body", _run)
