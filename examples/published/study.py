"""What was published beside what is reached here: the runs, their file and their tables.

A study is a module of this folder with a `Study` in it. Its docstring says what is run. Its command line:

    python -m examples.published.chaotic_series                       # all of it, a table
    python -m examples.published.chaotic_series --seeds 2 --only Lorenz
    python -m examples.published.chaotic_series --json FILE           # adds the rows to a file, or replaces them
    python -m examples.published.chaotic_series --json FILE --resume  # runs the cases and seeds that it does not have

`docs/results.md` is made of the files in `docs/results/` by `python -m benchmarks.pages`.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import etpc


@dataclasses.dataclass(frozen=True)
class Row:
    """One number that was published, and ours."""

    task: str
    name: str
    """What was run: a learning rule, most often."""
    published: float | None
    """`None`: the source has no such number."""
    ours: list[float]
    """For each seed."""
    seconds: float
    """The median over the seeds of the time of a run, compilation included; of those that ran together last."""
    command: str
    date: str
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Case:
    """One run, which gives a number, or several, for each seed."""

    task: str
    names: tuple[str, ...]
    run: Callable[[Any], Sequence[Any]]
    """From a seed to one number for each name."""
    published: tuple[float | None, ...]
    """One for each name."""
    random: bool = True
    """Whether the seed matters. If not, it runs once."""
    together: bool = False
    """Whether `run` takes the sequence of all seeds, and gives the numbers of each."""


@dataclasses.dataclass(frozen=True)
class Study:
    """One source, and the cases that are taken from it."""

    title: str
    source: str
    """A citation, in Markdown."""
    measure: str
    """What the numbers are, and which are better, as "success (more is better)"."""
    cases: tuple[Case, ...]
    found: str = ""
    """What the comparison shows, in Markdown: where ours differ, and why."""
    seeds: int = 5
    digits: str = ".4f"
    """How a number is shown."""
    data: bool = False
    """Whether it reads data that its user has, so that `make results` leaves it out."""


def main(study: Study, arguments: Sequence[str] | None = None, others: str = "") -> None:
    """The command line of a study, called as `main(STUDY)` by its module, which may have read other options."""
    parser = argparse.ArgumentParser(description=study.title)
    parser.add_argument("--seeds", type=int, default=study.seeds, help="how many")
    parser.add_argument("--only", nargs="+", help="cases whose task or name contains one of these")
    parser.add_argument("--json", type=Path, help="add the rows to this file, case by case")
    parser.add_argument(
        "--resume", action="store_true", help="run the seeds and cases that the file does not have"
    )
    args = parser.parse_args(arguments)
    if args.resume and not args.json:
        parser.error("--resume is of a file: say which by --json")
    named = lambda text: any(part in text for part in args.only)
    asked = lambda case: not args.only or named(" ".join((case.task, *case.names)))
    cases = [case for case in study.cases if asked(case)]
    if not cases:
        parser.error("no case is left; they are " + ", ".join(map(label, study.cases)))
    command = f"python -m {module_name()}{others} --seeds {args.seeds}"
    before, found = load(args.json) if args.json else [], versions()
    begun = [row for row in before if args.resume and row.versions == found]
    if expected := minutes(cases, before, args.seeds, begun):
        print(f"{expected:.0f} min, if as before", file=sys.stderr)
    begin, rows = time.perf_counter(), []
    for case in cases:
        left = range(done(case, begun), args.seeds if case.random else 1)
        rows += joined(case, begun, run(case, left, command, found) if left else [])
        print(f"{label(case)}: {rows[-1].seconds:.0f} s", file=sys.stderr)
        if args.json and left:
            save(merged(study, load(args.json), rows), args.json)
    print(f"{tables(study, rows)}\n\n{time.perf_counter() - begin:.0f} s")


def done(case: Case, begun: Sequence[Row]) -> int:
    """For how many seeds rows have all numbers of a case."""
    seeds = {(row.task, row.name): len(row.ours) for row in begun}
    return min(seeds.get((case.task, name), 0) for name in case.names)


def joined(case: Case, begun: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The rows of a case with the numbers of the seeds before, and those rows where nothing is new."""
    numbers = done(case, begun)
    rows = {row.name: row for row in begun if row.task == case.task}
    if not new:
        return [rows[name] for name in case.names]
    if not numbers:
        return list(new)
    return [dataclasses.replace(r, ours=rows[r.name].ours[:numbers] + r.ours) for r in new]


def run(case: Case, seeds: Sequence[int], command: str, found: dict[str, str]) -> list[Row]:
    """The rows of a case."""
    numbers, seconds = [], []
    if case.together:
        start = time.perf_counter()
        numbers = [[float(number) for number in result] for result in case.run(seeds)]
        seconds.append((time.perf_counter() - start) / len(seeds))
    else:
        for seed in seeds:
            start = time.perf_counter()
            numbers.append([float(number) for number in case.run(seed)])
            seconds.append(time.perf_counter() - start)
    columns = zip(case.names, case.published, zip(*numbers, strict=True), strict=True)
    about = statistics.median(seconds), command, datetime.date.today().isoformat(), found
    return [Row(case.task, name, theirs, list(ours), *about) for name, theirs, ours in columns]


def minutes(
    cases: Sequence[Case], rows: Sequence[Row], seeds: int, begun: Sequence[Row] = ()
) -> float:
    """How long cases take by the rows of them that there are, with so many seeds less those that have begun."""
    seconds = {(row.task, row.name): row.seconds for row in rows}
    left = lambda case: max((seeds if case.random else 1) - done(case, begun), 0)
    return sum(seconds.get((case.task, case.names[0]), 0) * left(case) for case in cases) / 60


def label(case: Case) -> str:
    return f"{case.task}: {', '.join(case.names)}"


def module_name() -> str:
    """That of the study which runs."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else "examples.published"


def versions() -> dict[str, str]:
    """Of what the numbers may depend on."""
    packages = ("jax", "jaxlib", "optax", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), "etpc": etpc.__version__, **found}


def load(path: Path) -> list[Row]:
    """The rows of a file, none where there is none."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text())]


def save(rows: Sequence[Row], path: Path) -> None:
    """Rows as JSON."""
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


def merged(study: Study, before: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """New rows in place of older ones of the same task and name, in the order of the study."""
    rows = {(row.task, row.name): row for row in (*before, *new)}
    keys = [(case.task, name) for case in study.cases for name in case.names]
    return [rows[key] for key in keys if key in rows]


def tables(study: Study, rows: Sequence[Row]) -> str:
    """A Markdown table for each task."""
    show = lambda number: "-" if number is None else format(number, study.digits)
    lines = []
    for task in dict.fromkeys(row.task for row in rows):
        lines += [
            "",
            f"| {task} | published | here | range | seeds | s |",
            "| --- | ---: | ---: | --- | ---: | ---: |",
        ]
        for row in rows:
            if row.task == task:
                several = len(row.ours) > 1
                spread = f"{show(min(row.ours))} to {show(max(row.ours))}" if several else "-"
                numbers = show(row.published), show(statistics.fmean(row.ours)), spread
                counts = str(len(row.ours)), f"{row.seconds:.0f}"
                lines.append(f"| {' | '.join((row.name, *numbers, *counts))} |")
    return "\n".join(lines[1:])
