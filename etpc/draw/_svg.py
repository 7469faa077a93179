"""A picture as SVG."""

from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from ._layout import ADVANCE, BADGE, DETAIL, HEAD, LABEL, PAD, Arrow, Box, layout, number
from ._picture import Name, Picture

MARGIN = 24.0
LINE = 26.0
"""The height of a line of the legend."""

FONT = "ui-monospace, 'DejaVu Sans Mono', 'Liberation Mono', Menlo, Consolas, monospace"

COLOURS = {
    "page": ("#ffffff", "#10151d"),
    "frame": ("#dde2ea", "#2a3443"),
    "text": ("#17202e", "#e8edf5"),
    "muted": ("#596579", "#9ba8bb"),
    "op": ("#eaf2fc", "#16283f"),
    "op-line": ("#2f6db5", "#6aa9f0"),
    "state": ("#f2ebfb", "#291d3d"),
    "state-line": ("#7a4cb8", "#b48cf0"),
    "plain": ("#f0f2f5", "#1c2430"),
    "plain-line": ("#7d8898", "#8492a6"),
    "exact": ("#1b7f4f", "#4cc38a"),
    "approximate": ("#a86400", "#f0a63c"),
    "sign": ("#ffffff", "#10151d"),
    "kept": ("#475467", "#b3bfd0"),
    "cut": ("#8691a3", "#76849a"),
    "escape": ("#d43a1a", "#ff7a57"),
}
"""Each in a light and in a dark scheme."""

CLAIMS = {"exact": ("=", "exact gradient"), "approximate": ("≈", "approximate gradient")}
"""Of a gradient: the sign, and what the legend says."""
KINDS = {
    "op": "weight in its operation",
    "state": "hidden state",
    "input": "input or output",
    "parameter": "parameter that nothing reads",
}
"""Of nodes: what the legend says."""
ARROWS = {
    "kept": ("kept by the traces", "kept: the traces follow it"),
    "cut": (
        "cut, nothing lost",
        "cut, and nothing is lost: no influence of a weight passes here",
    ),
    "escape": (
        "influence left out",
        "left out: influence of a weight leaves its trace here",
    ),
}
"""Of edges, the weakest first: what the legend says, and what is shown on pointing at one."""


