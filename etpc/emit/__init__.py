"""Fourth stage: from a plan to functions on arrays."""

from ._emit import emit
from ._gradient import no_gradient, sum_of_gradients
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
    "no_gradient",
    "none_yet",
    "sum_of_gradients",
]
