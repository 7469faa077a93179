"""The forms of a trace: each one file, and one object that the compiler asks."""

from ._decay import Decay
from ._defined import WHOLE_TRACE, Defined, Line, Meaning
from ._extension import Block, Extension, Uncut
from ._filtered import Filtered
from ._full import Full
from ._holomorphic import Holomorphic
from ._in_parallel import passed_back
from ._joined import Joined
from ._low_rank import LowRank
from ._pairs import DENSE_UP_TO, Pairs, every_pair
from ._recursion import Recursion, where_no_stream_begins
from ._times import times
from ._trace import (
    AddsToFirst,
    Carry,
    Factors,
    MovesAndReads,
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
from ._transitions import apply_back, paired, suffix_products

__all__ = [
    "DENSE_UP_TO",
    "WHOLE_TRACE",
    "AddsToFirst",
    "Block",
    "Carry",
    "Decay",
    "Defined",
    "Extension",
    "Factors",
    "Filtered",
    "Full",
    "Holomorphic",
    "Joined",
    "Line",
    "LowRank",
    "Meaning",
    "MovesAndReads",
    "Pairs",
    "Passage",
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
    "paired",
    "passed_back",
    "size_of",
    "suffix_products",
    "times",
    "where_no_stream_begins",
    "zeros",
]
