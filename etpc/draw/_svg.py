"""A picture as SVG."""

from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape, quoteattr

from ._columns import ADVANCE, BADGE, DETAIL, LABEL, PAD
from ._layout import HEAD, Arrow, Box, layout, number
from ._picture import STRENGTH, Name, Node, Picture

MARGIN = 24.0
HEADER = 52.0
LINE = 22.0
"""The height of a line of the legend."""

FONT = "ui-monospace, 'DejaVu Sans Mono', 'Liberation Mono', Menlo, Consolas, monospace"

LIGHT = {
    "page": "#ffffff",
    "frame": "#dde2ea",
    "text": "#17202e",
    "muted": "#596579",
    "op": "#eaf2fc",
    "op-line": "#2f6db5",
    "state": "#f2ebfb",
    "state-line": "#7a4cb8",
    "plain": "#f0f2f5",
    "plain-line": "#7d8898",
    "exact": "#1b7f4f",
    "approximate": "#a86400",
    "sign": "#ffffff",
    "kept": "#475467",
    "cut": "#8691a3",
    "escape": "#d43a1a",
}
DARK = {
    "page": "#10151d",
    "frame": "#2a3443",
    "text": "#e8edf5",
    "muted": "#9ba8bb",
    "op": "#16283f",
    "op-line": "#6aa9f0",
    "state": "#291d3d",
    "state-line": "#b48cf0",
    "plain": "#1c2430",
    "plain-line": "#8492a6",
    "exact": "#4cc38a",
    "approximate": "#f0a63c",
    "sign": "#10151d",
    "kept": "#b3bfd0",
    "cut": "#76849a",
    "escape": "#ff7a57",
}

SIGNS = {"exact": "=", "approximate": "≈"}


