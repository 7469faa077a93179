"""Tables in pages that a module writes: between a line that says which, and an empty line."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def _span(text: str, module: str) -> tuple[int, int]:
    head = re.search(rf"^<!-- written by `python -m {re.escape(module)}` -->\n\n", text, re.M)
    assert head is not None, f"no table of {module}"
    end = re.compile(r"\n(?!\|)").search(text, head.end())
    return head.end(), end.start() if end else len(text)


def read(page: str, module: str) -> list[tuple[str, ...]]:
    """The rows of a table, without its head."""
    text = (DOCS / page).read_text()
    start, end = _span(text, module)
    lines = [line for line in text[start:end].splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def write(page: str, module: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table anew."""
    text = (DOCS / page).read_text()
    start, end = _span(text, module)
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (DOCS / page).write_text(text[:start] + table + text[end:])
