"""Ceilings of lines. Who raises one says in the commit what was removed instead, and why that was not enough."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = {
    ".": 2001,
    "_jax": 1474,
    "algorithms": 615,
    "analyse": 2095,
    "checking": 2533,
    "cli": 1122,
    "draw": 878,
    "emit": 2645,
    "ir": 829,
    "export": 588,
    "files": 213,
    "gradient": 932,
    "interop": 1993,
    "nn": 3286,
    "ops": 861,
    "plan": 2159,
    "run": 2117,
    "show": 624,
    "trace": 1250,
    "traces": 2520,
    "training": 286,
}
TESTS = {
    ".": 12386,
    "analyse": 1250,
    "checking": 1900,
    "device": 993,
    "draw": 520,
    "emit": 805,
    "fuzz": 2332,
    "interop": 2992,
    "ir": 89,
    "nn": 2656,
    "ops": 470,
    "passes": 287,
    "peer": 1272,
    "plan": 551,
    "trace": 930,
    "traces": 2791,
    "zoo": 2830,
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
