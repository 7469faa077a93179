"""The command `python -m benchmarks`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks import (
    accelerators,
    by_hand,
    cells,
    compile_time,
    interop,
    low_rank,
    measure,
    memory,
    norse,
    pages,
    passes,
    peer,
    precision,
    record,
    report,
    scale,
    speed,
    step,
)
from benchmarks.record import Rows

WIDTH = 150  # of a table where the terminal does not say its own


def _full(
    console: Console, sizes: tuple[int, ...], repeats: int, only: tuple[str, ...] | None
) -> dict[str, Callable[[], Rows]]:
    small = min(sizes)
    return {
        "speed": lambda: speed.run(console, sizes, 50, 32, repeats),
        "cells": lambda: cells.run(console, sizes, 50, 32, repeats, only),
        "step": lambda: step.run(console, sizes, 1000, (1, 16), repeats, only),
        "memory": lambda: memory.run(console, small, (50, 500, 5000, 50_000), 32, 5000),
        "compile": lambda: compile_time.first(console, small, 50, 32),
        "compile-layers": lambda: compile_time.layers(console, (1, 4, 16, 48), 64, 50, 32),
        "compile-growth": lambda: compile_time.growth(
            console, (1, 2, 4, 6, 8, 10), 2000, (1000, 10_000, 100_000)
        ),
        "passes": lambda: passes.run(console, small, 50, 32, repeats, only),
        "passes-readout": lambda: passes.run(
            console, small, 50, 32, repeats, (passes.LEAKY,), passes.FOLLOWING
        ),
        "low-rank": lambda: low_rank.run(console, small, 100, 16, 3, repeats),
        "low-rank-windows": lambda: low_rank.over_windows(console, small, 500, 16, 3),
        "precision": lambda: precision.run(console, min(small, 64), 100, 4, 3, only),
        "interop": lambda: interop.run(console, max(sizes), 50, 32, repeats),
        "norse": lambda: norse.speed(console, sizes, 50, 32, repeats),
        "norse-memory": lambda: norse.memory(console, small, (50, 500, 5000), 32),
    }


def _quick(
    console: Console, sizes: tuple[int, ...], repeats: int, only: tuple[str, ...] | None
) -> dict[str, Callable[[], Rows]]:
    few = ("BPTT", "etpc D-RTRL", "etpc D-RTRL W=auto")
    small = min(sizes)
    return {
        "speed": lambda: speed.run(console, sizes, 20, 4, repeats, (1, 10), (4,), 0),
        "cells": lambda: cells.run(console, sizes, 20, 4, repeats, only or ("LIF", "LSTM")),
        "step": lambda: step.run(console, sizes, 20, (1,), repeats, only or ("LIF", "LSTM")),
        "memory": lambda: memory.run(console, small, (20, 200), 4, only=few),
        "compile": lambda: compile_time.first(console, small, 20, 4, few),
        "compile-layers": lambda: compile_time.layers(console, (1,), 8, 20, 4),
        "compile-growth": lambda: compile_time.growth(console, (2,), 50, (200,)),
        "passes": lambda: passes.run(console, small, 20, 4, repeats, only or ("LSTM",)),
        "passes-readout": lambda: passes.run(
            console, small, 20, 4, repeats, (passes.LEAKY,), passes.FOLLOWING
        ),
        "low-rank": lambda: low_rank.run(console, small, 20, 4, 1, repeats, (4,), (0.9,), ("LIF",)),
        "low-rank-windows": lambda: low_rank.over_windows(console, small, 20, 4, 1, (5,), ("LIF",)),
        "precision": lambda: precision.run(console, 8, 20, 2, 1, only or ("GRU",), precision.FEW),
        "interop": lambda: interop.run(console, small, 20, 4, repeats),
        "norse": lambda: norse.speed(console, sizes, 20, 4, repeats),
        "norse-memory": lambda: norse.memory(console, small, (20, 200), 4),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for, print it, and write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        default=["all"],
        help="speed, cells, step, memory, compile, passes, low-rank, precision, interop, norse or all; "
        "accelerators and scale are asked for by name, in the environment of `make accelerators`",
    )
    parser.add_argument("--sizes", type=_sizes, help="neurons of the network, as in 128,512,1024")
    parser.add_argument("--cells", type=_names, help="which, as in LIF,LSTM; without it all")
    parser.add_argument(
        "--on", type=_names, default=accelerators.ON, help="accelerators, as in v5e:2x2,h100"
    )
    parser.add_argument("--steps", type=_sizes, default=(50, 1000), help="of accelerators: lengths")
    parser.add_argument("--batches", type=_sizes, default=(1, 32), help="of accelerators")
    parser.add_argument("--repeats", type=int, help="how often each gradient is timed")
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    parser.add_argument("--json", type=Path, help="file of runs, in which these take their place")
    parser.add_argument("--plots", type=Path, help="folder to draw the runs into")
    parser.add_argument(
        "--record", action="store_true", help="into the record of the documentation, and its pages"
    )
    options = parser.parse_args(arguments)

    kept = measure.keep_memory()
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    known = dict.fromkeys((*cells.NAMES, *passes.NAMES, *(cell.name for cell in by_hand.CELLS)))
    if unknown := [name for name in options.cells or () if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    sizes = options.sizes or ((32,) if options.quick else (128,))
    repeats = options.repeats or (2 if options.quick else 20)
    if options.record:
        if options.quick or (options.cells and options.what != ["accelerators"]):
            parser.error("--record is for a whole run: leave --quick and --cells out")
        options.json, options.plots = record.RECORD, record.FOLDER
    benchmarks = (_quick if options.quick else _full)(console, sizes, repeats, options.cells)
    if "accelerators" in options.what:
        benchmarks["accelerators"] = lambda: accelerators.run(
            console, sizes, options.steps, options.batches, options.on, options.cells
        )
    if "scale" in options.what:
        benchmarks["scale"] = lambda: scale.run(console)
    for name, available in (("interop", peer.available()), ("norse", norse.available())):
        for key in [key for key in benchmarks if key.startswith(name) and not available]:
            del benchmarks[key]
    asked = {
        what: [name for name in benchmarks if what == "all" or f"{name}-".startswith(f"{what}-")]
        for what in options.what
    }
    if unknown := [what for what, names in asked.items() if not names]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(benchmarks)}")
    chosen = {name for names in asked.values() for name in names}

    environment = measure.environment(kept)
    for name, value in environment.items():
        console.print(f"{name:<18}{value}", highlight=False)
    command = " ".join(
        ["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)]
    )
    runs = record.load(options.json) if options.json else []
    for name, run in benchmarks.items():
        if name in chosen:
            runs = record.merged(runs, record.Run(name, run(), command, environment))
            if options.json:  # after each, so that a run that is stopped leaves something
                record.save(runs, options.json)
    if options.plots:
        for path in report.plots(runs, options.plots):
            console.print(f"drew {path}")
    if options.record:
        pages.main()


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


if __name__ == "__main__":
    main()
