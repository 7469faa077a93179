"""The trace program between plan and emission: traces, terms, how Jacobians are read, and the window."""

from ._check import check
from ._pairs import uses
from ._program import (
    After,
    Change,
    Direct,
    Feed,
    Grads,
    Past,
    Term,
    Through,
    TraceNode,
    TraceProgram,
    WindowSpec,
    terms_of,
)
from ._reads import Colouring, Columns, Index, Layout, Reads, block_rows, entered

__all__ = [
    "After",
    "Change",
    "Colouring",
    "Columns",
    "Direct",
    "Feed",
    "Grads",
    "Index",
    "Layout",
    "Past",
    "Reads",
    "Term",
    "Through",
    "TraceNode",
    "TraceProgram",
    "WindowSpec",
    "block_rows",
    "check",
    "entered",
    "terms_of",
    "uses",
]
