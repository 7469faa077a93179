"""Ceilings of lines. Who raises one says in the commit what was removed instead, and why that was not enough."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = {
    ".": 2788,
    "_jax": 1973,
    "algorithms": 1648,
    "analyse": 3032,
    "checking": 3042,
    "cli": 1178,
    "draw": 878,
    "emit": 2510,
    "equations": 2668,
    "export": 2348,
    "files": 329,
    "forms": 2505,
    "gradient": 997,
    "interop": 2003,
    "ir": 1427,
    "nn": 3354,
    "ops": 861,
    "plan": 2034,
    "run": 2397,
    "schedule": 382,
    "show": 604,
    "trace": 1348,
    "training": 299,
}
TESTS = {
    ".": 13110,
    "algorithms": 1178,
    "analyse": 1421,
    "checking": 2769,
    "device": 1592,
    "draw": 509,
    "emit": 988,
    "equations": 802,
    "forms": 1525,
    "fuzz": 2288,
    "interop": 3162,
    "ir": 536,
    "nn": 2210,
    "ops": 466,
    "passes": 797,
    "peer": 1463,
    "plan": 620,
    "replay": 100,
    "schedule": 261,
    "trace": 1291,
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
