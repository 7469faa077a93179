"""The code of a page of the documentation, and what the page says that it prints."""

import contextlib
import doctest
import io
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OUTPUT_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def code_blocks(page: str, languages: str = "python") -> Iterator[tuple[str, str | None]]:
    """Yields each block of code, placed on its own lines, and the `text` block right after it.

    `languages` are the names that a block may have, as a regular expression: "python|py" for two.
    """
    block = re.compile(
        rf"^```(?:{languages})\n(?P<code>.*?)^```$(?:\s*^```text\n(?P<output>.*?)^```$)?",
        re.MULTILINE | re.DOTALL,
    )
    found = list(block.finditer(page))
    opened = re.findall(rf"```(?:{languages})\b", page)
    assert len(found) == len(opened), "a block is indented or not closed"
    for match in found:
        yield "\n" * page.count("\n", 0, match.start("code")) + match["code"], match["output"]


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch, languages: str = "python") -> None:
    """Run the blocks of a page as one module, and compare what they print."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for code, expected in code_blocks(page.read_text(), languages):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), module.__dict__)
        if expected is not None and not doctest.OutputChecker().check_output(
            expected, printed.getvalue(), OUTPUT_OPTIONS
        ):
            pytest.fail(f"the page says:\n{expected}\nit prints:\n{printed.getvalue()}")
