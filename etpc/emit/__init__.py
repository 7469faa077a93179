"""Fourth stage: from a plan to functions on arrays."""

from ._emit import NO_SECOND_DERIVATIVE, Window, emit

__all__ = ["NO_SECOND_DERIVATIVE", "Window", "emit"]
