"""Where the boxes and arrows of a picture go.

An arrow to the next column, or within one, is a curve. All others run between the boxes: down or up
in the gap beside a column, and along the row in a track of their own in the gutter above or below
it. So no arrow passes under a text. Gutter g is above row g.
"""

import dataclasses
import itertools
import math

from ._columns import BESIDE, Grid, column_width, grid, texts
from ._picture import Edge, Name, Node, Picture

HEIGHT, ABOVE = 44.0, 18.0
"""Of a box, and between boxes of a column."""
TRACK = 11.0
"""Between parallel arrows."""
RADIUS, HEAD = 8.0, 8.0

Point = tuple[float, float]


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


@dataclasses.dataclass(frozen=True)
class _Way:
    """How an arrow runs, and the sides of the boxes where it leaves and enters."""

    edge: Edge
    start: tuple[int, int]
    """Row and column of the source."""
    end: tuple[int, int]
    leave: str
    """`"right"`, `"up"` or `"down"`."""
    enter: str
    """`"left"`, `"right"`, `"up"` or `"down"`."""
    gutters: tuple[int, ...]
    """Which it takes: none if it is a curve, two if it passes rows between."""

    def span(self, gutter: int) -> tuple[float, float]:
        """From where to where it runs in a gutter, in columns; gaps are at half numbers."""
        start = self.start[1] + 0.5 * (self.leave == "right")
        end = self.end[1] - 0.5 * (self.enter == "left")
        if len(self.gutters) == 2:
            start, end = (start, -1.0) if gutter == self.gutters[0] else (-1.0, end)
        return min(start, end), max(start, end)


def layout(picture: Picture) -> Layout:
    """Give every node and edge of a picture a place."""
    rows = grid(picture)
    ways = _ways(picture, rows)
    tracks, counts = _tracks(ways, len(rows))
    boxes, gutters, bottom = _boxes(rows, ways, counts)
    arrows = _arrows(ways, boxes, tracks, gutters)
    placed = tuple(boxes[node.name] for node in picture.nodes)
    right = max((b.x + b.width for b in placed), default=0.0)
    return Layout(placed, arrows, right + _beyond(rows, ways), bottom)


def _beyond(rows: Grid, ways: list[_Way]) -> float:
    """The room that arrows need right of the last column of a row."""
    room = 0.0
    for r, row in enumerate(rows):
        leaving = [w for w in ways if w.leave == "right" and w.start == (r, len(row) - 1)]
        room = max(room, TRACK * sum(bool(w.gutters) for w in leaving))
        room = max(room, BESIDE * any(w.enter == "right" for w in leaving))
    return room


def _ways(picture: Picture, rows: Grid) -> list[_Way]:
    positions = {
        node.name: (r, c, i, len(column))
        for r, row in enumerate(rows)
        for c, column in enumerate(row)
        for i, node in enumerate(column)
    }
    return [_way(e, positions[e.source], positions[e.target]) for e in picture.edges]


def _way(e: Edge, source: tuple[int, ...], target: tuple[int, ...]) -> _Way:
    (r, c, i, length), (row, column, k, other) = source, target
    start, end = (r, c), (row, column)
    if r == row and column == c + 1:
        return _Way(e, start, end, "right", "left", ())
    if start == end and abs(i - k) == 1:
        sides = ("down", "up") if k > i else ("up", "down")
        return _Way(e, start, end, *sides, ())
    if start == end:
        return _Way(e, start, end, "right", "right", ())
    first = r if r == row and column > c else r + 1  # to the right above the row, else below it
    last = first if r == row else row + (row < r)

    def side(outermost: bool, up: bool, otherwise: str) -> str:
        return otherwise if not outermost else "up" if up else "down"

    up, from_above = first == r, last == row
    leave = side(i == 0 if up else i == length - 1, up, "right")
    enter = side(k == 0 if from_above else k == other - 1, from_above, "left")
    return _Way(e, start, end, leave, enter, (first,) if first == last else (first, last))


