"""A hook of MkDocs: formulas in `math` blocks as MathML, which browsers show without a script."""

import re
from typing import Any

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    return BLOCK.sub(lambda block: as_html(block[1]), markdown)


def as_html(formulas: str) -> str:
    """Each paragraph of a block is a formula of its own."""
    formulas = [" ".join(text.split()) for text in formulas.strip().split("\n\n")]
    rows = "".join(f"<div>{convert(text, display='block')}</div>" for text in formulas)
    return f'<div class="formula">{rows}</div>'
