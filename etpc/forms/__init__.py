"""The forms of a trace: each one file, and one object that the compiler asks."""

from ._decay import Decay
from ._defined import Defined, Line, Meaning
from ._extension import Block, Extension, Uncut
from ._filtered import Filtered
from ._fixed_leak import FixedLeak
from ._full import Full
from ._holomorphic import Holomorphic
from ._joined import Joined
from ._low_passed import LowPassed
from ._low_rank import LowRank
from ._pairs import DENSE_UP_TO, Pairs, every_pair
from ._presynaptic import Presynaptic
from ._random_pairs import KroneckerFactor, KroneckerSum, least_variance, random_signs
from ._recursion import Recursion
from ._trace import (
    AddsToFirst,
    Carry,
    Factors,
    Move,
    MovesTogether,
    Passage,
    ReadsEnd,
    Rows,
    Settles,
    Signals,
    Site,
    Trace,
    Traces,
    bytes_of,
    size_of,
    zeros,
)
from ._transitions import apply_back, paired, suffix_products, times

__all__ = [
    "DENSE_UP_TO",
    "AddsToFirst",
    "Block",
    "Carry",
    "Decay",
    "Defined",
    "Extension",
    "Factors",
    "Filtered",
    "FixedLeak",
    "Full",
    "Holomorphic",
    "Joined",
    "KroneckerFactor",
    "KroneckerSum",
    "Line",
    "LowPassed",
    "LowRank",
    "Meaning",
    "Move",
    "MovesTogether",
    "Pairs",
    "Passage",
    "Presynaptic",
    "ReadsEnd",
    "Recursion",
    "Rows",
    "Settles",
    "Signals",
    "Site",
    "Trace",
    "Traces",
    "Uncut",
    "apply_back",
    "bytes_of",
    "every_pair",
    "least_variance",
    "paired",
    "random_signs",
    "size_of",
    "suffix_products",
    "times",
    "zeros",
]
