"""Fourth stage: from a plan to functions on arrays."""

from ._emit import Window, emit

__all__ = ["Window", "emit"]
