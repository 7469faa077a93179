"""First stage: from a model to the canonical program of one step."""

from ._known import Known
from ._leaves import Leaves, path_text, repeat
from ._trace import Step, called, check_new_state, checked_call, initial_state, trace

__all__ = [
    "Known",
    "Leaves",
    "Step",
    "called",
    "check_new_state",
    "checked_call",
    "initial_state",
    "path_text",
    "repeat",
    "trace",
]
