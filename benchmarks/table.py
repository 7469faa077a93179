"""Tables of results: declared once, shown in the terminal by Rich and in documents as Markdown."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Column:
    """A value of each row: its key, its heading, and how it is written (`format` or a function)."""

    key: str
    heading: str
    form: str | Callable[[Any], str] = ""

    def text(self, row: Row) -> str:
        value = row.get(self.key)
        if value is None:
            return "-"
        return self.form(value) if callable(self.form) else format(value, self.form)

    @property
    def left(self) -> bool:
        return self.form == ""


@dataclasses.dataclass(frozen=True)
class Table:
    """The columns of a benchmark, and what has to be said about them."""

    title: str
    columns: Sequence[Column]
    notes: Sequence[str] = ()

    def show(self, console: Console, rows: Sequence[Row], about: str = "") -> None:
        title = f"{self.title}\n{about}" if about else self.title
        table = RichTable(title=title, title_justify="left", box=None, pad_edge=False)
        for column in self.columns:
            table.add_column(
                column.heading, justify="left" if column.left else "right", no_wrap=True
            )
        for row in rows:
            table.add_row(*(column.text(row) for column in self.columns))
        console.print()
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}", style="dim", highlight=False)

    def markdown(self, rows: Sequence[Row]) -> str:
        lines = [
            [column.heading.replace("\n", " ") for column in self.columns],
            ["---" if column.left else "---:" for column in self.columns],
            *([column.text(row) for column in self.columns] for row in rows),
        ]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def mebibytes(size: float) -> str:
    """Bytes in MiB."""
    return f"{size / 2**20:,.2f}"


def seconds(value: float) -> str:
    """Seconds, to two places."""
    return f"{value:.2f}"


def ratio(value: float) -> str:
    """How many times as much."""
    return f"{value:.2f}x"
