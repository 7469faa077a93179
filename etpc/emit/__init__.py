"""Fourth stage: from a plan to functions on arrays."""

from ._constant import mode_counts
from ._emit import Window, emit

__all__ = ["Window", "emit", "mode_counts"]
