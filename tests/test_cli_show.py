"""Tables on a terminal, and plain text everywhere else."""

import io
import sys

import pytest

from etpc.cli import _show
from etpc.show import table

ROWS = [
    [".cell.weight_hh", "1,024", "exact", "yes"],
    ["", "7", "approximate", "-"],
    ["(all)", "[1]", "exact", "NO"],
]
TEXT = "\n".join(
    [
        "[what] it is",
        "",
        *table(["parameter", "bytes", "claim", "held"], ROWS),
        "",
        "note: not a table -- here",
        "NOT ok  (exact means little)",
    ]
)
GREEN, RED, OFF = "\x1b[32m", "\x1b[1;31m", "\x1b[0m"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def in_rich(text, width=100, **options):
    console = pytest.importorskip("rich.console").Console(
        file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False, **options
    )
    _show.show_rich(text, console)
    return console.file.getvalue()


def cells(printed):
    """The words of each line, without rules."""
    lines = [line.split() for line in printed.replace("─", " ").splitlines()]
    return [line for line in lines if line and not set("".join(line)) <= set("- ")]


def test_tables_say_what_the_text_says():
    printed = in_rich(TEXT, color_system=None)
    assert cells(printed) == cells(TEXT)
    assert "─" in printed
    assert "----" not in printed


def test_numbers_stand_to_the_right_and_words_to_the_left():
    text = "\n".join(table(["name", "bytes"], [["a", "1,024"], ["longer", "7"]]))
    _, _, first, second = in_rich(text, color_system=None).splitlines()
    assert first.rstrip().endswith("1,024")
    assert second.startswith("longer")
    assert len(first.rstrip()) == len(second.rstrip())


def test_verdicts_have_colours():
    printed = in_rich(TEXT, color_system="standard", no_color=False)
    assert f"{GREEN}exact " in printed
    assert f"{GREEN}yes " in printed
    assert f"{RED}NO " in printed
    assert f"{RED}NOT ok  (exact means little){OFF}" in printed
    assert "approximate" in printed
    assert f"{GREEN}approximate" not in printed
    assert f"{GREEN}ok  (" in in_rich("ok  (exact means little)", color_system="standard")


def test_nothing_is_lost_on_a_narrow_terminal():
    printed = in_rich(TEXT, width=30, color_system=None)
    assert "…" not in printed
    first_column = "".join(line[:7].strip() for line in printed.splitlines())
    assert ".cell.weight_hh" in first_column


def test_a_terminal_gets_rich_tables(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    _show.show(TEXT)
    assert "─" in sys.stdout.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_terminal_without_rich_gets_text(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setitem(sys.modules, "rich.console", None)
    _show.show(TEXT)
    assert sys.stdout.getvalue() == f"{TEXT}\n"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_pipe_gets_text(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    _show.show(TEXT)
    assert capsys.readouterr().out == f"{TEXT}\n"


def test_long_lines_are_wrapped_with_their_indent():
    line = "    " + "influence that leaves " * 10
    for text in (in_rich(line, width=50, color_system=None), _show.wrapped(line, 50)):
        first, *others = text.rstrip().splitlines()
        assert first.startswith("    influence")
        assert others
        assert all(other.startswith("      ") and len(other) <= 50 for other in others)
        assert text.split() == line.split()
    assert _show.wrapped("a" * 80, 50) == "a" * 80
