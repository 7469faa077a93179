"""The order in which the nodes of a NIR graph are computed, and where its cycles are broken."""

import dataclasses
from collections import Counter
from typing import Any

import networkx as nx
import nir  # pyright: ignore[reportMissingImports]
import numpy as np

from etpc.errors import InputError, UnsupportedError, raise_together

from ._model import written
from ._nir_values import MOST, check_values

Path = tuple[str, ...]
Edge = tuple[Path, Path]


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A graph with its nested graphs opened: nodes by path, and the order of a step."""

    nodes: dict[Path, Any]
    sources: dict[Path, tuple[Path, ...]]
    """What comes into each node in the same step, to be summed."""
    back: dict[Path, tuple[Path, ...]]
    """What comes into each node from the step before."""
    order: tuple[Path, ...]
    """All nodes but the late ones."""
    late: tuple[Path, ...]
    """Delays of at least a step everywhere, whose output needs nothing of this step."""
    delays: dict[Path, np.ndarray]
    """The delay of each element of a delay node, in steps."""
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]

    @property
    def read_back(self) -> tuple[Path, ...]:
        """The nodes whose output of the step before is read."""
        return tuple(dict.fromkeys(a for several in self.back.values() for a in several))


def layout_of(graph: Any, dt: float, known: tuple[type, ...], stateful: tuple[type, ...]) -> Layout:
    """The layout of a graph.

    **Arguments:** the graph; the length of a step in seconds; the types of nodes that can be computed, and those
    of them that are neurons.

    **Raises** `UnsupportedError` and `InputError` with the names of the nodes that are not understood.
    """
    nodes, edges, problems = _opened(graph, ())
    for path, node in nodes.items():
        if not isinstance(node, known):
            problems.append(
                f"The node {written(path)} is of the type {type(node).__name__}, for which there is no "
                "equation here. Replace it by nodes that there are: "
                f"{', '.join(sorted(t.__name__ for t in known))}."
            )
    raise_together(problems, UnsupportedError)
    check_values(nodes)
    delays = _delays(nodes, dt)
    for edge, times in Counter(edges).items():
        if times > 1:
            problems.append(
                f"The edge from {written(edge[0])} to {written(edge[1])} is there {times} times. Leave one, and "
                "scale the weights if it is meant to count more than once."
            )
    inputs = tuple(p for p, n in nodes.items() if isinstance(n, nir.Input) and len(p) == 1)
    outputs = tuple(p for p, n in nodes.items() if isinstance(n, nir.Output) and len(p) == 1)
    fed = {b for _, b in edges}
    problems += [
        f"Nothing comes into the node {written(p)}. Add an edge to it, or take it out."
        for p in nodes
        if p not in fed and p not in inputs
    ]
    problems += [
        f"The graph has no {what} node. Add one, as `nir.NIRGraph.from_list` does."
        for what, ports in (("Input", inputs), ("Output", outputs))
        if not ports
    ]
    raise_together(problems, InputError)
    late = tuple(p for p, steps in delays.items() if steps.size and steps.min() >= 1)
    neurons = {p for p, n in nodes.items() if isinstance(n, stateful)}
    back = _back_edges(nodes, [e for e in edges if e[1] not in late], neurons)
    forward = [e for e in edges if e not in back]
    return Layout(
        nodes,
        {p: tuple(a for a, b in forward if b == p) for p in nodes},
        {p: tuple(a for a, b in back if b == p) for p in nodes},
        _order(nodes, [e for e in forward if e[1] not in late], late),
        late,
        delays,
        inputs,
        outputs,
    )


def check_graph(graph: Any) -> None:
    """**Raises** `InputError` with the names of the nodes whose numbers mean nothing."""
    check_values(_opened(graph, ())[0])


def _opened(graph: Any, where: Path) -> tuple[dict[Path, Any], list[Edge], list[str]]:
    """The nodes and edges of a graph and of those in it. An edge to a graph goes to its input."""
    nodes: dict[Path, Any] = {}
    edges: list[Edge] = []
    problems: list[str] = []
    ends: dict[str, tuple[Path, Path]] = {}
    for name, node in graph.nodes.items():
        path = (*where, name)
        if not isinstance(node, nir.NIRGraph):
            nodes[path] = node
            ends[name] = (path, path)
            continue
        inside = _opened(node, path)
        nodes |= inside[0]
        edges += inside[1]
        problems += inside[2]
        ports = [
            [p for p, n in inside[0].items() if isinstance(n, kind) and len(p) == len(path) + 1]
            for kind in (nir.Input, nir.Output)
        ]
        if [len(f) for f in ports] != [1, 1]:
            problems.append(
                f"The graph {written(path)} within the graph has {len(ports[0])} inputs and "
                f"{len(ports[1])} outputs. An edge does not say which it is for: give it one of each."
            )
            continue
        ends[name] = (ports[0][0], ports[1][0])
    for a, b in graph.edges:
        missing = [name for name in (a, b) if name not in graph.nodes]
        if missing:
            problems.append(
                f"The edge from {written((*where, a))} to {written((*where, b))} names a node that is not there."
            )
        elif a in ends and b in ends:
            edges.append((ends[a][1], ends[b][0]))
    return nodes, edges, problems


def _delays(nodes: dict[Path, Any], dt: float) -> dict[Path, np.ndarray]:
    """The delays in steps. **Raises** `UnsupportedError` for one that is no whole number of them."""
    delays, problems = {}, []
    for path, node in nodes.items():
        if not isinstance(node, nir.Delay):
            continue
        steps = np.asarray(node.delay, np.float64) / dt
        whole = np.round(steps)
        wrong = (whole > MOST) | (np.abs(steps - whole) > 1e-3)
        if wrong.any():
            problems.append(
                f"The node {written(path)} (Delay) has a delay of {np.asarray(node.delay)[wrong][0]:g} s, which is "
                f"no whole number of steps of {dt:g} s, or more than {MOST}. Choose a `dt` that divides it."
            )
        delays[path] = whole.astype(int)
    raise_together(problems, UnsupportedError)
    return delays


def _back_edges(nodes: dict[Path, Any], edges: list[Edge], neurons: set[Path]) -> set[Edge]:
    """Edges without which there is no cycle, from neurons where it can be."""
    graph: nx.DiGraph[Path] = nx.DiGraph()
    graph.add_nodes_from(p for p, n in nodes.items() if isinstance(n, nir.Input))
    graph.add_nodes_from(nodes)
    graph.add_edges_from(edges)
    back: set[Edge] = set()
    left: set[Path] = set()
    for a, b, kind in nx.dfs_labeled_edges(graph):
        if kind == "reverse":
            left.add(b)
        elif kind == "nontree" and b not in left:
            back.add((a, b))
    # What is computed from last spikes alone may as well be computed from them a step later: then the spikes are
    # handed on, which are a function of the state, and not what is made of them.
    waiting, moved = sorted(back), set[Path]()
    while waiting:
        a, _ = waiting.pop()
        before, after = [*graph.pred[a]], set(graph.out_edges(a))
        if a in neurons or a in moved or len(before) != 1 or not after <= back:
            continue
        moved.add(a)  # a cycle that nothing enters would be gone round for ever
        back = back - after | {(before[0], a)}
        waiting = [e for e in waiting if e in back] + [(before[0], a)]
    return back


def _order(nodes: dict[Path, Any], edges: list[Edge], late: tuple[Path, ...]) -> tuple[Path, ...]:
    number = {p: n for n, p in enumerate(nodes)}
    graph: nx.DiGraph[Path] = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from(e for e in edges if e[0] not in late)
    order = nx.lexicographical_topological_sort(graph, number.__getitem__)
    return tuple(p for p in order if p not in late)
