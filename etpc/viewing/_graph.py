"""The dependency graph of a program with the place of each node, and the paths along which influence escapes."""

import itertools
from typing import Any

from ..analyse import Escape
from ..draw import layout, picture
from ..run import Program
from ._model import Weights

Node = tuple[str, str]
"""The kind and the path of a node; several operations may have one path."""


class Drawn:
    """The graph of a program as it is drawn."""

    def __init__(self, program: Program, weights: Weights):
        placed = layout(picture(program))
        self.ops = {("op", f"{p.path}#{p.op.number}"): p for p in program.plan.ops}
        self.weights, self.boxes, self.arrows = weights, placed.boxes, placed.arrows
        self.size = placed.width, placed.height
        self.numbers = {box.node.name: n for n, box in enumerate(self.boxes)}
        self.at: dict[Node, list[int]] = {}
        for name, n in self.numbers.items():
            self.at.setdefault((name[0], self.path(name)), []).append(n)
        ends = [(self.numbers[a.edge.source], self.numbers[a.edge.target]) for a in self.arrows]
        self.edges = {pair: n for n, pair in enumerate(ends)}
        self.escapes: list[dict[str, Any]] = []
        """The paths along which influence escapes, in words and as edges."""
        self._numbers: dict[str, int] = {}

    def path(self, name: Node) -> str:
        return self.ops[name].path if name in self.ops else name[1]

    def number(self, text: str, escape: Escape) -> int:
        """The place of an escape among all; several operations may have the same."""
        if text not in self._numbers:
            self._numbers[text] = len(self.escapes)
            self.escapes.append({"text": text, **self.along(escape)})
        return self._numbers[text]

    def along(self, escape: Escape) -> dict[str, list[int]]:
        """The numbers of the nodes and edges along which influence escapes."""
        ends = (escape.source, *(f"the output of {path}" for path in escape.through), escape.target)
        nodes = [[n for name in self._named(end) for n in self.at.get(name, ())] for end in ends]
        pairs = itertools.pairwise(nodes)
        found = (self.edges.get((a, b)) for a_s, b_s in pairs for a in a_s for b in b_s)
        edges = sorted({edge for edge in found if edge is not None})
        return {"nodes": sorted({n for each in nodes for n in each}), "edges": edges}

    @staticmethod
    def _named(end: str) -> list[Node]:
        """The nodes that the end of an escape names: states, or the operations of a weight."""
        if end.startswith("the output of "):
            return [("op", end.removeprefix("the output of "))]
        return [("state", name) for name in end.removeprefix("hidden ").split(" and hidden ")]

    def record(self) -> dict[str, Any]:
        """The nodes and edges, for JSON."""
        nodes: list[dict[str, Any]] = []
        for box in self.boxes:
            node, p = box.node, self.ops.get(box.node.name)
            of = [] if node.kind != "parameter" else self.weights.of_path(node.name[1])
            of = of if p is None else self.weights.of_leaves(p.op.parameters)
            about = [text for text in node.hover if not text.startswith("left out: ")]
            what = dict(kind=node.kind, path=self.path(node.name), weights=of, about=about)
            shown = dict(label=box.label, detail=box.detail, traced=node.traced, loop=node.loop)
            place = [box.x, box.y, box.width, box.height]
            op = None if p is None else p.op.number
            nodes.append({**what, "op": op, **shown, "claim": node.claim, "box": place})
        edges: list[dict[str, Any]] = []
        for arrow in self.arrows:
            ends = self.numbers[arrow.edge.source], self.numbers[arrow.edge.target]
            line = dict(line=arrow.path, tip=[*arrow.tip, *arrow.direction])
            edges.append({"from": ends[0], "to": ends[1], "kind": arrow.edge.kind, **line})
        return {"width": self.size[0], "height": self.size[1], "nodes": nodes, "edges": edges}
