"""No credit through time at all: what the gradient of the current step learns, at its best optimiser.

    python -m examples.tasks.no_credit                    # a table; a minute and more for each task
    python -m examples.tasks.no_credit recall copying --json docs/no_credit.json

The claim is that of Merin ("Temporal credit is free", arXiv 2603.28750): the derivative of the current step is enough
for an optimiser that scales each weight's gradient by its latest sizes. Adam (beta2 = .999), Adam with beta2 = .9 and
RMSprop (decay .9) each train at three rates; seed 100 chooses the optimiser and the rate, by the loss at the end of
training, and other seeds give the scores. Beside them are the recorded scores of BPTT and D-RTRL.
It *holds* where it is behind BPTT by no more than both standard deviations. A task that the file of `--json` has
gets the seeds that it lacks.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import optax

import etpc

from .arms import FAST, Arm, Task, best_rate, fast, prepared, trained
from .suggested import NEW, TASKS, is_within, scores_of, shown, task_of

OPTIMISERS = {
    "Adam": optax.adam,
    "Adam, b2 = .9": partial(optax.adam, b2=0.9),
    "RMSprop": optax.rmsprop,
}


def scores(task: Task, seeds: int, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """The optimiser and rate with the least loss, and the scores of that; of what is known, those of further seeds."""
    found = []
    for name, optimiser in OPTIMISERS.items():
        if known and known["by"] != name:
            continue
        learner, measure, chunk = prepared(task, Arm(name, etpc.TBPTT(1), optimiser))
        run = partial(trained, learner, measure=measure, chunk=chunk)
        best = ((0.0, 0.0), known["rate"]) if known else best_rate(learner, measure, chunk)
        found.append((*best, name, run))
    _, rate, name, run = min(found, key=lambda one: one[0])
    values = known["scores"] if known else []
    runs = [run(seed, rate) for seed in range(len(values), seeds)]
    values = values + [statistics.fmean(end.curve[-task.last :]) for end in runs]
    return {"unit": task.unit, "chance": task.chance, "by": name, "rate": rate, "scores": values}


def table(found: dict[str, Any]) -> str:
    heads = ("task", "chance", "no credit", "optimiser", "seeds", "BPTT", "D-RTRL", "holds")
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---|---:|---:|---:|---|"]
    for name, one in found.items():
        known, mine = scores_of(name), one["scores"]
        by = f"{one['by']} at {one['rate']:.2g}"
        yes = "yes" if is_within(mine, known["BPTT"], one["unit"]) else "no"
        cells = [f"{name} ({one['unit']})", f"{one['chance']:.3g}", shown(mine), by, str(len(mine))]
        cells += [shown(known["BPTT"]), shown(known["D-RTRL"]), yes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What no credit through time learns.")
    parser.add_argument("tasks", nargs="*", default=[*NEW, *TASKS])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write what was found here, task by task")
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name in args.tasks[:1] if FAST else args.tasks:
        seeds, known = 2 if FAST else args.seeds, found.get(name)
        if (known and len(known["scores"]) >= seeds) or (task := task_of(name)) is None:
            continue
        found[name] = scores(fast(task) if FAST else task, seeds, known)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
