"""The claims, sentences, tables and graph that a program shows of its plan."""

from ._describe import COLUMNS, each_once, escapes, rows, shape_text, table, verdict
from ._edits import edits
from ._shown import Shown

__all__ = [
    "COLUMNS",
    "Shown",
    "each_once",
    "edits",
    "escapes",
    "rows",
    "shape_text",
    "table",
    "verdict",
]
