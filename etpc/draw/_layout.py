"""Where the boxes and arrows of a picture go.

The drawing is layered, from top to bottom (K. Sugiyama et al., "Methods for visual understanding of
hierarchical system structures", 1981): each box stands in a row below what it depends on within a
step, and boxes of a row are ordered by the mean place of their neighbours. An arrow has a lane in each
row that it passes, beside the boxes, and a curve from one row to the next; so none passes under a text.
"""

import dataclasses
import itertools
import math

import networkx as nx
import numpy as np
import scipy

from ._picture import Edge, Name, Node, Picture, shortened

LABEL, DETAIL = 13.0, 11.0
"""Font sizes, in pixels."""
ADVANCE = 0.61
"""At most the width of a character of a monospaced font, in units of its size."""
BADGE, PAD = 26.0, 10.0
HEIGHT, GAP = 44.0, 40.0
"""Of a row, and between rows."""
BESIDE = 18.0
"""Between boxes or lanes of a row."""
MOST = 6
"""Of the boxes that could share a row, those beyond this number have rows of their own."""
HEAD = 8.0
SWEEPS = 16
CENTRING = 0.3
"""How much boxes are drawn to the middle of the picture, in units of one arrow."""

Point = tuple[float, float]
Place = Name | tuple[int, int]
"""A box; or the lane of an edge, by its number, in a row."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A node with its texts and its place; `x` and `y` are its upper left corner."""

    node: Node
    label: str
    detail: str
    x: float
    y: float
    width: float
    height: float = HEIGHT


@dataclasses.dataclass(frozen=True)
class Arrow:
    """An edge as the `d` of an SVG path, its tip, and the direction in which that points."""

    edge: Edge
    path: str
    tip: Point
    direction: Point


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything with its place, from (0, 0) to (`width`, `height`)."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    width: float
    height: float


def layout(picture: Picture) -> Layout:
    """Give every node and edge of a picture a place."""
    row = _rows(picture)
    ways = [_way(n, e, row) for n, e in enumerate(picture.edges)]
    texts = {n.name: (shortened(n.label, 26), shortened(n.detail, 32)) for n in picture.nodes}
    widths: dict[Place, float] = {n.name: _width(n, *texts[n.name]) for n in picture.nodes}
    centres = _centres(row, ways, widths)
    left = min((x - widths.get(p, 0.0) / 2 for p, x in centres.items()), default=0.0)
    # Whole pixels, which no rounding error changes where widths are whole numbers.
    centres = {place: float(round(x - left + 0.75)) for place, x in centres.items()}
    right = max((x + widths.get(p, 0.0) / 2 for p, x in centres.items()), default=0.0)
    boxes = {
        n.name: Box(
            n,
            *texts[n.name],
            centres[n.name] - widths[n.name] / 2,
            row[n.name] * (HEIGHT + GAP),
            widths[n.name],
        )
        for n in picture.nodes
    }
    bottom = max((box.y + HEIGHT for box in boxes.values()), default=0.0)
    arrows = _arrows(picture, ways, boxes, centres)
    return Layout(tuple(boxes.values()), arrows, right, bottom)


def _width(node: Node, label: str, detail: str) -> float:
    inner = ADVANCE * max(len(label) * LABEL, len(detail) * DETAIL)
    sides = {"op": BADGE, "state": 1.75 * BADGE}.get(node.kind, 2 * PAD)
    return float(math.ceil(inner + 2 * PAD + sides))


def _rows(picture: Picture) -> dict[Name, int]:
    """The row of each node, which is below what it depends on within a step.

    A state is its value before and after a step, so what leads from it counts last, and only where it
    closes no circle.
    """
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(node.name for node in picture.nodes)
    for e in sorted(picture.edges, key=lambda e: e.source[0] == "state"):
        if not nx.has_path(graph, e.target, e.source):
            graph.add_edge(e.source, e.target)
    depth = {name: d for d, names in enumerate(nx.topological_generations(graph)) for name in names}
    for name in graph:  # what nothing enters goes next to what it enters
        after = [depth[n] for n in graph.successors(name)]
        if after and not graph.in_degree(name):
            depth[name] = min(after) - 1
    together = itertools.groupby(sorted(graph, key=depth.__getitem__), depth.__getitem__)
    rows = [
        names[i : i + MOST]
        for names in (list(group) for _, group in together)
        for i in range(0, len(names), MOST)
    ]
    return {name: r for r, names in enumerate(rows) for name in names}


