"""Which boxes stand in which column and row.

The columns are those of a layered drawing: each box stands right of what it depends on within a
step, and boxes of a column are ordered by the mean place of their neighbours (K. Sugiyama et al.,
"Methods for visual understanding of hierarchical system structures", 1981). Many columns are wrapped
into rows.
"""

import math

import networkx as nx

from ._picture import Edge, Name, Node, Picture, shortened

LABEL, DETAIL = 13.0, 11.0
"""Font sizes, in pixels."""
ADVANCE = 0.61
"""At most the width of a character of a monospaced font, in units of its size."""
BADGE, PAD = 26.0, 10.0
BESIDE = 52.0
"""Between columns."""
WIDEST = 1300.0
"""From this width on, columns are wrapped into rows."""

Grid = list[list[list[Node]]]
"""Rows of columns of nodes."""


def grid(picture: Picture) -> Grid:
    """The nodes of a picture in rows of columns."""
    return _rows(_columns(picture))


def texts(node: Node) -> tuple[str, str]:
    """The two lines of text in a box."""
    return shortened(node.label, 26), shortened(node.detail, 32)


def column_width(column: list[Node]) -> float:
    """The width of the boxes of a column, which is that of the longest text."""
    return max(map(_width, column))


def _width(node: Node) -> float:
    label, detail = texts(node)
    inner = ADVANCE * max(len(label) * LABEL, len(detail) * DETAIL)
    sides = {"op": BADGE, "state": 1.75 * BADGE}.get(node.kind, 2 * PAD)
    return float(math.ceil(inner + 2 * PAD + sides))


def ranks(picture: Picture) -> dict[Name, int]:
    """The column of each node: right of what it depends on within a step.

    A state is its value before and after a step, so what leads from it counts last, and only where it
    closes no circle; first what leads to operations that what enters the state enters too. States
    that enter each other stand in one column.
    """
    entered: dict[Name, set[Name]] = {node.name: set() for node in picture.nodes}
    between: nx.DiGraph = nx.DiGraph()
    for e in picture.edges:
        entered[e.target].add(e.source)
        if e.source[0] == e.target[0] == "state":
            between.add_edge(e.source, e.target)
    home = {name: name for name in entered}
    for together in nx.strongly_connected_components(between):
        home.update(dict.fromkeys(together, min(together)))

    def order(e: Edge) -> int:
        if e.source[0] != "state":
            return 0
        outside = {n for n in entered[e.source] if n[0] != "state"}
        if e.target[0] != "state":
            return 1 if outside & entered[e.target] else 3
        directly = any(n[0] != "state" for n in entered[e.target])
        return BESIDE_EACH_OTHER if directly else 2

    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(home.values())
    for e in sorted(picture.edges, key=order):
        a, b = home[e.source], home[e.target]
        if order(e) != BESIDE_EACH_OTHER and not nx.has_path(graph, b, a):
            graph.add_edge(a, b)
    rank: dict[Name, int] = {}
    for depth, names in enumerate(nx.topological_generations(graph)):
        rank.update(dict.fromkeys(names, depth))
    for name in graph:  # what nothing enters goes next to what it enters
        after = [rank[n] for n in graph.successors(name)]
        if after and not graph.in_degree(name):
            rank[name] = min(after) - 1
    return {name: rank[home[name]] for name in home}


BESIDE_EACH_OTHER = 4
"""The order of edges that do not tell left from right."""


def _columns(picture: Picture) -> list[list[Node]]:
    rank = ranks(picture)
    columns: list[list[Node]] = [[] for _ in range(max(rank.values(), default=0) + 1)]
    for node in picture.nodes:
        columns[rank[node.name]].append(node)
    return _ordered([c for c in columns if c], picture, rank)


def _ordered(
    columns: list[list[Node]], picture: Picture, rank: dict[Name, int]
) -> list[list[Node]]:
    """Columns in the order of the mean place of their neighbours.

    Of those with the same, the ones with arrows that lead back come last.
    """
    number = {node.name: i for i, node in enumerate(picture.nodes)}
    beside: dict[Name, list[Name]] = {node.name: [] for node in picture.nodes}
    back = {n.name: False for n in picture.nodes}
    for e in picture.edges:
        if rank[e.source] < rank[e.target]:
            beside[e.source].append(e.target)
            beside[e.target].append(e.source)
        elif rank[e.source] > rank[e.target]:
            back[e.source] = back[e.target] = True
    place = {n.name: i - (len(c) - 1) / 2 for c in columns for i, n in enumerate(c)}

    def key(node: Node) -> tuple[float, bool, int]:
        near = beside[node.name]
        mean = sum(place[n] for n in near) / len(near) if near else place[node.name]
        return round(mean, 3), back[node.name], number[node.name]

    for sweep in range(8):
        for column in columns[:: 1 if sweep % 2 == 0 else -1]:
            column.sort(key=key)
            place.update((n.name, i - (len(column) - 1) / 2) for i, n in enumerate(column))
    return columns


def _rows(columns: list[list[Node]]) -> Grid:
    """Columns wrapped into rows of about the same width; a row ends behind states where it can."""
    widths = [column_width(c) + BESIDE for c in columns]
    total = sum(widths)
    if total <= WIDEST:
        return [columns]
    share = total / math.ceil(total / (0.85 * WIDEST))
    rows: Grid = [[]]
    used = 0.0
    for n, (column, width) in enumerate(zip(columns, widths, strict=True)):
        behind_states = bool(rows[-1]) and any(node.kind == "state" for node in rows[-1][-1])
        full = used + width > (WIDEST if n < len(columns) - 1 else 1.2 * WIDEST)
        if rows[-1] and (
            full or (used + width / 2 > share and behind_states and n < len(columns) - 1)
        ):
            rows.append([])
            used = 0.0
        rows[-1].append(column)
        used += width
    return rows


__all__ = [
    "ADVANCE",
    "BADGE",
    "BESIDE",
    "DETAIL",
    "LABEL",
    "PAD",
    "Grid",
    "column_width",
    "grid",
    "ranks",
    "texts",
]
