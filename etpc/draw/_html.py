"""A program as a page of HTML: its picture, its table, and what is left out."""

from collections.abc import Iterable
from html import escape

from ..show import COLUMNS, Shown, escapes, rows
from ._picture import picture
from ._svg import DARK, LIGHT, draw


def fragment(program: Shown) -> str:
    """The program as one element, with its style; light and dark."""
    plan = program.plan
    shown = picture(program)
    hidden = plan.analysis.hidden
    states = ", ".join(f"<code>{escape(path)}</code>" for path in hidden.paths)
    chosen = {p.path: p.choice for p in plan.traced if p.choice}
    parts = [
        '<div class="etpc-program">',
        f"<style>\n{_style()}</style>",
        f"<p>{escape(str(plan.algorithm))}<br>{hidden.size:,} hidden states: {states}</p>",
        f'<div class="etpc-scroll">\n{draw(shown)}</div>',
        _table(program),
        _list("Chosen", [f"<code>{escape(p)}</code> {escape(why)}" for p, why in chosen.items()]),
        _list("Left out: influence that leaves the trace", map(escape, escapes(plan))),
        _list(
            "Without a trace",
            [f"<code>{escape(p)}</code> {escape(why)}" for p, why in program.untraced.items()],
        ),
        _list(
            "Taken as dense: no rule for their sparsity",
            [escape(f"{o.primitive} at {o.source}") for o in plan.analysis.opaque],
        ),
        "</div>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def page(program: Shown) -> str:
    """The program as a whole page. Pointing at a box or a row of the table shows its arrows."""
    title = escape(picture(program).title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n'
        f"<style>\n{_PAGE}</style>\n</head>\n<body>\n{fragment(program)}"
        f"<script>\n{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _table(program: Shown) -> str:
    right = {"block", "bytes"}

    def cells(tag: str, texts: Iterable[str]) -> str:
        return "".join(
            f"<{tag}{' class=right' if column in right else ''}>{escape(text)}</{tag}>"
            for column, text in zip(COLUMNS, texts, strict=True)
        )

    lines = [f"<table>\n<thead><tr>{cells('th', COLUMNS)}</tr></thead>\n<tbody>"]
    for p, row in zip(program.ops, rows(program.plan, program.claims), strict=True):
        key = escape(f"op:{p.path}#{p.op.number}")
        claim = "exact" if p.exact else "approximate"
        lines.append(f'<tr class="{claim}" data-node="{key}">{cells("td", row)}</tr>')
    return "\n".join([*lines, "</tbody>\n</table>"])


def _list(heading: str, items: Iterable[str]) -> str:
    lines = [f"<li>{item}</li>" for item in items]
    return "\n".join([f"<h4>{heading}</h4>\n<ul>", *lines, "</ul>"]) if lines else ""


def _style() -> str:
    def colours(c: dict[str, str]) -> str:
        return (
            f".etpc-program {{ background: {c['page']}; color: {c['text']}; }}\n"
            f".etpc-program td, .etpc-program th {{ border-bottom: 1px solid {c['frame']}; }}\n"
            f".etpc-program th, .etpc-program h4 {{ color: {c['muted']}; }}\n"
            f".etpc-program .exact td:last-child {{ color: {c['exact']}; }}\n"
            f".etpc-program .approximate td:last-child {{ color: {c['approximate']}; }}\n"
            f".etpc-program tbody tr:hover {{ background: {c['op']}; }}\n"
        )

    return f"{_SHAPES}{colours(LIGHT)}@media (prefers-color-scheme: dark) {{\n{colours(DARK)}}}\n"


_SHAPES = """\
.etpc-program { font: 14px/1.5 system-ui, sans-serif; padding: 16px; border-radius: 10px; }
.etpc-program p { margin: 0 0 12px; }
.etpc-program h4 { margin: 18px 0 4px; font-size: 13px; }
.etpc-program ul { margin: 0; padding-left: 20px; }
.etpc-program code, .etpc-program td { font-family: ui-monospace, Menlo, Consolas, monospace; }
.etpc-program code, .etpc-program td, .etpc-program th { font-size: 13px; }
.etpc-program .etpc-scroll, .etpc-program { overflow-x: auto; }
.etpc-program table { border-collapse: collapse; margin-top: 16px; }
.etpc-program td, .etpc-program th { padding: 4px 14px 4px 0; text-align: left; background: none; }
.etpc-program .right { text-align: right; }
.etpc-program .exact td:last-child::before { content: "= "; }
.etpc-program .approximate td:last-child::before { content: "≈ "; }
.etpc-program .dim { opacity: 0.15; }
"""

_PAGE = """\
body { margin: 0 auto; padding: 16px; max-width: 1400px; background: #ffffff; }
@media (prefers-color-scheme: dark) { body { background: #10151d; } }
"""

_SCRIPT = """\
for (const program of document.querySelectorAll(".etpc-program")) {
  const nodes = [...program.querySelectorAll(".node[data-node]")];
  const edges = [...program.querySelectorAll(".edge[data-from]")];
  const show = (key) => {
    const near = new Set([key]);
    for (const e of edges) {
      const own = e.dataset.from === key || e.dataset.to === key;
      if (own) near.add(e.dataset.from).add(e.dataset.to);
      e.classList.toggle("dim", !own);
    }
    for (const n of nodes) n.classList.toggle("dim", !near.has(n.dataset.node));
  };
  const clear = () => [...nodes, ...edges].forEach((e) => e.classList.remove("dim"));
  for (const e of program.querySelectorAll("[data-node]")) {
    if (!nodes.some((n) => n.dataset.node === e.dataset.node)) continue;
    e.addEventListener("mouseenter", () => show(e.dataset.node));
    e.addEventListener("mouseleave", clear);
  }
}
"""

__all__ = ["fragment", "page"]
