"""A program as a page of HTML: its picture, and what `print` shows."""

from html import escape

from ..run import Program
from ._picture import picture
from ._svg import COLOURS, draw


def fragment(program: Program) -> str:
    """The program as one element, with its style; light and dark."""
    return (
        f'<div class="etpc-program">\n<style>\n{_STYLE}</style>\n{draw(picture(program))}'
        f"<pre>{escape(str(program))}</pre>\n</div>\n"
    )


def to_html(program: Program) -> str:
    """A program as one page of HTML that loads nothing: its picture, and what `print` shows."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(picture(program).title)}</title>\n"
        f"</head>\n<body>\n{fragment(program)}</body>\n</html>\n"
    )


_STYLE = f"""\
.etpc-program {{ overflow-x: auto; background: {COLOURS["page"][0]}; color: {COLOURS["text"][0]}; }}
.etpc-program pre {{ background: none; color: inherit; }}
@media (prefers-color-scheme: dark) {{
.etpc-program {{ background: {COLOURS["page"][1]}; color: {COLOURS["text"][1]}; }}
}}
"""