class Svg(str):
    """The text of an SVG picture; notebooks show it as the picture."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)


def style() -> str:
    """The style sheet of a picture: light, and dark where that is preferred."""
    return f"{_SHAPES}{_colours(0)}@media (prefers-color-scheme: dark) {{\n{_colours(1)}}}\n"


_SHAPES = """\
.etpc text { stroke: none; white-space: pre; }
.etpc .label, .etpc .title { font-size: 13px; font-weight: 600; }
.etpc .detail { font-size: 11px; }
.etpc .sign { font-size: 15px; font-weight: 700; text-anchor: middle; }
.etpc .box { stroke-width: 1.5; }
.etpc .op.untraced .box { fill: none; }
.etpc .node.parameter .box { fill: none; stroke-dasharray: 2 3; }
.etpc .badge { stroke: none; }
.etpc .edge path { fill: none; stroke-width: 1.6; }
.etpc .edge .hit { stroke: transparent; stroke-width: 11; pointer-events: stroke; }
.etpc .cut .line { stroke-dasharray: 2 4; }
.etpc .escape .line { stroke-dasharray: 7 4; stroke-width: 2; }
.etpc .edge:hover .line { stroke-width: 3; }
"""


def _colours(scheme: int) -> str:
    c = {name: of_each[scheme] for name, of_each in COLOURS.items()}
    rules = {
        ".page": f"fill: {c['page']}; stroke: {c['frame']};",
        "text": f"fill: {c['text']};",
        ".detail": f"fill: {c['muted']};",
        ".op .box": f"fill: {c['op']}; stroke: {c['op-line']};",
        ".state .box": f"fill: {c['state']}; stroke: {c['state-line']};",
        ".input .box, .etpc .output .box, .etpc .parameter .box": (
            f"fill: {c['plain']}; stroke: {c['plain-line']};"
        ),
        ".sign": f"fill: {c['sign']};",
        **{f".{claim} .badge": f"fill: {c[claim]};" for claim in CLAIMS},
        **{f".edge.{kind} .line": f"stroke: {c[kind]};" for kind in ARROWS},
        **{f".edge.{kind} .head": f"fill: {c[kind]}; stroke: none;" for kind in ARROWS},
    }
    return "".join(f".etpc {selector} {{ {rule} }}\n" for selector, rule in rules.items())


def draw(picture: Picture) -> Svg:
    """The picture as the text of an SVG file that needs nothing else."""
    placed = layout(picture)
    headings = picture.title, picture.subtitle
    header = 52.0
    inner = max(placed.width, 420.0, *(ADVANCE * LABEL * len(text) for text in headings))
    legend, legend_height = _legend(picture, inner)
    width, height = inner + 2 * MARGIN, placed.height + header + legend_height + 3 * MARGIN
    labels = {node.name: node.label for node in picture.nodes}
    by_strength = sorted(placed.arrows, key=lambda a: [*ARROWS].index(a.edge.kind))
    parts = [_arrow(arrow, labels) for arrow in by_strength] + [_box(b) for b in placed.boxes]
    lines = [
        f"<style>\n{style()}</style>",
        _element("rect", "", "page", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=10),
        *(
            _text("detail" if n else "title", MARGIN, MARGIN + 12 + 18 * n, text)
            for n, text in enumerate(headings)
        ),
        _moved(MARGIN + (inner - placed.width) / 2, MARGIN + header, "\n".join(parts)),
        _moved(MARGIN, 2.4 * MARGIN + header + placed.height, "\n".join(legend)),
    ]
    svg = _element(
        "svg",
        "\n".join(["", *lines, ""]),
        "etpc",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=f"{picture.title}: {picture.subtitle}",
        font_family=FONT,
    )
    return Svg(svg + "\n")


# --- elements ---


def _element(tag: str, content: str = "", name: str = "", **attributes: Any) -> str:
    """An element of a class, with attributes in whose names `_` stands for `-`."""
    named = {"class": name} if name else {}
    text = "".join(
        f" {key.replace('_', '-')}={quoteattr(v if isinstance(v, str) else number(float(v)))}"
        for key, v in {**named, **attributes}.items()
    )
    return f"<{tag}{text}>{content}</{tag}>" if content else f"<{tag}{text}/>"


def _moved(x: float, y: float, content: str) -> str:
    return _element("g", content, transform=f"translate({number(x)} {number(y)})")


def _text(name: str, x: float, y: float, text: str) -> str:
    return _element("text", escape(text), name, x=x, y=y)


def _polygon(name: str, *corners: tuple[float, float]) -> str:
    points = " L".join(f"{number(a)} {number(b)}" for a, b in corners)
    return _element("path", "", name, stroke_linejoin="round", d=f"M{points}Z")


def _key(name: Name) -> str:
    return f"{name[0]}:{name[1]}"


def _hover(lines: Iterable[str]) -> str:
    return _element("title", escape("\n".join(lines)))


def _arrow(arrow: Arrow, labels: Mapping[Name, str]) -> str:
    e = arrow.edge
    lines = (
        _hover((f"{labels[e.source]} → {labels[e.target]}", ARROWS[e.kind][1])),
        _element("path", "", "hit", d=arrow.path),
        _element("path", "", "line", d=arrow.path),
        _head(arrow.tip, arrow.direction),
    )
    ends = {"data_from": _key(e.source), "data_to": _key(e.target)}
    return _element("g", "".join(lines), f"edge {e.kind}", **ends)


def _head(tip: tuple[float, float], direction: tuple[float, float]) -> str:
    (x, y), (dx, dy) = tip, direction
    back_x, back_y, half = x - HEAD * dx, y - HEAD * dy, 0.45 * HEAD
    left, right = (back_x - half * dy, back_y + half * dx), (back_x + half * dy, back_y - half * dx)
    return _polygon("head", tip, left, right)


def _box(box: Box) -> str:
    node, x, y, h = box.node, box.x, box.y, box.height
    text_x, sign = x + PAD, ""
    if node.kind == "op":
        text_x += BADGE
        sign = _badge(x + 6, y + (h - 24) / 2, node.claim)
    elif node.kind == "state":
        text_x += BADGE / 2
        if node.loop:
            ends = {"data_from": _key(node.name), "data_to": _key(node.name)}
            sign = _loop(x + box.width - BADGE, y + h / 2, node.loop, **ends)
    elif node.kind in ("input", "output"):
        text_x += PAD
    parts = (
        _hover(node.hover),
        _shape(node.kind, x, y, box.width, h),
        sign,
        _text("label", text_x, y + 19, box.label),
        _text("detail", text_x, y + 34, box.detail),
    )
    names = ("node", node.kind, node.claim, "" if node.traced else "untraced")
    return _element("g", "".join(parts), " ".join(filter(None, names)), data_node=_key(node.name))


def _shape(kind: str, x: float, y: float, w: float, h: float) -> str:
    """The outline of a box; that of inputs and outputs points to the right."""
    if kind in ("input", "output"):
        tip, right = x + w - 0.14 * h, x + w
        corners = (x, y), (tip, y), (right, y + h / 2), (tip, y + h), (x, y + h)
        return _polygon("box", *corners)
    rx = h / 2 if kind == "state" else 0.16 * h
    return _element("rect", "", "box", x=x, y=y, width=w, height=h, rx=rx)


def _badge(x: float, y: float, claim: str) -> str:
    square = _element("rect", "", "badge", x=x, y=y, width=24, height=24, rx=4)
    return square + _text("sign", x + 12, y + 17, CLAIMS[claim][0])


def _loop(x: float, y: float, kind: str, **ends: str) -> str:
    """An arrow in a circle, for a state that its next value depends on."""
    start, end = (f"{number(x + a)} {number(y + b)}" for a, b in ((3.5, -6.1), (6.1, 3.5)))
    line = _element("path", "", "line", d=f"M{start} A7 7 0 1 0 {end}")
    return _element("g", line + _head((x + 7.5, y - 3.5), (0.26, -0.97)), f"edge {kind}", **ends)


# --- legend ---


def _legend(picture: Picture, width: float) -> tuple[list[str], float]:
    """The signs that the picture uses, in as many lines as they need."""
    claims = {node.claim for node in picture.nodes}
    kinds = {node.kind for node in picture.nodes}
    loops = {node.loop for node in picture.nodes} - {""}
    arrows = {e.kind for e in picture.edges} | loops
    sample_box = lambda kind: _element("g", _shape(kind, 1.0, -11.0, 26.0, 14.0), f"node {kind}")
    shaft = _element("path", "", "line", d="M0 -4L22 -4") + _head((28.0, -4.0), (1.0, 0.0))
    entries = [
        *(
            (_element("g", _badge(2.0, -16.0, c), c), text)
            for c, (_, text) in CLAIMS.items()
            if c in claims
        ),
        *((sample_box(k), text) for k, text in KINDS.items() if k in kinds),
        *(
            (_element("g", shaft, f"edge {k}"), text)
            for k, (text, _) in ARROWS.items()
            if k in arrows
        ),
    ]
    if loops:
        entries.append((_loop(14.0, -4.0, "kept"), "depends on itself"))
    x = y = 0.0
    lines = []
    for sample, text in entries:
        size = 36 + ADVANCE * DETAIL * len(text)
        if x and x + size > width:
            x, y = 0.0, y + LINE
        lines.append(_moved(x, y, sample + _text("detail", 36.0, 0.0, text)))
        x += size + 22
    return lines, y
