"""The code of a page of the documentation, and what the page says that it prints.

It imports no test framework, as it also runs where only the wheel is installed (`tests/wheel.py`).
"""

import contextlib
import doctest
import io
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

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


def run_page(page: Path, languages: str = "python") -> int:
    """Run the blocks of a page as one module, and compare what they print.

    Returns how many there are, and raises `AssertionError` where one prints something else.
    """
    blocks = list(code_blocks(page.read_text(), languages))
    # Classes of the page find their module here.
    module = sys.modules["page"] = types.ModuleType("page")
    try:
        for code, expected in blocks:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, str(page), "exec"), module.__dict__)
            said = printed.getvalue()
            if expected is not None and not doctest.OutputChecker().check_output(
                expected, said, OUTPUT_OPTIONS
            ):
                raise AssertionError(f"the page says:\n{expected}\nit prints:\n{said}")
    finally:
        del sys.modules["page"]
    return len(blocks)
