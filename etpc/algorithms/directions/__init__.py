"""An extension of the compiler, and the rule that has it: what escapes from traces, along directions of state space.

It imports public names alone, as one of a user would."""

from ._credit import CreditRTRL, CreditSubspace
from ._directions import Directions
from ._orthonormal import orthonormal

__all__ = ["CreditRTRL", "CreditSubspace", "Directions", "orthonormal"]
