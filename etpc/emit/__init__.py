"""Fourth stage: from a plan to functions on arrays."""

from ._emit import Window, emit
from ._proofs import Bound, rank_bounds

__all__ = ["Bound", "Window", "emit", "rank_bounds"]
