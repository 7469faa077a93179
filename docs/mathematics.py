"""An extension of Python-Markdown: formulas as MathML, which browsers show without a script.

They are written as GitHub reads them: a block of the language `math`, or inline between $` and `$.
"""

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`]+)`\$")


class Formulas(Preprocessor):
    """Puts HTML in the place of formulas, before fences and HTML are looked for."""

    def run(self, lines: list[str]) -> list[str]:
        text = BLOCK.sub(lambda block: as_html(block[1]), "\n".join(lines))
        # In a span, as Markdown takes an element that it does not know for a paragraph of its own.
        return INLINE.sub(lambda formula: f"<span>{convert(formula[1])}</span>", text).split("\n")


def as_html(formulas: str) -> str:
    """Each paragraph of a block is a formula of its own."""
    formulas = [" ".join(text.split()) for text in formulas.strip().split("\n\n")]
    rows = "".join(f"<div>{convert(text, display='block')}</div>" for text in formulas)
    return f'<div class="formula">{rows}</div>'


class Mathematics(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Formulas(md), "formulas", 29)


def makeExtension(**options: Any) -> Mathematics:
    return Mathematics(**options)
