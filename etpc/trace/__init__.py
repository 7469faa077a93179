"""First stage: from a model to the canonical program of one step."""

from typing import TYPE_CHECKING

from .. import later
from .._jax import Equation, Variable, in_place_of
from ._known import Known
from ._leaves import Leaves, is_array, paths_of, repeat, shape_of
from ._trace import (
    Step,
    StepFunction,
    called,
    check_new_state,
    checked_call,
    fits,
    initial_state,
    trace,
)

if TYPE_CHECKING:
    from ._spikes import firing_rates, silent_layers, spike_functions, warn_of_silence
else:
    __getattr__ = later.names(
        __name__, {"_spikes": "firing_rates silent_layers spike_functions warn_of_silence"}
    )

__all__ = [
    "Equation",
    "Known",
    "Leaves",
    "Step",
    "StepFunction",
    "Variable",
    "called",
    "check_new_state",
    "checked_call",
    "firing_rates",
    "fits",
    "in_place_of",
    "initial_state",
    "is_array",
    "paths_of",
    "repeat",
    "shape_of",
    "silent_layers",
    "spike_functions",
    "trace",
    "warn_of_silence",
]
