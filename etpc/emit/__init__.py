"""Fourth stage: from a plan to functions on arrays."""

from ._emit import NO_SECOND_DERIVATIVE, Window, emit
from ._proofs import rank_bounds

__all__ = ["NO_SECOND_DERIVATIVE", "Window", "emit", "rank_bounds"]
