"""What the examples of reinforcement learning share: how credit reaches the past, a table of runs, and their curves.

python -m examples.rl.streaming --json docs/rl/streaming.json
python -m examples.rl.runs docs/rl    # draws the curves of each such file, and prints its table
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

import etpc

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few steps, to see that it runs
BLOCKS = 20  # of a curve
WINDOW = 16


class Arm(NamedTuple):
    """How credit reaches the past."""

    rule: etpc.algorithms.Algorithm
    remembers: bool = True
    """Whether the state goes on from step to step."""


ARMS = {
    "D-RTRL": Arm(etpc.D_RTRL(window=1)),
    "TBPTT(16)": Arm(etpc.TBPTT(WINDOW, every=1)),
    "feed-forward": Arm(etpc.TBPTT(1), remembers=False),
}
"""For learners that move their weights at each step."""


class Task(NamedTuple):
    env: Any
    steps: int


def main(
    description: str,
    life: Callable[..., tuple[Array, Array]],
    tasks: Mapping[str, Task],
    arms: Mapping[str, Any],
    table: Callable[[Path], str] | None = None,
    seeds: int = 5,
) -> None:
    """Run each arm on each task, all seeds at once, and print the `table` of the file.

    `life(env, arm, steps, key)` gives a number for each of 20 parts of a run, and one for after it. Runs of as many
    steps that the file has are not run again: only the seeds that it lacks.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tasks", default=",".join([*tasks][: 1 if FAST else None]))
    parser.add_argument("--arms", default=";".join(arms), help="names, with ; between them")
    parser.add_argument("--seeds", type=int, default=1 if FAST else seeds)
    parser.add_argument("--steps", type=int, help="in place of those of the task")
    parser.add_argument(
        "--json", type=Path, help="a file for the curves, which a later run adds to"
    )
    args = parser.parse_args()
    print(
        f"{description}: the mean of {args.seeds} seeds in {BLOCKS} parts of a run; then each seed\n"
    )
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    rows: dict[tuple[str, str], dict[str, Any]] = {(row["task"], row["arm"]): row for row in found}
    order = {pair: n for n, pair in enumerate((task, name) for task in tasks for name in arms)}
    for task in args.tasks.split(","):
        env, steps = tasks[task]
        steps = args.steps or (6_000 if FAST else steps)
        for name in args.arms.split(";"):
            row = dict(task=task, arm=name, steps=steps)
            old = rows.get((task, name), row)
            old = old if old["steps"] == steps else row
            if (begin := len(old.get("final", ()))) >= args.seeds:
                continue
            start = time.perf_counter()
            one = functools.partial(life, env, arms[name], steps)
            keys = jax.vmap(jax.random.key)(jnp.arange(begin, args.seeds))
            curves, final = jax.jit(jax.vmap(one))(keys)
            shown = " ".join(f"{x:.3g}" for x in curves.mean(0))
            last = " ".join(f"{x:.3g}" for x in final)
            seconds = time.perf_counter() - start
            print(f"{task:<9} {name:<13} {shown}   then {last}   {seconds:.0f} s", flush=True)
            digits = lambda a: np.round(np.asarray(a, float), 4).tolist()
            new = dict(curves=digits(curves), final=digits(final))
            rows[task, name] = row | {key: [*old.get(key, ()), *new[key]] for key in new}
            if args.json:
                lines = [json.dumps(rows[pair]) for pair in sorted(rows, key=order.__getitem__)]
                args.json.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    if table and args.json:
        print(f"\n{table(args.json)}")


def draw(path: Path, measure: str) -> None:
    """The curves of a file, a panel for each task: the mean over the seeds, and their range as a band."""
    rows = json.loads(path.read_text())
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": path.stem}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.2 * len(tasks), 2.6), layout="constrained")
        for panel, task in zip(
            figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True
        ):
            for row in rows:
                if row["task"] == task:
                    curves = np.array(row["curves"])
                    x = row["steps"] / 1000 * (np.arange(BLOCKS) + 1) / BLOCKS
                    (line,) = panel.plot(x, curves.mean(0), label=row["arm"])
                    panel.fill_between(
                        x, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2, lw=0
                    )
            panel.set(title=task, xlabel="thousand steps")
        figure.axes[0].set_ylabel(measure)
        figure.axes[0].legend(fontsize="small")
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def table(path: Path) -> str:
    """A file as a table in Markdown: the mean of the last tenth of a run and its range, and each seed after the run."""
    lines = [
        "| task | agent | steps | last tenth | range | after the run, each seed |",
        "|---|---|---:|---:|---|---|",
    ]
    for row in json.loads(path.read_text()):
        last = np.array(row["curves"])[:, -BLOCKS // 10 :].mean(1)
        numbers = f"{last.mean():.3g} | {last.min():.3g} to {last.max():.3g}"
        seeds = ", ".join(f"{x:.3g}" for x in row["final"])
        lines.append(f"| {row['task']} | {row['arm']} | {row['steps']:,} | {numbers} | {seeds} |")
    return "\n".join(lines)


MEASURES = {"streaming": "return", "ppo": "return", "conditioning": "relative error"}

if __name__ == "__main__":
    for stem, measure in MEASURES.items():
        file = Path(sys.argv[1]) / f"{stem}.json"
        draw(file, measure)
        print(f"{table(file)}\n")
