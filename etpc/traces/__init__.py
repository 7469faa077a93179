"""The forms of a trace: each one file, and one object that the compiler asks."""

from ._credit import CreditSubspace, EveryState
from ._decay import Decay
from ._directions import Directions
from ._filtered import Filtered
from ._full import Full
from ._low_rank import LowRank
from ._trace import Carry, Factors, Passage, Rows, Signals, Site, Trace, Traces, bytes_of, zeros

__all__ = [
    "Carry",
    "CreditSubspace",
    "Decay",
    "Directions",
    "EveryState",
    "Factors",
    "Filtered",
    "Full",
    "LowRank",
    "Passage",
    "Rows",
    "Signals",
    "Site",
    "Trace",
    "Traces",
    "bytes_of",
    "zeros",
]
