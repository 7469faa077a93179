"""The record of the benchmarks: what was measured, with which command, when and on what.

`python -m benchmarks NAME --record` replaces what the record has of a benchmark at the sizes that were asked for, and
writes the pages that show or quote it.
"""

import dataclasses
import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
RECORD = FOLDER / "results.json"

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Run:
    """The rows of one benchmark."""

    benchmark: str
    rows: Rows
    command: str
    environment: dict[str, str]
    """What it ran on."""
    date: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())


def load(path: Path = RECORD) -> list[Run]:
    return [Run(**run) for run in json.loads(path.read_text())] if path.exists() else []


def save(runs: Iterable[Run], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([dataclasses.asdict(run) for run in runs], indent=1) + "\n")


def merged(runs: Iterable[Run], new: Run) -> list[Run]:
    """The runs with a new one in the place of what they have of its benchmark at its sizes; of accelerators, what they
    have of the same one at the same length and batch."""
    keys = ("on", "size", "steps", "batch") if new.benchmark == "accelerators" else ("size",)
    place = lambda row: tuple(row.get(key) for key in keys)
    places = set(map(place, new.rows))
    older = []
    for run in runs:
        old = [row for row in run.rows if place(row) not in places]
        if run.benchmark != new.benchmark:
            older.append(run)
        elif old:
            older.append(dataclasses.replace(run, rows=old))
    first = lambda run: [run.rows[0].get(key) or 0 for key in ("size", "steps", "batch")]
    return sorted([*older, new], key=lambda run: (run.benchmark, first(run)))
