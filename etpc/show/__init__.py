"""What is shown of a program: claims, sentences, tables and the graph, from its plan alone."""

from ._describe import COLUMNS, escapes, rows, shape_text, table, verdict
from ._shown import Shown

__all__ = ["COLUMNS", "Shown", "escapes", "rows", "shape_text", "table", "verdict"]
