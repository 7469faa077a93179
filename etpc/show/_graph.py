"""The dependency graph of a program."""

from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from ..analyse import Dependence
from ..plan import Plan
from ..trace import Variable

if TYPE_CHECKING:
    Graph = nx.DiGraph[Any]
else:
    Graph = nx.DiGraph


def dependency_graph(plan: Plan) -> Graph:
    """Nodes are pairs (kind, name); edges say whether the trace keeps or cuts them.

    Edges between states, from operations, and into an operation's data follow derivatives; edges
    from inputs follow any dependence. A state of the step before and its new value are one node.
    """
    a = plan.analysis
    graph: Graph = nx.DiGraph()
    step, hidden = a.step, a.hidden
    for path in step.input_leaves.paths:
        graph.add_node(("input", path), kind="input", path=path)
    for path in step.model_leaves.float_avals:
        graph.add_node(("parameter", path), kind="parameter", path=path)
    for path in hidden.paths:
        graph.add_node(("state", path), kind="state", path=path)
    for path in step.output_leaves.paths:
        graph.add_node(("output", path), kind="output", path=path)
    names = []
    for p in plan.ops:
        name = ("op", f"{p.path}#{p.op.number}")
        names.append(name)
        graph.add_node(
            name,
            kind="op",
            path=p.path,
            operation=p.kind,
            source=p.op.equation.source,
            traced=p.node is not None,
            exact=p.exact,
            block=p.block,
        )
        for i in p.op.parameters:
            graph.add_edge(("parameter", step.model_leaves.paths[i]), name, cut=False)

    def state_nodes(elements: np.ndarray) -> list[tuple[str, str]]:
        return [("state", path) for path in hidden.names(elements)]

    def read_by(node: tuple[str, str], reads: Dependence, cut: bool) -> None:
        for state in state_nodes(np.flatnonzero(reads.states)):
            graph.add_edge(state, node, cut=cut)
        for k in np.flatnonzero(reads.ops):
            graph.add_edge(names[k], node, cut=cut)

    leaf = hidden.leaf_of
    coo = a.transition.tocoo()
    pairs = np.unique(np.stack([leaf(coo.col), leaf(coo.row)], 1), axis=0) if coo.nnz else []
    for before, after in pairs:
        graph.add_edge(("state", hidden.paths[before]), ("state", hidden.paths[after]), cut=False)
    for p, reach, name in zip(plan.ops, a.reach, names, strict=True):
        immediate = a.immediate[p.op.number]
        for node in state_nodes(np.flatnonzero(np.diff(immediate.indptr))):
            graph.add_edge(name, node, cut=False)
        cut = p.op.number in a.cut and reach.role == "state"
        read_by(name, reach.dependence, cut)
    for path, reads in zip(step.output_leaves.paths, a.outputs, strict=True):
        read_by(("output", path), reads, False)
    _input_edges(plan, graph, names)
    return graph


def _input_edges(plan: Plan, graph: Graph, names: list[tuple[str, str]]) -> None:
    """Edges from inputs to the first operations, states and outputs that they reach."""
    a = plan.analysis
    from_inputs: dict[Variable, frozenset[str]] = {
        v: frozenset([path])
        for path, v in zip(a.step.input_leaves.paths, a.step.inputs, strict=False)
    }
    numbers_of: dict[object, list[int]] = {}
    for p in plan.ops:
        numbers_of.setdefault(p.op.equation, []).append(p.op.number)
    empty: frozenset[str] = frozenset()
    for eqn in a.split.body:
        read = empty.union(*(from_inputs.get(v, empty) for v in eqn.inputs))
        ops = numbers_of.get(eqn, [])
        for path in sorted(read):
            for k in ops:
                graph.add_edge(("input", path), names[k], cut=False)
        if ops and a.ops[ops[0]].kind.data is not None:
            read = empty
        from_inputs.update((v, read) for v in eqn.outputs)
    nodes = [("output", path) for path in a.step.output_leaves.paths]
    nodes += [("state", path) for path in a.hidden.paths]
    for v, node in zip((*a.split.outputs, *a.hidden.new), nodes, strict=True):
        for path in sorted(from_inputs.get(v, empty)):
            graph.add_edge(("input", path), node, cut=False)
