"""Answers on a terminal: tables in colour where Rich, the extra `cli`, is installed."""

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

GOOD, BAD = "green", "bold red"
STYLES = {"exact": GOOD, "yes": GOOD, "NO": BAD}
"""Of a whole cell."""

RULE = re.compile(r" *-+(?:  -+)+")
"""The line below the heading of a table: dashes as wide as each column."""


def show(text: str) -> None:
    """Print an answer. To a pipe or a file, and without Rich, it goes as it is."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            pass
        else:
            show_rich(text, Console())
            return
    print(text)


def show_rich(text: str, console: "Console") -> None:
    """Print an answer with its tables drawn by Rich, and its verdicts in colour."""
    from rich.text import Text

    lines = text.splitlines()
    at = 0
    while at < len(lines):
        if at + 1 < len(lines) and RULE.fullmatch(lines[at + 1]):
            end = lines.index("", at) if "" in lines[at:] else len(lines)
            console.print(_table(lines[at], lines[at + 1], lines[at + 2 : end]))
            at = end
        else:
            verdict = re.match(r"(NOT )?ok\b", lines[at])
            style = "" if verdict is None else BAD if verdict[1] else GOOD
            console.print(Text(lines[at], style), soft_wrap=True)
            at += 1


def _table(heading: str, rule: str, rows: list[str]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    columns = [slice(*match.span()) for match in re.finditer("-+", rule)]
    for column in columns:
        to_right = all(line[column.stop - 1 : column.stop].strip() for line in (heading, *rows))
        justify = "right" if to_right else "left"
        made.add_column(heading[column].strip(), justify=justify, overflow="fold")
    for row in rows:
        cells = [row[column].strip() for column in columns]
        made.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in cells))
    return made


__all__ = ["show", "show_rich"]
