"""First stage: from a model to the canonical program of one step; and what others take of its equations."""

from typing import TYPE_CHECKING

from .. import later
from .._jax import (
    Equation,
    Primitive,
    Tracer,
    Variable,
    canonicalise,
    evaluate,
    flatten,
    in_place_of,
    is_complex,
    is_float,
    is_key,
    is_spike,
    mark,
    params,
    prims,
    propagate,
    prune,
    register_meaning,
)
from .._jax.primitives import IDENTITIES, facts
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
    "IDENTITIES",
    "Equation",
    "Known",
    "Leaves",
    "Primitive",
    "Step",
    "StepFunction",
    "Tracer",
    "Variable",
    "called",
    "canonicalise",
    "check_new_state",
    "checked_call",
    "evaluate",
    "facts",
    "firing_rates",
    "fits",
    "flatten",
    "in_place_of",
    "initial_state",
    "is_array",
    "is_complex",
    "is_float",
    "is_key",
    "is_spike",
    "mark",
    "params",
    "paths_of",
    "prims",
    "propagate",
    "prune",
    "register_meaning",
    "repeat",
    "shape_of",
    "silent_layers",
    "spike_functions",
    "trace",
    "warn_of_silence",
]
