"""From a plan to the functions of its windows."""

from typing import Any

from ..ir import TraceProgram
from ._lookback import LookBack
from ._reverse import Reverse
from ._step import StepFunctions
from ._truncated import Truncated
from ._window import Window


def emit(program: TraceProgram) -> Window[Any]:
    """Emit the functions of a trace program."""
    step = StepFunctions(program.analysis)
    if program.window.credit == "step":
        return Truncated(program, step)
    return LookBack(program, step) if program.window.behind else Reverse(program, step)
