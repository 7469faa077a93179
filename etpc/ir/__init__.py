"""The trace program between plan and emission: traces, terms, how Jacobians are read, and the window."""

from ._check import check
from ._compression import Colouring, Columns, Compression, Index, Layout, block_rows, entered
from ._nodes import Feed, TraceNode
from ._pairs import uses
from ._paths import ForwardedStates, OutputPaths
from ._program import Change, Length, TraceProgram, WindowSpec, numbered
from ._terms import (
    AtEnd,
    AtStart,
    Carried,
    Credit,
    Data,
    Direct,
    Grads,
    Product,
    Signal,
    Steps,
    Through,
    end_of,
    past_of,
    terms_of,
)
from ._transient import with_values

__all__ = [
    "AtEnd",
    "AtStart",
    "Carried",
    "Change",
    "Colouring",
    "Columns",
    "Compression",
    "Credit",
    "Data",
    "Direct",
    "Feed",
    "ForwardedStates",
    "Grads",
    "Index",
    "Layout",
    "Length",
    "OutputPaths",
    "Product",
    "Signal",
    "Steps",
    "Through",
    "TraceNode",
    "TraceProgram",
    "WindowSpec",
    "block_rows",
    "check",
    "end_of",
    "entered",
    "numbered",
    "past_of",
    "terms_of",
    "uses",
    "with_values",
]