def _tracks(ways: list[_Way], rows: int) -> tuple[dict[tuple[int, int], int], list[int]]:
    """The track of each way in each of its gutters, and how many a gutter has.

    What belongs to the row above comes first; short ones are nearest to their row.
    """
    tracks: dict[tuple[int, int], int] = {}
    counts = []
    for gutter in range(rows + 1):
        passing = [n for n, w in enumerate(ways) if gutter in w.gutters]
        above = [n for n in passing if ways[n].start[0] < gutter or gutter != ways[n].gutters[0]]
        below = [n for n in passing if n not in above]
        first, used = _levels({n: ways[n].span(gutter) for n in above})
        second, more = _levels({n: ways[n].span(gutter) for n in below})
        tracks.update({(n, gutter): level for n, level in first.items()})
        tracks.update({(n, gutter): used + more - 1 - level for n, level in second.items()})
        counts.append(used + more)
    return tracks, counts


def _levels(spans: dict[int, tuple[float, float]]) -> tuple[dict[int, int], int]:
    """A level for each span, so that those of one level do not touch; and how many there are."""
    taken: list[list[tuple[float, float]]] = []
    levels: dict[int, int] = {}
    for n, (a, b) in sorted(spans.items(), key=lambda item: (item[1][1] - item[1][0], item[0])):
        free = (i for i, row in enumerate(taken) if all(b < c or a > d for c, d in row))
        levels[n] = next(free, len(taken))
        if levels[n] == len(taken):
            taken.append([])
        taken[levels[n]].append((a, b))
    return levels, len(taken)


def _boxes(
    rows: Grid, ways: list[_Way], counts: list[int]
) -> tuple[dict[Name, Box], list[float], float]:
    """The boxes, where the first track of each gutter is, and the lower end of all."""
    boxes: dict[Name, Box] = {}
    gutters: list[float] = []
    margin = TRACK * sum(len(w.gutters) == 2 for w in ways)
    y = 0.0
    for r, row in enumerate(rows):
        gutters.append(y + (1.5 * TRACK if r else 0.5 * TRACK))
        y += _gutter(counts[r])
        height = max(len(column) * (HEIGHT + ABOVE) - ABOVE for column in row)
        x = margin
        for c, column in enumerate(row):
            left = sum(bool(w.gutters) and w.enter == "left" and w.end == (r, c) for w in ways)
            right = sum(bool(w.gutters) and w.leave == "right" and w.start == (r, c) for w in ways)
            x += TRACK * left + (BESIDE if c else 2 * TRACK * bool(left))
            width = column_width(column)
            top = y + (height - len(column) * (HEIGHT + ABOVE) + ABOVE) / 2
            for i, node in enumerate(column):
                boxes[node.name] = Box(node, *texts(node), x, top + i * (HEIGHT + ABOVE), width)
            x += width + TRACK * right
        y += height
    gutters.append(y + 1.5 * TRACK)
    return boxes, gutters, y + _gutter(counts[-1])


def _gutter(tracks: int) -> float:
    return TRACK * (tracks + 2) if tracks else 0.0


# --- arrows ---


def _arrows(
    ways: list[_Way],
    boxes: dict[Name, Box],
    tracks: dict[tuple[int, int], int],
    gutters: list[float],
) -> tuple[Arrow, ...]:
    ports = _ports(ways, boxes)
    lanes = itertools.count()
    beside: dict[tuple[str, tuple[int, int]], int] = {}

    def lane(side: str, place: tuple[int, int]) -> float:
        beside[side, place] = beside.get((side, place), 0) + 1
        return TRACK * beside[side, place]

    arrows = []
    for n, w in enumerate(ways):
        start, end = ports[n, "leave"], ports[n, "enter"]
        if not w.gutters:
            arrows.append(_curve(w, start, end))
            continue
        levels = [gutters[g] + TRACK * tracks[n, g] for g in w.gutters]
        out = start[0] + (lane("right", w.start) if w.leave == "right" else 0.0)
        into = end[0] - (TRACK + lane("left", w.end) if w.enter == "left" else 0.0)
        points = [start, (out, start[1]), (out, levels[0])]
        if len(levels) == 2:
            x = TRACK * next(lanes)
            points += [(x, levels[0]), (x, levels[1])]
        points += [(into, levels[-1]), (into, end[1]), end]
        direction = {"left": (1.0, 0.0), "up": (0.0, 1.0), "down": (0.0, -1.0)}[w.enter]
        points[-1] = _behind(end, direction)
        arrows.append(Arrow(w.edge, _rounded(points), end, direction))
    return tuple(arrows)


