"""An extension of the compiler, and the rules that have it: what escapes from traces, along directions of state space.

It imports public names alone, as one of a user would."""

from ._credit import CreditRTRL, CreditSubspace
from ._directions import Directions
from ._orthonormal import orthonormal
from ._uoro import UORO, RandomDirection

__all__ = [
    "UORO",
    "CreditRTRL",
    "CreditSubspace",
    "Directions",
    "RandomDirection",
    "orthonormal",
]
