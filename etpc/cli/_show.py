"""Answers on a terminal: tables in colour where Rich, the extra `cli`, is installed."""

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

GOOD, BAD = "green", "bold red"
STYLES = {"exact": GOOD, "yes": GOOD, "NO": BAD}
"""Of a whole cell."""

RULE = re.compile(r" *-+(?:  -+)+")
"""The line below the heading of a table: dashes as wide as each column."""


PROSE = 100
"""The longest line of sentences, however wide the terminal."""


def show(text: str) -> None:
    """Print an answer. To a pipe or a file it goes as it is; on a terminal long lines are wrapped, and
    tables too where Rich is installed."""
    if not is_terminal(sys.stdout):
        print(text)
        return
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        lines = text.splitlines()
        for start, end, is_table in _parts(lines):
            for line in lines[start:end]:
                print(line if is_table else wrapped(line, columns()))
    else:
        show_rich(text, Console())


def is_terminal(stream: Any) -> bool:
    """Whether a stream, `None` where it is closed, is a terminal."""
    return stream is not None and stream.isatty()


def columns() -> int:
    """The width of the terminal."""
    return shutil.get_terminal_size().columns


def wrapped(line: str, width: int) -> str:
    """A line in lines of at most `width`, but for long words, those after the first one indented
    further."""
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line.strip(),
        max(width, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _parts(lines: list[str]) -> Iterator[tuple[int, int, bool]]:
    """Where each table begins and ends, and each line of text that is in none."""
    start = 0
    while start < len(lines):
        end, is_table = start + 1, False
        if end < len(lines) and RULE.fullmatch(lines[end]):
            end, is_table = lines.index("", start) if "" in lines[start:] else len(lines), True
        yield start, end, is_table
        start = end


def show_rich(text: str, console: "Console") -> None:
    """Print an answer with its tables drawn by Rich, and its verdicts in colour."""
    from rich.text import Text

    lines = text.splitlines()
    for start, end, is_table in _parts(lines):
        if is_table:
            console.print(_table(lines[start], lines[start + 1], lines[start + 2 : end]))
            continue
        verdict = re.match(r"(NOT )?ok\b", lines[start])
        style = "" if verdict is None else BAD if verdict[1] else GOOD
        console.print(Text(wrapped(lines[start], console.width), style), soft_wrap=True)


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


__all__ = ["PROSE", "columns", "is_terminal", "show", "show_rich", "wrapped"]
