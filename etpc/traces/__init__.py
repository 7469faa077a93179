"""The forms of a trace: each one file, and one object that the compiler asks."""

from ._decay import Decay
from ._full import Full
from ._low_rank import LowRank
from ._trace import Carry, Factors, Products, Rows, Signals, Site, Trace, bytes_of, zeros

__all__ = [
    "Carry",
    "Decay",
    "Factors",
    "Full",
    "LowRank",
    "Products",
    "Rows",
    "Signals",
    "Site",
    "Trace",
    "bytes_of",
    "zeros",
]
