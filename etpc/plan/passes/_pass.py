"""What a pass is."""

import dataclasses
from collections.abc import Callable

from ...ir import TraceProgram


@dataclasses.dataclass(frozen=True)
class Pass:
    """An optimisation: a function from a trace program to one with the same gradients, but for rounding.

    - `name`: by which `passes=` takes it.
    - `does`: what it does where it applies, in words.
    - `run`: takes a [`TraceProgram`][etpc.ir.TraceProgram] and returns one. It says what it changed by
        [`noted`][etpc.ir.TraceProgram.noted], and returns the program itself where it finds nothing to change.
    """

    name: str
    does: str
    run: Callable[[TraceProgram], TraceProgram]


__all__ = ["Pass"]
