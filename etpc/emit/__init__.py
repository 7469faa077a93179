"""Fourth stage: from a plan to functions on arrays."""

from ._emit import Window, emit
from ._proofs import rank_bounds

__all__ = ["Window", "emit", "rank_bounds"]
