"""Runs as a page in Markdown, and as plots."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from benchmarks import (
    accelerators,
    cells,
    compile_time,
    interop,
    low_rank,
    memory,
    norse,
    passes,
    precision,
    speed,
    step,
)
from benchmarks.record import Rows, Run
from benchmarks.table import Table

TABLES: dict[str, Table] = {
    "speed": speed.TABLE,
    "cells": cells.TABLE,
    "step": step.TABLE,
    "memory": memory.TABLE,
    "compile": compile_time.FIRST,
    "compile-layers": compile_time.LAYERS,
    "compile-growth": compile_time.GROWTH,
    "passes": passes.TABLE,
    "passes-readout": passes.THROUGH,
    "low-rank": low_rank.TABLE,
    "low-rank-windows": low_rank.OVER_WINDOWS,
    "precision": precision.TABLE,
    "interop": interop.TABLE,
    "norse": norse.SPEED,
    "norse-memory": norse.MEMORY,
    "accelerators": accelerators.TABLE,
}
COLOURS = {"BPTT": "#6b6b6b", "etpc": "#0072b2", "braintrace": "#d55e00"}
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",  # legible on a dark page too
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "benchmarks",
}


def markdown(runs: Sequence[Run]) -> str:
    """A section for each benchmark: its plots, its tables, and what they were measured with."""
    sections = []
    for name, table in TABLES.items():
        of_it = [run for run in runs if run.benchmark == name]
        if not of_it:
            continue
        stems = _stems(name, [row for run in of_it for row in run.rows])
        sections += [f"## {table.title}", *(f"![{stem}]({stem}.svg)" for stem in stems)]
        for run in of_it:
            for shape, group in groupby(run.rows, lambda row, table=table: _shape(row, table)):
                shape_rows = list(group)
                summary = f'<details markdown="1"><summary>{shape or "Table"}</summary>'
                text = _by_cell(shape_rows) if name == "cells" else table.markdown(shape_rows)
                sections += [summary, text, "</details>"]
            about = "; ".join(f"{name}: {value}" for name, value in run.environment.items())
            sections.append(f"`{run.command}`, {run.date}, on {about}.")
        sections += ["\n".join(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n\n".join(sections)


def _stems(name: str, rows: Rows) -> list[str]:
    """The names of the plots of a benchmark."""
    if name in ("speed", "cells", "step"):
        return [f"{name}-{size}" for size in dict.fromkeys(row["size"] for row in rows)]
    return {"compile-growth": ["compile"]}.get(name, [name] if name in DRAWN else [])


def _by_cell(rows: Rows) -> str:
    """Times relative to BPTT, with a line for each cell and a column for each rule."""
    rules = [rule for rule in dict.fromkeys(row["name"] for row in rows) if rule != "BPTT"]
    lines = [["cell", "m", *rules], ["---", *["---:"] * (1 + len(rules))]]
    for cell in dict.fromkeys(row["cell"] for row in rows):
        same = {row["name"]: row for row in rows if row["cell"] == cell}
        block = next((row["block"] for row in same.values() if "block" in row), "")
        times = [f"{same[rule]['to_bptt']:.2f}" if rule in same else "-" for rule in rules]
        lines.append([cell, str(block), *times])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shape(row: dict[str, Any], table: Table) -> str:
    """The sizes of a row that are no column of its table."""
    shown = {column.key for column in table.columns}
    letters = {"size": "N", "batch": "B", "steps": "T"}
    return ", ".join(f"{n} = {row[key]}" for key, n in letters.items() if key in row.keys() - shown)


def plots(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Draw what there is, each plot as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in DRAWN.items():
            rows = [row for run in runs if run.benchmark == name for row in run.rows]
            for stem, figure in draw(rows) if rows else ():
                path = folder / f"{stem}.svg"
                figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
                written.append(path)
    return sorted(written)


def _colour(name: str) -> str:
    return next(colour for start, colour in COLOURS.items() if name.startswith(start))


def _speed(rows: Rows) -> Iterator[tuple[str, Figure]]:
    for size, group in groupby(rows, lambda row: row["size"]):
        size_rows = list(group)[::-1]
        figure = Figure((8, 0.24 * len(size_rows) + 0.8))
        axes = figure.subplots()
        times = [row["min_ms"] for row in size_rows]
        names = [row["name"] for row in size_rows]
        bars = axes.barh(names, times, color=[_colour(name) for name in names])
        errors = [f" {row['min_ms']:.4g} ms, error {row['error_bptt']:.2g}" for row in size_rows]
        axes.bar_label(bars, errors, fontsize=7)
        axes.set(xscale="log", xlabel="ms for a gradient (least of all repeats)")
        axes.set_xlim(min(times) / 2, max(times) * 8)
        axes.set_title(f"N = {size}; error: of the hidden weights, to BPTT", loc="left")
        yield f"speed-{size}", figure


def _cells(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """A row of points for each cell, the fastest rule to the left."""
    for size, group in groupby(rows, lambda row: row["size"]):
        size_rows = list(group)
        names = list(dict.fromkeys(row["cell"] for row in size_rows))[::-1]
        all_times = [row["to_bptt"] for row in size_rows]
        figure = Figure((8, 0.26 * len(names) + 1))
        axes = figure.subplots()
        for rule, marker in zip(
            dict.fromkeys(row["name"] for row in size_rows), "|os^DxP", strict=False
        ):
            rule_rows = [row for row in size_rows if row["name"] == rule]
            times, positions = (
                [row["to_bptt"] for row in rule_rows],
                [names.index(row["cell"]) for row in rule_rows],
            )
            colour = COLOURS["BPTT"] if rule == "BPTT" else None
            axes.plot(times, positions, marker, color=colour, label=rule, ms=5)
        axes.set_yticks(range(len(names)), names)
        axes.set(xscale="log", xlabel="time relative to BPTT")
        low, high = 0.9 * min(all_times), 1.1 * max(all_times)
        ticks = (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32, 64)
        axes.set_xticks([x for x in ticks if low < x < high])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y", lw=0.4)
        axes.set_title(f"N = {size}", loc="left")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        yield f"cells-{size}", figure


def _step(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """A row of points for each cell and batch."""
    series = {"hand": "by hand", "etpc": "etpc D-RTRL", "rank": "rank 4", "decay": "decay"}
    for size, group in groupby(rows, lambda row: row["size"]):
        size_rows = list(group)[::-1]
        names = [f"{row['cell']}, B = {row['batch']}" for row in size_rows]
        figure = Figure((8, 0.24 * len(names) + 1))
        axes = figure.subplots()
        for (key, label), marker in zip(series.items(), "|o^x", strict=True):
            times = [row[f"{key}_us"] for row in size_rows]
            axes.plot(times, range(len(names)), marker, label=label, ms=6)
        axes.set_yticks(range(len(names)), names)
        axes.set(xscale="log", xlabel="microseconds for a step with its update")
        axes.grid(axis="y", lw=0.4)
        axes.set_title(f"N = {size}", loc="left")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        yield f"step-{size}", figure


def _memory(rows: Rows) -> Iterator[tuple[str, Figure]]:
    figure = Figure((8, 4))
    axes = figure.subplots()
    styles = iter("osvD^<>Pp*")
    for name, group in groupby(rows, lambda row: row["name"]):
        contestant_rows = list(group)
        axes.plot(
            [row["steps"] for row in contestant_rows],
            [row["temp"] / 2**20 for row in contestant_rows],
            marker=next(styles),
            color=_colour(name),
            label=name,
        )
    axes.set(xscale="log", yscale="log", xlabel="steps T", ylabel="temporary memory, MiB")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    yield "memory", figure


def _growth(rows: Rows) -> Iterator[tuple[str, Figure]]:
    figure = Figure((8, 3))
    kinds = ("feed-forward", "recurrent", "sparse")
    for axes, kind in zip(figure.subplots(1, 3, sharey=True), kinds, strict=True):
        kind_rows = [row for row in rows if kind in row["name"]]
        for key, label in (("plan_s", "etpc"), ("lower_s", "lower"), ("xla_s", "XLA")):
            x, y = [row["neurons"] for row in kind_rows], [row[key] for row in kind_rows]
            axes.plot(x, y, marker="o", label=label)
        axes.set(title=kind, xlabel="neurons")
        axes.set_xscale("log" if kind == "sparse" else "linear")
        axes.label_outer()
    figure.axes[0].set(ylabel="seconds", ylim=(0, None))  # of all, which share the axis
    figure.axes[0].legend()
    yield "compile", figure


def _low_rank(rows: Rows) -> Iterator[tuple[str, Figure]]:
    def draw(axes: Axes, rows: Rows) -> None:
        for kind, colour in (("rank", COLOURS["etpc"]), ("decay", COLOURS["braintrace"])):
            kind_rows = [row for row in rows if row["rule"].startswith(kind)]
            x = [row["trace_bytes"] / 2**20 for row in kind_rows]
            y = [row["error_d_rtrl"] for row in kind_rows]
            axes.plot(x, y, marker="o", ls="-" if kind == "rank" else "", color=colour, label=kind)
        full = rows[0]["trace_bytes"] / 2**20
        axes.axvline(full, color=COLOURS["BPTT"], ls=":", label="full trace")

    yield "low-rank", _of_networks(rows, "traces, MiB", draw)


def _over_windows(rows: Rows) -> Iterator[tuple[str, Figure]]:
    def draw(axes: Axes, rows: Rows) -> None:
        windows = [row["window"] for row in rows]
        for rank in low_rank.FEW:
            errors = [row[f"error_{rank}"] for row in rows]
            axes.plot(windows, errors, marker="o", label=f"rank {rank}")
        axes.set_xticks(windows, [str(w) for w in windows])

    yield "low-rank-windows", _of_networks(rows, "window", draw)


def _of_networks(rows: Rows, xlabel: str, draw: Callable[[Axes, Rows], None]) -> Figure:
    """Errors to D-RTRL: axes for each network, with logarithms, into which its rows are drawn."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure((2.4 * len(names), 2.8))
    for axes, name in zip(
        figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True
    ):
        axes.set(title=name, xlabel=xlabel, xscale="log", yscale="log")
        draw(axes, [row for row in rows if row["network"] == name])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.label_outer()
    figure.axes[0].set_ylabel("error to D-RTRL")
    figure.axes[0].legend()
    return figure


DRAWN: dict[str, Callable[[Rows], Iterator[tuple[str, Figure]]]] = {
    "speed": _speed,
    "cells": _cells,
    "step": _step,
    "memory": _memory,
    "compile-growth": _growth,
    "low-rank": _low_rank,
    "low-rank-windows": _over_windows,
}
