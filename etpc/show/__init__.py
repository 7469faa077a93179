"""The claims, sentences, tables and graph that a program shows of its plan."""

from ._bounds import uncut_block
from ._describe import describe, each_once, shape_text, table, verdict
from ._edits import edits
from ._explain import explain
from ._graph import Graph, dependency_graph
from ._passes import PassReport, PassReports
from ._record import record_of

__all__ = [
    "Graph",
    "PassReport",
    "PassReports",
    "dependency_graph",
    "describe",
    "each_once",
    "edits",
    "explain",
    "record_of",
    "shape_text",
    "table",
    "uncut_block",
    "verdict",
]
