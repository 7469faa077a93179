"""The dependency graph for other programs: GraphML, DOT and node-link JSON."""

import json
from typing import Any

import networkx as nx

from ..files.record import record
from ..run import Program


def _named(program: Program) -> Any:
    """The graph with text in the place of the pairs that name its nodes."""
    return nx.relabel_nodes(program.graph, {node: " ".join(node) for node in program.graph})


def to_graphml(program: Program) -> str:
    """The dependency graph as GraphML, which Gephi, yEd, Cytoscape and NetworkX read."""
    return "\n".join(nx.generate_graphml(_named(program))) + "\n"


def to_node_link(program: Program) -> str:
    """The dependency graph as JSON with `nodes` and `edges`, which `networkx.node_link_graph` reads."""
    data = nx.node_link_data(_named(program), edges="edges")
    return json.dumps(record("etpc-graph/1", **data), indent=2) + "\n"


def to_dot(program: Program) -> str:
    """The dependency graph in the language of Graphviz; what is cut is dashed."""
    graph = _named(program)
    shapes = {"op": "box", "state": "ellipse"}
    lines = [
        f"  {json.dumps(name)} [shape={shapes.get(node['kind'], 'plaintext')}];"
        for name, node in graph.nodes(data=True)
    ]
    lines += [
        f"  {json.dumps(a)} -> {json.dumps(b)}{' [style=dashed]' if cut else ''};"
        for a, b, cut in graph.edges(data="cut")
    ]
    return "\n".join(["digraph {", "  rankdir=LR;", *lines, "}"]) + "\n"
