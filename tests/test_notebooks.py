"""The notebooks are what their pages make, and have all of their code, which `test_docs` runs."""

import re

import nbformat
import pytest

from tests.notebooks import DOCS, FOLDER, NOTEBOOKS, notebook, path
from tests.pages import code_blocks

by_name = pytest.mark.parametrize("name", NOTEBOOKS)


def test_every_notebook_has_a_page() -> None:
    assert sorted(FOLDER.glob("*.ipynb")) == sorted(path(name) for name in NOTEBOOKS)


@by_name
def test_a_notebook_is_valid_and_what_its_page_makes(name: str) -> None:
    kept = nbformat.read(path(name), as_version=4)
    nbformat.validate(kept)
    cells = [cell for cell in kept.cells if cell.cell_type == "code"]
    page = (DOCS / f"{NOTEBOOKS[name]}.md").read_text()
    assert [cell.source for cell in cells] == [block.strip() for block, _ in code_blocks(page)]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    assert kept == notebook(NOTEBOOKS[name]), (
        f"{path(name)} is stale: run `python -m tests.notebooks`"
    )


@by_name
def test_the_outputs_are_those_that_the_page_shows(name: str) -> None:
    kept = nbformat.read(path(name), as_version=4)
    page = (DOCS / f"{NOTEBOOKS[name]}.md").read_text()
    cells = [cell for cell in kept.cells if cell.cell_type == "code"]
    compared = 0
    for cell, (_, expected) in zip(cells, code_blocks(page), strict=True):
        printed = "".join(output.text for output in cell.outputs)
        if expected is not None:
            assert expected.agrees(printed), printed
            compared += 1
    assert compared >= 3


@by_name
def test_links_of_a_notebook_lead_somewhere(name: str) -> None:
    kept = nbformat.read(path(name), as_version=4)
    text = "\n".join(cell.source for cell in kept.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    missing = [link for link in links if not (FOLDER / link).exists()]
    assert not missing
    assert "```text" not in text
    assert "][" not in text, "a reference that only MkDocs resolves"
