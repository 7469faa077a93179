"""The claims, sentences, tables and graph that a program shows of its plan."""

from ._describe import COLUMNS, escapes, rows, shape_text, table, verdict
from ._record import plain, record
from ._shown import Shown

__all__ = [
    "COLUMNS",
    "Shown",
    "escapes",
    "plain",
    "record",
    "rows",
    "shape_text",
    "table",
    "verdict",
]
