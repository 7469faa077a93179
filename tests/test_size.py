"""Ceilings of lines. Who raises one says in the commit what was removed instead, and why that was not enough."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CEILINGS: dict[str, int] = {}


def lines_of(folder: Path) -> int:
    """Of all Python files of a folder, or of its own files alone where each of its folders has a ceiling."""
    deep = f"{folder.relative_to(ROOT)}/" not in PARENTS
    files = folder.rglob("*.py") if deep else folder.glob("*.py")
    return sum(len(file.read_text().splitlines()) for file in files)


PARENTS = {f"{name.rpartition('/')[0]}/" for name in CEILINGS if "/" in name}


@pytest.mark.parametrize("name", CEILINGS)
def test_a_folder_stays_below_its_ceiling(name):
    assert lines_of(ROOT / name) <= CEILINGS[name]


def test_each_folder_has_a_ceiling():
    for parent in PARENTS:
        for folder in (ROOT / parent).iterdir():
            if list(folder.glob("*.py")):
                assert f"{parent}{folder.name}" in CEILINGS
