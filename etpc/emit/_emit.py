"""From a trace program to the functions of its windows."""

from typing import Any

from ..ir import TraceProgram
from . import _credit_of_steps, _credit_of_window, _lookback
from ._step import StepFunctions
from ._window import Window


def emit(program: TraceProgram) -> Window[Any]:
    """Emit the functions of a trace program."""
    step = StepFunctions(program.analysis, program.schedule)
    if program.window.credit == "step":
        return Window(program, step, _credit_of_steps.forward, _credit_of_steps.backward)
    forward = _lookback.forward if program.window.behind else _credit_of_window.forward
    return Window(program, step, forward, _credit_of_window.backward)
