"""Learning rules, as data: what is cut, and which trace each weight operation carries.

An algorithm is a frozen record. The compiler asks it for `cut`, for the form of each trace (`choose`, or
`trace_form` of each kind of operation), for an extension, and for the window.
[`register_algorithm`][etpc.algorithms.register_algorithm] gives one a name.
"""

import importlib
from typing import TYPE_CHECKING, Any

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
from ._eprop import EProp
from ._kronecker import KFRTRL, OK
from ._names import named, resolve
from ._ostl import OSTL
from ._rflo import RFLO
from ._rules import D_RTRL, ES_D_RTRL, RTRL, TBPTT, SnAp
from ._through_time import OTPE, OTTT

for _rule in (D_RTRL, ES_D_RTRL, RTRL, SnAp, EProp, RFLO, OSTL, OTTT, OTPE, KFRTRL, OK):
    register_algorithm(_rule)

if TYPE_CHECKING:
    from .directions import UORO, CreditRTRL
else:

    def __getattr__(name: str) -> Any:
        """The rules that carry more than traces are loaded when they are asked for."""
        if name not in ("UORO", "CreditRTRL"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(".directions", __name__), name)


__all__ = [
    "D_RTRL",
    "ES_D_RTRL",
    "KFRTRL",
    "OK",
    "OSTL",
    "OTPE",
    "OTTT",
    "RFLO",
    "RTRL",
    "TBPTT",
    "UORO",
    "Algorithm",
    "Backprop",
    "Choice",
    "Context",
    "CreditRTRL",
    "Decay",
    "EProp",
    "Full",
    "LowRank",
    "SnAp",
    "TraceForm",
    "named",
    "register_algorithm",
    "registered",
    "resolve",
]
