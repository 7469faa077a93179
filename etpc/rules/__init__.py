"""Published rules beyond the forms and choices of the compiler: each a file, with forms or an extension of its own.

They import public names alone, as a rule of a user would, and are loaded when one of them is asked for.
"""

from ..algorithms import register_algorithm
from ._credit import CreditRTRL, CreditSubspace
from ._directions import Directions
from ._eprop import EProp
from ._fixed_leak import FixedLeak
from ._kronecker import KFRTRL, OK
from ._low_passed import LowPassed
from ._orthonormal import orthonormal
from ._ostl import OSTL
from ._presynaptic import Presynaptic
from ._random_pairs import KroneckerFactor, KroneckerSum, least_variance
from ._rflo import RFLO
from ._through_time import OTPE, OTTT
from ._uoro import UORO, RandomDirection

for _rule in (EProp, RFLO, OSTL, OTTT, OTPE, KFRTRL, OK, CreditRTRL, UORO):
    register_algorithm(_rule)

__all__ = [
    "KFRTRL",
    "OK",
    "OSTL",
    "OTPE",
    "OTTT",
    "RFLO",
    "UORO",
    "CreditRTRL",
    "CreditSubspace",
    "Directions",
    "EProp",
    "FixedLeak",
    "KroneckerFactor",
    "KroneckerSum",
    "LowPassed",
    "Presynaptic",
    "RandomDirection",
    "least_variance",
    "orthonormal",
]
