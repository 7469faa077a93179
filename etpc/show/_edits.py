"""Advice on how a model could be changed so that no influence escapes, where its dependencies tell it."""

from collections.abc import Iterable

import networkx as nx

from ..analyse import Escape
from ._graph import Graph


def edits(graph: Graph, escapes: Iterable[Escape]) -> list[str]:
    """Changes of the model that would close the paths along which influence escapes from an operation.

    There is advice for two kinds of path: a path that leads back to where it begins, as in a recurrent layer, and
    a path that ends in a state that only the output reads, as in a leaky readout.

    - `graph`: of the program, with an edge for each dependence within a step.
    """
    texts = []
    for escape in escapes:
        if not escape.through:
            continue
        weight, of_source, of_target = escape.through[0], escape.source, escape.target
        source, target = (
            ("state", name.removeprefix("hidden ")) for name in (of_source, of_target)
        )
        if source in graph and nx.has_path(graph, target, source):
            texts.append(
                f"The next step reads {source[1]} through {weight}. Recurrence of each unit with itself alone, as "
                f"in etpc.nn.MinGRU, IndRNN or LRU, keeps this influence; so does a block-diagonal {weight} "
                "under RTRL, whose traces then hold a block."
            )
            continue
        read_by = {node for node in nx.descendants(graph, target) if node[0] == "state"}
        leads_back = any(nx.has_path(graph, node, target) for node in graph.successors(target))
        if not read_by and graph.has_edge(target, target) == leads_back:
            texts.append(
                f"Only the output reads {target[1]}. A readout without memory in its place keeps this influence."
            )
    return list(dict.fromkeys(texts))
