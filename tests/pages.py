"""The code of a page of the documentation, and what the page says that it prints.

It imports no test framework, as it also runs where only the wheel is installed (`tests/wheel.py`).
"""

import contextlib
import doctest
import io
import math
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
OUTPUT_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


DECIMAL = re.compile(r"(-?\d+\.\d+(?:e[+-]\d+)?)")


class Output(NamedTuple):
    """What a page says that a block prints."""

    text: str
    tolerance: float | None = None

    def agrees(self, printed: str) -> bool:
        """Whether that is what was printed, white space apart.

        With a tolerance, numbers with a decimal point may differ by so much of the larger one, or by 1e-6, as rounding
        errors do. Without one, `...` stands for anything.
        """
        if self.tolerance is None:
            return doctest.OutputChecker().check_output(self.text, printed, OUTPUT_OPTIONS)
        shown, said = (DECIMAL.split(" ".join(text.split())) for text in (self.text, printed))
        return shown[::2] == said[::2] and all(
            math.isclose(float(a), float(b), rel_tol=self.tolerance, abs_tol=1e-6)
            for a, b in zip(shown[1::2], said[1::2], strict=True)
        )


# Before a block of output whose numbers come from training.
TOLERANCE = r"<!-- numbers to (?P<percent>\d+) % -->"


def code_blocks(page: str, languages: str = "python") -> Iterator[tuple[str, Output | None]]:
    """Yields each block of code, placed on its own lines, and the `text` block right after it.

    `languages` are the names that a block may have, as a regular expression: "python|py" for two.
    """
    block = re.compile(
        rf"^```(?:{languages})\n(?P<code>.*?)^```$"
        rf"(?:\s*(?:^{TOLERANCE}\s*)?^```text\n(?P<output>.*?)^```$)?",
        re.MULTILINE | re.DOTALL,
    )
    found = list(block.finditer(page))
    opened = re.findall(rf"```(?:{languages})\b", page)
    assert len(found) == len(opened), "a block is indented or not closed"
    for match in found:
        code = "\n" * page.count("\n", 0, match.start("code")) + match["code"]
        text, percent = match["output"], match["percent"]
        yield code, text and Output(text, int(percent) / 100 if percent else None)


def run_page(page: Path, languages: str = "python") -> int:
    """Run the blocks of a page as one module, in an empty folder, and compare what they print.

    Returns how many there are, and raises `AssertionError` where one prints something else.
    """
    blocks = list(code_blocks(page.read_text(), languages))
    # Classes of the page find their module here.
    module = sys.modules["page"] = types.ModuleType("page")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            for code, expected in blocks:
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(code, str(page), "exec"), module.__dict__)
                said = printed.getvalue()
                if expected is not None and not expected.agrees(said):
                    raise AssertionError(f"the page says:\n{expected.text}\nit prints:\n{said}")
        finally:
            del sys.modules["page"]
    return len(blocks)