def _way(number: int, e: Edge, row: dict[Name, int]) -> list[Place]:
    """The places that an edge passes, from its source to its target: a lane in each row between."""
    first, last = row[e.source], row[e.target]
    step = 1 if first < last else -1
    return [e.source, *((number, r) for r in range(first + step, last, step)), e.target]


def _centres(
    row: dict[Name, int], ways: list[list[Place]], widths: dict[Place, float]
) -> dict[Place, float]:
    """The x of the middle of each box and lane.

    Rows are put in the order of the mean place of their neighbours, some times down and up; then each
    place is moved to that mean, as far as its row leaves room.
    """
    rows: list[list[Place]] = [[] for _ in range(max(row.values(), default=-1) + 1)]
    near: dict[Place, list[Place]] = {name: [] for name in row}
    for name, r in row.items():
        rows[r].append(name)
    for way in ways:
        for place in way[1:-1]:
            rows[int(place[1])].append(place)
        for a, b in itertools.pairwise(way):
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
    centres: dict[Place, float] = {}
    for places in rows:
        gaps = _gaps(places, widths)
        centres |= dict(zip(places, gaps - gaps.mean(), strict=True))

    def wanted(place: Place) -> float:
        beside = near[place]
        total = sum(centres[p] for p in beside)
        return total / (len(beside) + CENTRING * (place in widths)) if beside else centres[place]

    for sweep in range(2 * SWEEPS):
        for places in rows[:: 1 if sweep % 2 == 0 else -1]:
            if sweep < SWEEPS:
                places.sort(key=lambda place: round(wanted(place), 3))
            gaps = _gaps(places, widths)
            weights = [1.0 if place in widths else 4.0 for place in places]  # lanes are straight
            moved = scipy.optimize.isotonic_regression(  # imported here: it takes long
                np.array([wanted(p) for p in places]) - gaps, weights=weights
            )
            centres |= dict(zip(places, map(float, moved.x + gaps), strict=True))
    return centres


def _gaps(places: list[Place], widths: dict[Place, float]) -> np.ndarray:
    """How far each place of a row is right of the first one, at least."""
    half = np.array([widths.get(place, 0.0) / 2 for place in places])
    return np.cumsum([0.0, *(half[:-1] + half[1:] + BESIDE)])


# --- arrows ---


def _arrows(
    picture: Picture,
    ways: list[list[Place]],
    boxes: dict[Name, Box],
    centres: dict[Place, float],
) -> tuple[Arrow, ...]:
    """Each edge as curves between rows, and straight lines through the rows that it passes.

    Where edges leave and enter a box they are spread along a side, in the order of the next places.
    """
    edges = [
        (n, e, way, boxes[e.source].y < boxes[e.target].y)
        for n, (e, way) in enumerate(zip(picture.edges, ways, strict=True))
    ]
    sides: dict[tuple[Name, float], list[tuple[float, int]]] = {}
    for n, e, way, down in edges:
        for name, after, below in ((e.source, way[1], down), (e.target, way[-2], not down)):
            y = boxes[name].y + HEIGHT * below
            sides.setdefault((name, y), []).append((centres[after], n))
    ports: dict[tuple[int, Name], Point] = {}
    for (name, y), ends in sides.items():
        step = min(14.0, (boxes[name].width - HEIGHT) / max(len(ends) - 1, 1))
        for i, (_, n) in enumerate(sorted(ends)):
            ports[n, name] = centres[name] + (i - (len(ends) - 1) / 2) * step, y
    arrows = []
    for n, e, way, down in edges:
        direction = 1.0 if down else -1.0
        start, end = ports[n, e.source], ports[n, e.target]
        stops = [start]
        for place in way[1:-1]:
            top = int(place[1]) * (HEIGHT + GAP)
            stops += [(centres[place], y) for y in (top, top + HEIGHT)[:: 1 if down else -1]]
        stops.append((end[0], end[1] - direction * HEAD / 2))  # inside the head
        path = ""
        for (x, y), (to_x, to_y) in zip(stops[::2], stops[1::2], strict=True):
            corners = (x, y), (x, (y + to_y) / 2), (to_x, (y + to_y) / 2), (to_x, to_y)
            texts = [f"{number(a)} {number(b)}" for a, b in corners]
            if not path.endswith(" " + texts[0]):
                path += f" L {texts[0]}" if path else f"M {texts[0]}"
            path += f" C {' '.join(texts[1:])}"
        arrows.append(Arrow(e, path, end, (0.0, direction)))
    return tuple(arrows)


def number(value: float) -> str:
    """A coordinate with at most one digit after the point."""
    return f"{round(value, 1):g}" if round(value, 1) else "0"
