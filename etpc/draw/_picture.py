"""What a picture of a program shows: nodes and edges with their texts, before any of it has a place."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import networkx as nx
import numpy as np
import scipy.sparse as sp

from ..plan import OpPlan, Plan
from ..run import Program
from ..show import shape_text, verdict

Name = tuple[str, str]
"""Kind and name, as in `program.graph`."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A box of the picture."""

    name: Name
    label: str
    detail: str
    claim: str
    """Of an operation: whether its gradient is `"exact"` or `"approximate"`; empty for others."""
    traced: bool
    hover: tuple[str, ...]
    loop: str
    """How the state keeps itself: the kind of an edge to itself, or empty."""

    @property
    def kind(self) -> str:
        return self.name[0]


@dataclasses.dataclass(frozen=True)
class Edge:
    """An arrow of the picture.

    `kind` is `"kept"`; `"cut"`, where the trace drops it and no trace is poorer for it; or
    `"escape"`, where influence of a weight leaves its trace.
    """

    source: Name
    target: Name
    kind: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """All that is drawn, in the order of the program."""

    title: str
    subtitle: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def picture(program: Program) -> Picture:
    """The nodes and edges to draw.

    Parameters are part of the operations that use them. An edge from one operation to another, or
    to an output, is left out where the same is said by the way through a state.
    """
    plan = program.plan
    graph = program.graph
    kinds = _edge_kinds(plan, graph)
    drawn = {node for node in graph if node[0] != "parameter" or not graph.out_degree(node)}
    implied = _implied(kinds)
    edges = {p: kind for p, kind in kinds.items() if p[0] in drawn and p not in implied}
    loops = {a: kind for (a, b), kind in edges.items() if a == b}
    nodes = [node for node in _nodes(program, loops) if node.name in drawn]
    drawn_edges = [Edge(a, b, kind) for (a, b), kind in edges.items() if a != b]
    size = plan.analysis.hidden.size
    traces = sum(p.trace_bytes for p in plan.traced)
    subtitle = f"{size:,} hidden states · {traces:,} bytes of traces for one example"
    return Picture(plan.algorithm.short, subtitle, tuple(nodes), tuple(drawn_edges))


def shortened(text: str, length: int) -> str:
    """`text`, with its middle left out where it is longer than `length`."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


# --- edges ---


def _edge_kinds(plan: Plan, graph: "nx.DiGraph") -> dict[tuple[Name, Name], str]:
    leaving = _leaving(plan)
    blocks = {state for p in plan.ops for state in p.states}
    kinds: dict[tuple[Name, Name], str] = {}
    for a, b, cut in graph.edges(data="cut"):
        # what a cut keeps out is missed where it is influence of a weight: the output of an
        # operation, or a state that is in the block of one
        lost = a[0] == "op" or a[1] in blocks if cut else (a, b) in leaving
        kinds[a, b] = "escape" if lost else "cut" if cut else "kept"
    return kinds


def _leaving(plan: Plan) -> set[tuple[Name, Name]]:
    """Pairs of states between which influence leaves a block that is not closed."""
    a = plan.analysis
    pairs: set[tuple[Name, Name]] = set()
    onward = sp.csr_array(a.transition.T)
    for p, reach in zip(plan.ops, a.reach, strict=True):
        if p.node is None or reach.closed:
            continue
        for path, start, stop in zip(
            a.hidden.paths, a.hidden.offsets, a.hidden.offsets[1:], strict=False
        ):
            reached = sp.csr_array(reach.block[:, start:stop] @ onward[start:stop])
            beyond = sp.csr_array(reached > reach.block)
            for after in a.hidden.names(np.unique(beyond.nonzero()[1])):
                pairs.add((("state", path), ("state", after)))
    return pairs


def _implied(kinds: dict[tuple[Name, Name], str]) -> set[tuple[Name, Name]]:
    """Edges of operations that say the same as one from a state that the operation enters."""
    states: dict[Name, list[Name]] = {}
    for a, b in kinds:
        if a[0] == "op" and b[0] == "state":
            states.setdefault(a, []).append(b)
    return {
        (a, b)
        for (a, b), kind in kinds.items()
        if a[0] == "op" and b[0] in ("op", "output")
        if any(kinds.get((state, b)) == kind for state in states.get(a, ()))
    }


# --- nodes ---


def _nodes(program: Program, loops: dict[Name, str]) -> Iterator[Node]:
    plan = program.plan
    step, hidden = plan.analysis.step, plan.analysis.hidden

    def plain(kind: str, path: str, aval: Any, *more: str, loop: str = "") -> Node:
        text = (
            f"{jnp.dtype(aval.dtype).name}{list(aval.shape)}" if _known(aval) else str(aval.dtype)
        )
        return Node((kind, path), path, text, "", True, (f"{kind} {path}", text, *more), loop)

    for path, aval in zip(step.input_leaves.paths, step.input_leaves.avals, strict=True):
        yield plain("input", path, aval)
    for path, aval in step.model_leaves.float_avals.items():
        yield plain("parameter", path, aval, "no operation of the step reads it")
    for p in plan.ops:
        yield _op(p, program)
    for path, aval in zip(hidden.paths, hidden.avals, strict=True):
        loop = loops.get(("state", path), "")
        yield plain("state", path, aval, *([_LOOPS[loop]] if loop else []), loop=loop)
    for path, aval in zip(step.output_leaves.paths, step.output_leaves.avals, strict=True):
        yield plain("output", path, aval)


_LOOPS = {
    "kept": "its next value depends on it, and the trace follows that",
    "escape": "its next value depends on it in ways that leave the trace",
}


def _known(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.number) or jnp.issubdtype(aval.dtype, jnp.bool_)


def _op(p: OpPlan, program: Program) -> Node:
    name = ("op", f"{p.path}#{p.op.number}")
    claim = "exact" if p.exact else "approximate"
    place = re.split(r"[/\\]", p.op.equation.source)[-1]  # without folders
    hover = [p.path, f"{p.kind} at {place}"]
    if p.node is None:
        hover.append(f"no trace: {p.reason}")
        return Node(name, p.path, f"{p.kind} · no trace", claim, False, tuple(hover), "")
    shape = shape_text(p)
    size = f"{p.trace_bytes:,} bytes" if p.owns else "part of another trace"
    hover += [
        f"reaches {', '.join(p.states)}, in blocks of at most {p.block:,}",
        f"trace {shape} of {jnp.dtype(p.node.dtype).name}: {size}",
        f"gradient: {verdict(program.plan, p, program.claims)}",
        *(f"left out: {text}" for text in p.escapes),
    ]
    return Node(name, p.path, f"{p.kind} · {shape}", claim, True, tuple(hover), "")