class Svg(str):
    """The text of an SVG picture; notebooks show it as the picture."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)


def style() -> str:
    """The style sheet of a picture: light, and dark where that is preferred."""
    return f"{_SHAPES}{_colours(LIGHT)}@media (prefers-color-scheme: dark) {{\n{_colours(DARK)}}}\n"


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


def _colours(c: Mapping[str, str]) -> str:
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
        **{f".{claim} .badge": f"fill: {c[claim]};" for claim in SIGNS},
        **{f".edge.{kind} .line": f"stroke: {c[kind]};" for kind in STRENGTH},
        **{f".edge.{kind} .head": f"fill: {c[kind]}; stroke: none;" for kind in STRENGTH},
    }
    return "".join(f".etpc {selector} {{ {rule} }}\n" for selector, rule in rules.items())


def draw(picture: Picture) -> Svg:
    """The picture as the text of an SVG file that needs nothing else."""
    placed = layout(picture)
    heading = ADVANCE * max(
        LABEL * len(picture.title), DETAIL * len(picture.subtitle), DETAIL * len(picture.note)
    )
    inner = max(placed.width, heading, 420.0)
    legend, legend_height = _legend(picture, inner)
    header = HEADER + (18.0 if picture.note else 0.0)
    width, height = inner + 2 * MARGIN, placed.height + header + legend_height + 3 * MARGIN
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "class": "etpc",
        "viewBox": f"0 0 {number(width)} {number(height)}",
        "width": number(width),
        "height": number(height),
        "role": "img",
        "aria-label": f"{picture.title}: {picture.subtitle}",
        "font-family": FONT,
    }
    page = f'width="{number(width - 1)}" height="{number(height - 1)}" rx="10"'
    lines = [
        f"<svg {' '.join(f'{name}={quoteattr(text)}' for name, text in attributes.items())}>",
        f"<style>\n{style()}</style>",
        f'<rect class="page" x="0.5" y="0.5" {page}/>',
        _text("title", MARGIN, MARGIN + 12, picture.title),
        _text("detail", MARGIN, MARGIN + 30, picture.subtitle),
    ]
    if picture.note:
        lines.append(_text("detail", MARGIN, MARGIN + 48, picture.note))
    left = MARGIN + (inner - placed.width) / 2
    lines.append(f'<g transform="translate({number(left)} {number(MARGIN + header)})">')
    labels = {node.name: node.label for node in picture.nodes}
    by_strength = sorted(placed.arrows, key=lambda a: STRENGTH[a.edge.kind])
    lines += [_arrow(arrow, labels) for arrow in by_strength]
    lines += [_box(box) for box in placed.boxes]
    top = 2.4 * MARGIN + header + placed.height
    lines += ["</g>", f'<g transform="translate({number(MARGIN)} {number(top)})">', *legend]
    return Svg("\n".join([*lines, "</g>", "</svg>", ""]))


def _text(name: str, x: float, y: float, text: str) -> str:
    return f'<text class="{name}" x="{number(x)}" y="{number(y)}">{escape(text)}</text>'


def _key(name: Name) -> str:
    return quoteattr(f"{name[0]}:{name[1]}")


def _hover(lines: Iterable[str]) -> str:
    return f"<title>{escape(chr(10).join(lines))}</title>"


def _arrow(arrow: Arrow, labels: Mapping[Name, str]) -> str:
    e = arrow.edge
    hover = f"{labels[e.source]} → {labels[e.target]}", MEANING[e.kind]
    return (
        f'<g class="edge {e.kind}" data-from={_key(e.source)} data-to={_key(e.target)}>'
        f'{_hover(hover)}<path class="hit" d="{arrow.path}"/>'
        f'<path class="line" d="{arrow.path}"/>{_head(arrow.tip, arrow.direction)}</g>'
    )


MEANING = {
    "kept": "kept: the traces follow it",
    "cut": "cut, and nothing is lost: no influence of a weight passes here",
    "escape": "left out: influence of a weight leaves its trace here",
}


def _head(tip: tuple[float, float], direction: tuple[float, float]) -> str:
    (x, y), (dx, dy) = tip, direction
    back_x, back_y, half = x - HEAD * dx, y - HEAD * dy, 0.45 * HEAD
    corners = (
        (x, y),
        (back_x - half * dy, back_y + half * dx),
        (back_x + half * dy, back_y - half * dx),
    )
    points = " L".join(f"{number(a)} {number(b)}" for a, b in corners)
    return f'<path class="head" d="M{points}Z"/>'


def _box(box: Box) -> str:
    node = box.node
    classes = " ".join(
        filter(None, ["node", node.kind, node.claim, "" if node.traced else "untraced"])
    )
    x, y, w, h = box.x, box.y, box.width, box.height
    text_x = x + PAD
    shape = f'<rect class="box" x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}" rx="7"/>'
    more = ""
    if node.kind == "op":
        text_x += BADGE
        more = _badge(x + 6, y + (h - 24) / 2, node)
    elif node.kind == "state":
        text_x += BADGE / 2
        shape = shape.replace('rx="7"', f'rx="{number(h / 2)}"')
        if node.loop:
            more = _loop(x + w - BADGE, y + h / 2, node)
    elif node.kind in ("input", "output"):
        text_x += PAD
        shape = _tag(x, y, w, h)
    texts = _text("label", text_x, y + 19, box.label) + _text("detail", text_x, y + 34, box.detail)
    return f'<g class="{classes}" data-node={_key(node.name)}>{_hover(node.hover)}{shape}{more}{texts}</g>'


def _badge(x: float, y: float, node: Node) -> str:
    return (
        f'<rect class="badge" x="{number(x)}" y="{number(y)}" width="24" height="24" rx="4"/>'
        f'<text class="sign" x="{number(x + 12)}" y="{number(y + 17)}">{SIGNS[node.claim]}</text>'
    )


def _tag(x: float, y: float, w: float, h: float) -> str:
    """A box that points to the right."""
    tip = 0.6 * PAD
    corners = (x, y), (x + w - tip, y), (x + w, y + h / 2), (x + w - tip, y + h), (x, y + h)
    points = " L".join(f"{number(a)} {number(b)}" for a, b in corners)
    return f'<path class="box" stroke-linejoin="round" d="M{points}Z"/>'


def _loop(x: float, y: float, node: Node) -> str:
    """An arrow in a circle, for a state that its next value depends on."""
    r = 7.0
    start, end = (
        f"{number(x + 0.5 * r)} {number(y - 0.87 * r)}",
        f"{number(x + 0.87 * r)} {number(y + 0.5 * r)}",
    )
    key = _key(node.name)
    return (
        f'<g class="edge {node.loop}" data-from={key} data-to={key}>'
        f'<path class="line" d="M{start} A{number(r)} {number(r)} 0 1 0 {end}"/>'
        f"{_head((x + r + 0.5, y - 3.5), (0.26, -0.97))}</g>"
    )


# --- legend ---


def _legend(picture: Picture, width: float) -> tuple[list[str], float]:
    """The signs that the picture uses, in as many lines as they need."""
    claims = {node.claim for node in picture.nodes}
    kinds = {node.kind for node in picture.nodes}
    arrows = {e.kind for e in picture.edges} | {n.loop for n in picture.nodes}
    entries = [
        *((_sample_badge(c), text) for c, text in CLAIMS.items() if c in claims),
        *((_sample_box(k), text) for k, text in KINDS.items() if k in kinds),
        *((_sample_arrow(k), text) for k, text in ARROWS.items() if k in arrows),
    ]
    if any(node.loop for node in picture.nodes):
        loop = Node(("state", ""), "", "", "", True, (), "kept")
        entries.append(
            (
                _loop(14.0, -4.0, loop).replace(' data-from="state:" data-to="state:"', ""),
                "depends on itself",
            )
        )
    x = y = 0.0
    lines = []
    for sample, text in entries:
        size = 36 + ADVANCE * DETAIL * len(text)
        if x and x + size > width:
            x, y = 0.0, y + LINE
        lines.append(
            f'<g transform="translate({number(x)} {number(y)})">{sample}{_text("detail", 36.0, 0.0, text)}</g>'
        )
        x += size + 22
    return lines, y


CLAIMS = {"exact": "exact gradient", "approximate": "approximate gradient"}
KINDS = {
    "op": "weight in its operation",
    "state": "hidden state",
    "input": "input or output",
    "parameter": "parameter that nothing reads",
}
ARROWS = {
    "kept": "kept by the traces",
    "cut": "cut, nothing lost",
    "escape": "influence left out",
}


def _sample_badge(claim: str) -> str:
    return (
        f'<g class="{claim}"><rect class="badge" x="5" y="-13" width="18" height="18" rx="4"/>'
        f'<text class="sign" x="14" y="1">{SIGNS[claim]}</text></g>'
    )


def _sample_box(kind: str) -> str:
    shape = (
        _tag(1.0, -11.0, 26.0, 14.0)
        if kind == "input"
        else f'<rect class="box" x="1" y="-11" width="26" height="14" rx="{7 if kind == "state" else 3}"/>'
    )
    return f'<g class="node {kind}">{shape}</g>'


def _sample_arrow(kind: str) -> str:
    return f'<g class="edge {kind}"><path class="line" d="M0 -4L22 -4"/>{_head((28.0, -4.0), (1.0, 0.0))}</g>'


__all__ = ["Svg", "draw", "style"]
