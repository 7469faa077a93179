"""Ceilings of lines. Who raises one says in the commit what was removed instead, and why that was not enough."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = {
    ".": 2406,
    "_jax": 1908,
    "algorithms": 1603,
    "analyse": 2312,
    "checking": 3058,
    "cli": 1164,
    "draw": 878,
    "emit": 2496,
    "equations": 2484,
    "export": 2004,
    "files": 256,
    "forms": 2571,
    "gradient": 960,
    "interop": 1989,
    "ir": 851,
    "nn": 3354,
    "ops": 861,
    "plan": 2055,
    "run": 2105,
    "show": 605,
    "trace": 1317,
    "training": 286,
}
TESTS = {
    ".": 11662,
    "algorithms": 1368,
    "analyse": 1421,
    "checking": 2623,
    "device": 1246,
    "draw": 509,
    "emit": 953,
    "equations": 578,
    "forms": 1811,
    "fuzz": 2264,
    "interop": 3162,
    "ir": 259,
    "nn": 2210,
    "ops": 466,
    "passes": 545,
    "peer": 1463,
    "plan": 572,
    "trace": 924,
    "zoo": 2384,
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
