"""Fourth stage: from a plan to functions on arrays."""

from ._emit import emit
from ._lookback import none_yet
from ._records import Begins, Span, Weights
from ._window import NO_SECOND_DERIVATIVE, Moving, Window

__all__ = [
    "NO_SECOND_DERIVATIVE",
    "Begins",
    "Moving",
    "Span",
    "Weights",
    "Window",
    "emit",
    "none_yet",
]
