"""A hook of MkDocs: formulas as MathML, which browsers show without a script.

They are written as GitHub reads them: a block of the language `math`, or inline between $` and `$.
"""

import re
from typing import Any

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`]+)`\$")


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    markdown = BLOCK.sub(lambda block: as_html(block[1]), markdown)
    # In a span, as Markdown takes an element that it does not know for a paragraph of its own.
    return INLINE.sub(lambda formula: f"<span>{convert(formula[1])}</span>", markdown)


def as_html(formulas: str) -> str:
    """Each paragraph of a block is a formula of its own."""
    formulas = [" ".join(text.split()) for text in formulas.strip().split("\n\n")]
    rows = "".join(f"<div>{convert(text, display='block')}</div>" for text in formulas)
    return f'<div class="formula">{rows}</div>'
