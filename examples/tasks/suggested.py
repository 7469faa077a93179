"""What `etpc.suggest` says on each task, beside the scores of all rules there.

    python -m examples.tasks.suggested                  # a table; two minutes and more for each task
    python -m examples.tasks.suggested --json docs/suggested.json --page docs/tasks/suggested.md

Each task gives batches, the initial weights of seed 0, Adam at the task's rate and its number of updates. Then the
suggested rule trains in full with ten seeds, at the best of the rates of the task's arms and at the suggested one, and
so does the best of all rules. The scores of other rules are those in `docs/tasks/`, of full trainings with a rate for
each rule and windows of the task's own length. Tasks that the file of `--json` has are not asked about again, and get
the scores that are in `docs/tasks/` now.
"""

import argparse
import importlib
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import etpc

from .arms import (
    FAST,
    Arm,
    Learner,
    Task,
    default_arms,
    evaluator,
    fast,
    load,
    measured,
    trained,
    tuned,
)

TASKS = (
    *("copying", "dms", "memory_chain", "evidence", "conductance", "sequential_digits"),
    *("sequential_digits_lru", "event_camera", "japanese_vowels", "characters"),
)
NEW = ("recall", "delayed_xor", "adding", "cue_alif", "tmaze_encoder")
"""Tasks on which no part of the ranking was tried before it was measured."""

TUNING = 5
"""So many seeds choose the rate of a rule that is trained in full here."""

LEVEL = 8
"""Of the curriculum of copying: strings of up to so many bits."""

SCORES = Path(__file__).parents[2] / "docs" / "tasks"


def task_of(name: str) -> Task | None:
    """The task of a module; `None` where its data is not installed."""
    module = importlib.import_module(f"examples.tasks.{name}")
    if name == "characters":
        return module.make_task(module.read())
    return module.TASK if hasattr(module, "TASK") else module.make_task()


def right(y: Any, target: Any) -> Any:
    """Whether the answer of a step is right: of an output for each class, or of one for yes or no."""
    return (y.argmax() == target) if y.ndim else ((y > 0) == (target > 0.5))


def suggestion(task: Task, budget: float) -> etpc.Suggestion:
    """The suggestion for a task, on batches that go on, or on those of its data set."""
    model_key, _ = jax.random.split(jax.random.key(0))

    @jax.jit
    def draw(key: Any) -> Any:
        return task.batch(key, *([jnp.asarray(LEVEL)] if task.curriculum else []))

    answers = task.unit == "accuracy" or task.curriculum is not None
    return etpc.suggest(
        *(task.make_model(model_key), task.fixed() if task.fixed else draw, task.loss_fn),
        score=right if answers else None,
        optimiser=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(task.rate)),
        every=task.every,
        batch_size=task.batch_size,
        updates=task.updates,
        budget=budget,
    )


