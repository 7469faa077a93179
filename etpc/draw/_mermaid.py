"""A picture as a Mermaid flowchart."""

import re

from ._picture import Edge, Node, Picture
from ._svg import LIGHT

SHAPES = {
    "input": ("[/", "/]"),
    "output": ("[/", "/]"),
    "parameter": ("[", "]"),
    "op": ("[", "]"),
    "state": ("([", "])"),
}
SIGNS = {"exact": "= ", "approximate": "≈ ", "": ""}
ARROWS = {"kept": "-->", "cut": "-.->", "escape": "-. left out .->"}


def flowchart(picture: Picture) -> str:
    """The picture as the text of a flowchart from left to right."""
    ids = {node.name: f"n{i}" for i, node in enumerate(picture.nodes)}
    loops = [Edge(n.name, n.name, n.loop) for n in picture.nodes if n.loop]
    edges = [*picture.edges, *loops]
    lines = ["flowchart LR"]
    lines += [f"  {ids[node.name]}{_box(node)}:::{_style(node)}" for node in picture.nodes]
    lines += [f"  {ids[e.source]} {ARROWS[e.kind]} {ids[e.target]}" for e in edges]
    # colours for light and dark pages: dark text on pale boxes
    c = LIGHT
    for name, fill, line in (
        ("exact", c["op"], c["exact"]),
        ("approximate", c["op"], c["approximate"]),
        ("state", c["state"], c["state-line"]),
        ("plain", c["plain"], c["plain-line"]),
    ):
        lines.append(f"  classDef {name} fill:{fill},stroke:{line},color:{c['text']}")
    escapes = [str(i) for i, e in enumerate(edges) if e.kind == "escape"]
    if escapes:
        lines.append(f"  linkStyle {','.join(escapes)} stroke:{c['escape']},color:{c['escape']}")
    return "\n".join(lines) + "\n"


def _style(node: Node) -> str:
    return node.claim or ("state" if node.kind == "state" else "plain")


def _box(node: Node) -> str:
    left, right = SHAPES[node.kind]
    return f'{left}"{SIGNS[node.claim]}{_safe(node.label)}<br/>{_safe(node.detail)}"{right}'


def _safe(text: str) -> str:
    """Text with everything that Mermaid or HTML reads as markup given by its number."""
    return re.sub(r"[^\w .,:·+()\[\]'…-]", lambda match: f"#{ord(match[0])};", text)
