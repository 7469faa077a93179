"""The claims, sentences, tables and graph that a program shows of its plan."""

from ._describe import each_once, shape_text, table, verdict
from ._edits import edits
from ._shown import Shown

__all__ = [
    "Shown",
    "each_once",
    "edits",
    "shape_text",
    "table",
    "verdict",
]
