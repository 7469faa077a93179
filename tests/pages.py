"""The code of a page of documentation."""

import re
from collections.abc import Iterator


def code_blocks(page: str) -> Iterator[tuple[str, str | None]]:
    """Yields each `python` block, placed on its own lines, and the `text` block right after it."""
    block = re.compile(
        r"^```python\b[^\n]*\n(?P<code>.*?)^```$(?:\s*^```text\n(?P<output>.*?)^```$)?",
        re.MULTILINE | re.DOTALL,
    )
    found = list(block.finditer(page))
    assert len(found) == page.count("```python"), "a python block is indented or not closed"
    for match in found:
        yield "\n" * page.count("\n", 0, match.start("code")) + match["code"], match["output"]
