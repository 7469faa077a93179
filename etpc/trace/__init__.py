"""First stage: from a model to the canonical program of one step."""

from ._known import Known
from ._leaves import Leaves, paths_of, repeat
from ._trace import Step, called, check_new_state, checked_call, initial_state, trace

__all__ = [
    "Known",
    "Leaves",
    "Step",
    "called",
    "check_new_state",
    "checked_call",
    "initial_state",
    "paths_of",
    "repeat",
    "trace",
]
