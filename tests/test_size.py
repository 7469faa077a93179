"""Ceilings of lines. Who raises one says in the commit what was removed instead, and why that was not enough."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = {
    ".": 6241,
    "_jax": 1323,
    "algorithms": 616,
    "analyse": 2095,
    "cli": 1121,
    "draw": 878,
    "emit": 2742,
    "interop": 1993,
    "nn": 3287,
    "ops": 861,
    "plan": 2207,
    "run": 2684,
    "show": 616,
    "trace": 1156,
    "traces": 2577,
}
TESTS = {
    ".": 13837,
    "analyse": 1146,
    "device": 978,
    "draw": 515,
    "emit": 805,
    "fuzz": 2332,
    "interop": 2961,
    "nn": 2250,
    "ops": 466,
    "passes": 287,
    "peer": 1212,
    "plan": 650,
    "trace": 903,
    "traces": 2799,
    "zoo": 2607,
}
"""Of a folder with all that is in it; of `.` the files beside the folders."""
CEILINGS = {"etpc": PACKAGE, "tests": TESTS}
CASES = [(root, name) for root, ceilings in CEILINGS.items() for name in ceilings]


def lines_of(folder: Path, name: str) -> int:
    files = folder.glob("*.py") if name == "." else (folder / name).rglob("*.py")
    return sum(file.read_text().count("\n") for file in files)


@pytest.mark.parametrize(("root", "name"), CASES)
def test_a_folder_stays_below_its_ceiling(root, name):
    assert lines_of(ROOT / root, name) <= CEILINGS[root][name]


@pytest.mark.parametrize("root", CEILINGS)
def test_each_folder_has_a_ceiling(root):
    folders = {path.parent for path in (ROOT / root).glob("*/*.py")}
    assert {folder.name for folder in folders} == CEILINGS[root].keys() - {"."}