def _behind(tip: Point, direction: Point) -> Point:
    """Where the line of an arrow ends, inside its head."""
    return tip[0] - HEAD / 2 * direction[0], tip[1] - HEAD / 2 * direction[1]


def _curve(w: _Way, start: Point, end: Point) -> Arrow:
    (x, y), (to_x, to_y) = start, end
    if w.leave in ("up", "down"):  # to the next box of the column
        direction = 0.0, (1.0 if w.leave == "down" else -1.0)
        return Arrow(w.edge, _line("M", start, "L", _behind(end, direction)), end, direction)
    if w.enter == "right":  # to another box of the column
        direction, bend = (-1.0, 0.0), max(x, to_x) + 0.7 * BESIDE
        controls = (bend, y), (bend, to_y)
    else:
        direction, pull = (1.0, 0.0), 0.5 * (to_x - x)
        controls = (x + pull, y), (to_x - pull, to_y)
    path = _line("M", start, "C", *controls, _behind(end, direction))
    return Arrow(w.edge, path, end, direction)


def _ports(ways: list[_Way], boxes: dict[Name, Box]) -> dict[tuple[int, str], Point]:
    """Where each way leaves and enters: spread along a side, in the order of the other ends."""
    sides: dict[tuple[Name, str], list[tuple[tuple[float, float], int, str]]] = {}
    for n, w in enumerate(ways):
        a, b = boxes[w.edge.source], boxes[w.edge.target]
        for box, other, side, end in ((a, b, w.leave, "leave"), (b, a, w.enter, "enter")):
            if side in ("up", "down"):  # the short ones outside, so that they do not cross
                away = other.x - box.x
                order = (0.0, -away) if away < 0 else (1.0, -away)
            elif w.gutters:  # first or last, as it comes from above or below
                gutter, row = (
                    (w.gutters[0], w.start[0]) if end == "leave" else (w.gutters[-1], w.end[0])
                )
                order = -math.inf if gutter == row else math.inf, other.x
            else:
                order = other.y, other.x
            sides.setdefault((box.node.name, side), []).append((order, n, end))
    ports: dict[tuple[int, str], Point] = {}
    for (name, side), ends in sides.items():
        box = boxes[name]
        along = box.width if side in ("up", "down") else box.height
        step = min(12.0, (along - 16.0) / max(len(ends) - 1, 1))
        for i, (_, n, end) in enumerate(sorted(ends)):
            shift = (i - (len(ends) - 1) / 2) * step
            ports[n, end] = {
                "left": (box.x, box.y + box.height / 2 + shift),
                "right": (box.x + box.width, box.y + box.height / 2 + shift),
                "up": (box.x + box.width / 2 + shift, box.y),
                "down": (box.x + box.width / 2 + shift, box.y + box.height),
            }[side]
    return ports


def _rounded(points: list[Point]) -> str:
    """A line through points, with round corners."""
    kept = points[:1]
    for point, after in itertools.pairwise(points[1:]):
        before = kept[-1]
        if point == before or _straight(before, point, after):
            continue
        kept.append(point)
    kept.append(points[-1])
    parts: list[str | Point] = ["M", kept[0]]
    for before, corner, after in zip(kept, kept[1:], kept[2:], strict=False):
        size = min(RADIUS, math.dist(before, corner) / 2, math.dist(corner, after) / 2)
        parts += ["L", _toward(corner, before, size), "Q", corner, _toward(corner, after, size)]
    return _line(*parts, "L", kept[-1])


def _straight(a: Point, b: Point, c: Point) -> bool:
    return abs((b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])) < 1e-9


def _toward(start: Point, end: Point, length: float) -> Point:
    share = length / (math.dist(start, end) or 1.0)
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _line(*parts: str | Point) -> str:
    """Commands and points as the `d` of a path."""
    return " ".join(p if isinstance(p, str) else f"{number(p[0])} {number(p[1])}" for p in parts)


def number(value: float) -> str:
    """A coordinate with at most one digit after the point."""
    return f"{round(value, 1):g}" if round(value, 1) else "0"


__all__ = ["HEAD", "HEIGHT", "Arrow", "Box", "Layout", "layout", "number"]