def fully_trained(
    task: Task, arm: Arm, seeds: int, kept: float = 1.0, tuning: int = TUNING
) -> tuple[list[float], list[float]]:
    """The scores of a rule at the best rate of the grid, by seeds of its own; and at one relative to the task's."""
    learner = Learner(task, arm)
    measure = measured(learner, None if task.curriculum else evaluator(task))
    chunk = max(1, task.updates // task.points)

    def scores(rate: float) -> list[float]:
        runs = (trained(learner, seed, rate, measure, chunk) for seed in range(seeds))
        return [statistics.fmean(run.curve[-task.last :]) for run in runs]

    best = tuned(learner, measure, chunk, tuning)
    found = {rate: scores(rate) for rate in {kept * task.rate, best}}
    return found[best], found[kept * task.rate]


def columns(name: str, task: Task, row: Any, seeds: int, tuning: int = TUNING) -> dict[str, Any]:
    """The scores of what is suggested, a rule and a rate; and of the rule that is the best in the task's own table, the
    better ones of those there and of those at the rate that several seeds choose."""
    own, kept = fully_trained(task, Arm(row.name, row.rule), seeds, row.rate, tuning)
    scores = scores_of(name)
    best = best_of(scores, task.unit)
    arm = next(arm for arm in default_arms(task) if arm.name == best)
    again, _ = fully_trained(task, arm, seeds, tuning=tuning)
    scores = better(task.unit)(scores[best], again, key=statistics.fmean)
    return {"suggested": [row.name, own], "kept": [row.rate, kept], "best": [best, scores]}


def scores_of(name: str) -> dict[str, list[float]]:
    """The scores of full trainings by arm, as `python -m examples.tasks.NAME --json` wrote them."""
    scores = dict[str, list[float]]()
    for row in load(SCORES / f"{name}.json"):
        scores.setdefault(row.arm, []).append(row.score)
    return scores


def better(unit: str) -> Any:
    """`min` where less is better, else `max`."""
    return min if "bits" in unit else max


def best_of(scores: Mapping[str, list[float]], unit: str) -> str:
    """The arm with the best score of all rules."""
    rules = [arm for arm in scores if arm not in ("BPTT", "exact gradient")]
    return better(unit)(rules, key=lambda arm: statistics.fmean(scores[arm]))


def brought_up_to_date(name: str, record: dict[str, Any]) -> None:
    """The record of a task with the scores of its own table as they are now."""
    scores, columns = scores_of(name), record["scores"]
    columns |= {"BPTT": ["BPTT", scores["BPTT"]]}
    within = lambda kind: is_within(columns, kind, better(record["unit"]) is min)
    record |= {"all": scores, "within": within("suggested"), "within_kept": within("kept")}


def spread(scores: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    mean = statistics.fmean(scores) if scores else float("nan")
    return mean, statistics.stdev(scores) if len(scores) > 1 else 0.0


def shown(scores: list[float]) -> str:
    return " ± ".join(f"{value:.3f}" for value in spread(scores))


def is_within(columns: Mapping[str, Any], name: str, less_is_better: bool) -> bool:
    """Whether one column scores within the seeds of the best: by no more than both standard deviations less."""
    if not columns[name][1]:
        return False
    (mean, off), (best, best_off) = (spread(columns[column][1]) for column in (name, "best"))
    return (mean - best if less_is_better else best - mean) <= off + best_off


def asked(task: Task, budget: float) -> tuple[dict[str, Any], etpc.Candidate | None]:
    """What is found on a task, as it is written to the file; and the row of the rule that is suggested."""
    advice = suggestion(task, budget)
    print(f"\n## {task.name}\n\n{advice}\n", flush=True)
    record = {
        "task": task.name,
        "unit": task.unit,
        "rule": str(advice.rule),
        "decided": advice.decided,
        "budget": budget,
        "reasons": advice.reasons,
        "text": str(advice),
        "scores": {"suggested": ["no rule", []], "kept": [None, []], "best": ["", []]},
    }
    return record, next((row for row in advice.rows[1:] if row.rule == advice.rule), None)


def table(found: Mapping[str, Any]) -> str:
    """A Markdown table with a line for each task."""
    heads = ("task", "within", "suggested", "its score", "at the suggested rate")
    heads += ("best of all rules", "its score", "BPTT")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---:|---:|---|---:|---:|"]
    yes = {True: "yes", False: "**no**"}
    for one in found.values():
        own, kept, best, bptt = (one["scores"][n] for n in ("suggested", "kept", "best", "BPTT"))
        decided = "" if one["decided"] else " (not decided)"
        within = [one["within"], one["within_kept"]]
        cells = [one["task"], ", ".join(yes[w] for w in dict.fromkeys(within))]
        cells += [own[0] + decided, shown(own[1])]
        cells += ["" if kept[0] is None else f"{shown(kept[1])} (x {kept[0]:.2g})"]
        cells += [best[0], shown(best[1]), shown(bptt[1])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


ABOUT = """\
# What `etpc.suggest` suggests on tasks

This page is generated by `python -m examples.tasks.suggested`; how to read it is on
[Which rule, which window, which rank?](../choose.md). Scores are of full trainings: mean and standard deviation over
seeds. `suggest` is told for how many updates the task trains. The suggested rule trains with ten seeds, at the best of
three rates, which five other seeds choose; and once more at the rate that was suggested. The best of all rules is that
of the task's own table below, where one seed chooses each rate; it trains once more at the rate that five seeds choose,
and has the better scores of both. The suggested rule is within the seeds if it is behind by no more than both
deviations."""


def page(found: Mapping[str, Any]) -> str:
    """The page of the documentation: the table, and for each task all scores and what was printed."""
    count, kept = (sum(one[key] for one in found.values()) for key in ("within", "within_kept"))
    parts = [
        ABOUT,
        f"On {count} of {len(found)} tasks the suggested rule is within the seeds; on {kept} at the suggested rate.",
        table(found),
    ]
    for one in found.values():
        rows = [
            f"| {arm} | {' ± '.join(f'{v:.3f}' for v in spread(s))} | {len(s)} |"
            for arm, s in one["all"].items()
        ]
        scores = "\n".join([f"| rule | {one['unit']} | seeds |", "|---|---:|---:|", *rows])
        parts += [f"## {one['task']}", f"```text\n{one['text']}\n```", scores]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="What etpc.suggest says on each task.")
    parser.add_argument("tasks", nargs="*", default=[*TASKS, *NEW])
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for each task")
    parser.add_argument("--seeds", type=int, default=10, help="of the trainings in full")
    parser.add_argument("--json", type=Path, help="write what was found here, task by task")
    parser.add_argument("--page", type=Path, help="write the page of the documentation here")
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name in [args.tasks[0], args.tasks[-1]] if FAST else args.tasks:
        if name in found:
            continue
        if (task := task_of(name)) is None:
            print(f"{name}: its data is not installed")
            continue
        task = fast(task) if FAST else task
        found[name], row = asked(task, 1.0 if FAST else args.budget)
        if row is not None and row.rule is not None:
            found[name]["scores"] = columns(name, task, row, *((1, 1) if FAST else [args.seeds]))
        if args.json:
            args.json.write_text(json.dumps(found, indent=1))
    for name, record in found.items():
        brought_up_to_date(name, record)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    print(table(found))
    if args.page:
        args.page.write_text(page(found))


if __name__ == "__main__":
    main()
