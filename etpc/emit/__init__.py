"""Fourth stage: from a plan to functions on arrays."""

from ._emit import emit
from ._records import Span, Weights
from ._window import NO_SECOND_DERIVATIVE, Moving, Window

__all__ = ["NO_SECOND_DERIVATIVE", "Moving", "Span", "Weights", "Window", "emit"]
