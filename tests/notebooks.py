"""The notebooks of the documentation, made from its pages: `python -m tests.notebooks` writes them.

They have the text and the code of their page, and as outputs what the cells printed when the notebook
was written. What the page says that a block prints is left out.
"""

import contextlib
import io
import re
import sys
import tempfile
import types
from pathlib import Path

import nbformat
from nbformat import v4

from tests.pages import ROOT, TOLERANCE

DOCS = ROOT / "docs"
FOLDER = DOCS / "notebooks"
NOTEBOOKS = {name: name for name in ("start", "tutorial", "own-trace", "build-your-own")}
"""The page of each notebook."""

_BLOCK = re.compile(
    rf"^```python\n(?P<code>.*?)^```$\n?(?:\s*(?:^{TOLERANCE}\s*)?^```text\n.*?^```$\n?)?",
    re.MULTILINE | re.DOTALL,
)


def notebook(page: str) -> nbformat.NotebookNode:
    """A page as a notebook without outputs."""
    text = (DOCS / f"{page}.md").read_text()
    cells, end = [], 0
    for block in _BLOCK.finditer(text):
        cells += _prose(text[end : block.start()])
        cells.append(v4.new_code_cell(block["code"].strip()))
        end = block.end()
    cells += _prose(text[end:])
    for number, cell in enumerate(cells):
        cell["id"] = f"{page}-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _prose(text: str) -> list[nbformat.NotebookNode]:
    """Text as a cell, with links that work from the folder of the notebooks."""
    text = re.sub(r"\[(`[^`\]]+`)\]\[[^\]]+\]", r"\1", text)  # a name in the reference
    text = re.sub(r"\]\((?=[\w/-]+\.(?:md|svg|png|ipynb))", "](../", text)
    text = text.replace("](../notebooks/", "](").strip()
    return [v4.new_markdown_cell(text)] if text else []


def run(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Runs the cells in order, in one namespace, and adds what each prints.

    No kernel is needed: no cell of a page shows anything but what it prints.
    """
    # Classes of the notebook find their module here.
    module = sys.modules["notebook"] = types.ModuleType("notebook")
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, cell in enumerate(cells, 1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(cell.source, f"cell {number}", "exec"), module.__dict__)
            cell.execution_count = number
            if text := printed.getvalue():
                cell.outputs = [v4.new_output("stream", name="stdout", text=text)]
    del sys.modules["notebook"]
    return book


def path(name: str) -> Path:
    return FOLDER / f"{name}.ipynb"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, page in NOTEBOOKS.items():
        nbformat.write(run(notebook(page)), path(name))
        print(f"wrote {path(name)}")


if __name__ == "__main__":
    main()
