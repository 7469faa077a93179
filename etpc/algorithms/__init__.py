"""Learning rules, as data: what is cut, and which trace each weight operation carries.

An algorithm is a frozen record. The compiler asks it for `cut`, for the form of each trace (`choose`, or
`trace_form` of each kind of operation), for an extension, and for the window.
[`register_algorithm`][etpc.algorithms.register_algorithm] gives one a name.
"""

from ..forms import Decay, Full, LowRank
from ._algorithm import (
    Algorithm,
    Backprop,
    Choice,
    Context,
    TraceForm,
    register_algorithm,
    registered,
)
from ._names import named, resolve
from ._rules import D_RTRL, ES_D_RTRL, RTRL, TBPTT, SnAp
from ._settings import Check, checked_decay, checked_rank, checked_seed, one_of

for _rule in (D_RTRL, ES_D_RTRL, RTRL, SnAp):
    register_algorithm(_rule)

__all__ = [
    "D_RTRL",
    "ES_D_RTRL",
    "RTRL",
    "TBPTT",
    "Algorithm",
    "Backprop",
    "Check",
    "Choice",
    "Context",
    "Decay",
    "Full",
    "LowRank",
    "SnAp",
    "TraceForm",
    "checked_decay",
    "checked_rank",
    "checked_seed",
    "named",
    "one_of",
    "register_algorithm",
    "registered",
    "resolve",
]
