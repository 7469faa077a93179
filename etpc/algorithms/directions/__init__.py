"""An extension of the compiler, and the rules that have it: what escapes from traces, along directions of state space.

It imports public names alone, as one of a user would."""

from .. import register_algorithm
from ._credit import CreditRTRL, CreditSubspace
from ._directions import Directions
from ._orthonormal import orthonormal
from ._uoro import UORO, RandomDirection

register_algorithm(CreditRTRL)
register_algorithm(UORO)

__all__ = [
    "UORO",
    "CreditRTRL",
    "CreditSubspace",
    "Directions",
    "RandomDirection",
    "orthonormal",
]
