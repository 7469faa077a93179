"""What `etpc.suggest` says on each task, beside the scores of all rules there.

    python -m examples.tasks.suggested                  # a table; many minutes for each task
    python -m examples.tasks.suggested --json docs/suggested.json --page docs/tasks/suggested.md
    python -m examples.tasks.suggested --budgets 120 --json docs/suggested.json --ask

Each task gives batches, the initial weights of seed 0, Adam at the task's rate and its number of updates. `suggest` is
asked within each of the budgets, where it goes on from the one before. Then the suggested rule trains in full with ten
seeds, at the suggested rate, and if it is behind there, at the best of three rates too; so does the best of all rules.
The scores of other rules are those in `docs/tasks/`, of full trainings with a rate for each rule and windows of the
task's own length. What the file of `--json` has is not asked or trained again. With `--ask` nothing is trained: only
what is asked needs a machine without other work.
"""

import argparse
import ast
import importlib
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
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
    fast,
    load,
    prepared,
    trained,
    tuned,
)

TASKS = (
    *("copying", "dms", "memory_chain", "evidence", "conductance", "sequential_digits"),
    *("sequential_digits_lru", "event_camera", "japanese_vowels", "characters"),
)
NEW = ("recall", "delayed_xor", "adding", "cue_alif", "tmaze_encoder")
"""Tasks on which no part of the ranking was tried before it was measured."""

LATER = ("ordered_bursts", "flip_flop", "interval", "parity", "store_recall", "waves")
"""Tasks that were written after the ranking."""

ALL = (*TASKS, *NEW, *LATER)

BUDGETS = (120, 600)
"""Seconds for each task."""

TUNING = 5
"""So many seeds choose the rate of a rule that is trained in full here."""

LEVEL = 8
"""Of the curriculum of copying: strings of up to so many bits."""

RMS = ", RMSprop"

SCORES = Path(__file__).parents[2] / "docs" / "tasks"


def task_of(name: str) -> Task | None:
    """The task of a module; `None` where its data is not installed."""
    module = importlib.import_module(f"examples.tasks.{name}")
    if name == "characters":
        return module.make_task(module.read())
    return module.TASK if hasattr(module, "TASK") else module.make_task()


def right(y: Any, target: Any) -> Any:
    """Whether the answer of a step is right, of an output for each class; or for how many outputs it is, each of which
    answers yes or no."""
    is_class = y.ndim > target.ndim
    return (y.argmax() == target) if is_class else ((y > 0) == (target > 0.5)).mean()


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
        optimiser=task.optimiser(task.rate),
        every=task.every,
        batch_size=task.batch_size,
        updates=task.updates,
        budget=budget,
    )


def scores_at(learner: Learner, measure: Any, chunk: int, seeds: int, rate: float) -> list[float]:
    """The scores of full trainings, one for each seed."""
    runs = (trained(learner, seed, rate, measure, chunk) for seed in range(seeds))
    return [statistics.fmean(run.curve[-learner.task.last :]) for run in runs]


def arm_of(name: str) -> Arm:
    """The arm of a rule by the name that it has in a suggestion."""
    text, rms, _ = name.partition(RMS)
    call: Any = ast.parse(text, mode="eval").body
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    rule = getattr(etpc, call.func.id)(*map(ast.literal_eval, call.args), **named)
    return Arm(name, rule, partial(optax.rmsprop, decay=0.9) if rms else optax.adam)


def tuned_scores(task: Task, arm: Arm, seeds: int, tuning: int = TUNING) -> list[float]:
    """The scores of a rule at the rate of the grid that seeds of its own choose."""
    learner, measure, chunk = prepared(task, arm)
    return scores_at(learner, measure, chunk, seeds, tuned(learner, measure, chunk, tuning))


def columns(
    name: str, task: Task, record: Any, done: dict[str, list[float]], seeds: int, tuning: int
) -> dict[str, Any]:
    """The scores of what is suggested, a rule and a rate; of that rule at its best rate, where it is behind at that
    one; and of the rule that is the best in the task's own table, the better ones of those there and of those at the
    rate that several seeds choose. Trainings are added to `done`."""

    def found(key: str, train: Any) -> list[float]:
        if key not in done:
            done[key] = train()
        return done[key]

    rule, rate = record["rule"], record["rate"]
    scores = scores_of(name)
    best = best_of(scores, task.unit)
    other = next(arm for arm in default_arms(task) if arm.name == best)
    again = found(f"{best}, tuned", lambda: tuned_scores(task, other, seeds, tuning))
    both = [again, *[scores[best]] * (len(scores[best]) >= seeds)]
    cells: dict[str, Any] = {"best": [best, better(task.unit)(both, key=statistics.fmean)]}
    if rate is None:
        return cells | {"suggested": [rule, []], "kept": [None, []]}

    def at_this_rate() -> list[float]:
        return scores_at(*prepared(task, arm_of(rule)), seeds, rate * task.rate)

    own = kept = found(f"{rule}, x {rate:.2g}", at_this_rate)
    cells |= {"kept": [rate, kept]}
    if not is_within(kept, cells["best"][1], task.unit):
        own = found(f"{rule}, tuned", lambda: tuned_scores(task, arm_of(rule), seeds, tuning))
    return cells | {"suggested": [rule, own]}


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
    within = lambda kind: is_within(columns[kind][1], columns["best"][1], record["unit"])
    record |= {"within": within("suggested"), "within_kept": within("kept")}


def spread(scores: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    mean = statistics.fmean(scores) if scores else float("nan")
    return mean, statistics.stdev(scores) if len(scores) > 1 else 0.0


def shown(scores: list[float]) -> str:
    return " ± ".join(f"{value:.3f}" for value in spread(scores))


def is_within(scores: list[float], best: list[float], unit: str) -> bool:
    """Whether scores are within the seeds of the best: behind by no more than both standard deviations."""
    if not scores:
        return False
    (mean, off), (top, top_off) = spread(scores), spread(best)
    return (mean - top if better(unit) is min else top - mean) <= off + top_off


def asked(task: Task, advice: etpc.Suggestion) -> dict[str, Any]:
    """What is found on a task, as it is written to the file: the rule and its rate relative to the task's."""
    name = advice.headline.partition(" at ")[0]
    row = next((row for row in advice.rows[1:] if row.name == name), None)
    rate = row.rate if row else None
    if rate and name.endswith(RMS):
        rate *= advice.advice.rms_rate / task.rate
    return {
        "task": task.name,
        "unit": task.unit,
        "rule": name,
        "rate": rate,
        "decided": advice.decided,
        "text": str(advice),
        "scores": {"suggested": [name, []], "kept": [rate, []], "best": ["", []]},
    }


def scored(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of tasks whose rules were trained in full."""
    return [one for one in found.values() if one["scores"]["best"][1]]


def table(found: Mapping[str, Any]) -> str:
    """A Markdown table with a line for each task."""
    heads = ("task", "within", "suggested", "at its best rate", "at the suggested rate")
    heads += ("best of all rules", "its score", "BPTT")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---:|---:|---|---:|---:|"]
    yes = {True: "yes", False: "**no**"}
    for one in scored(found):
        own, kept, best, bptt = (one["scores"][n] for n in ("suggested", "kept", "best", "BPTT"))
        decided = " (decided)" if one["decided"] else ""
        within = [one["within"], one["within_kept"]]
        cells = [one["task"], ", ".join(yes[w] for w in dict.fromkeys(within))]
        cells += [own[0] + decided, shown(own[1]) if own[1] != kept[1] else ""]
        cells += ["" if kept[0] is None else f"{shown(kept[1])} (x {kept[0]:.2g})"]
        cells += [best[0], shown(best[1]), shown(bptt[1])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


ABOUT = """\
# What `etpc.suggest` suggests on tasks

This page is generated by `python -m examples.tasks.suggested`; how to read it is on
[Which rule, which window, which rank?](../choose.md). Scores are of full trainings: mean and standard deviation over
ten seeds. `suggest` is told for how many updates the task trains. The suggested rule trains at the suggested rate; if
it is behind there, also at the best of three rates, which five other seeds choose. The best of all rules is that
of the task's own table, where one seed chooses each rate; it trains once more at the rate that five seeds choose,
and has the better scores of both. The suggested rule is within the seeds if it is behind by no more than both
deviations; two answers are for the rule at its best rate and at the suggested one."""


def summary(found: Mapping[str, Any]) -> str:
    """On how many tasks the advice is right."""
    done = scored(found)
    count, kept = (sum(one[key] for one in done) for key in ("within", "within_kept"))
    decided = [one["within_kept"] for one in done if one["decided"]]
    text = (
        f"On {kept} of {len(done)} tasks the suggested rule is within the seeds at the suggested rate; on {count} at "
        f"its best rate. Decided are {len(decided)}, of which {sum(decided)} are within the seeds."
    )
    left = [one["task"] for one in found.values() if one not in done]
    return text + f" Asked, and not trained in full: {', '.join(left)}." * bool(left)


def page(found: Mapping[str, Any]) -> str:
    """The page of the documentation: for each budget the table, and for each task what was printed."""
    parts = [ABOUT]
    for budget, tasks in found.items():
        parts += [f"## {budget} seconds", summary(tasks), table(tasks)]
    for budget, tasks in found.items():
        for one in tasks.values():
            parts += [f"### {one['task']}, {budget} seconds", f"```text\n{one['text']}\n```"]
    return "\n\n".join(parts) + "\n"


def ask(name: str, task: Task, found: dict[str, Any], budgets: Sequence[int]) -> None:
    """Ask about a task within each of the budgets, where that was not done."""
    advice, spent = None, 0
    for budget in budgets:
        if name in found[f"{budget}"]:
            continue
        advice = suggestion(task, budget) if advice is None else advice.go_on(budget - spent)
        spent = budget
        print(f"\n## {task.name}, {budget} seconds\n\n{advice}\n", flush=True)
        found[f"{budget}"][name] = asked(task, advice)


def main() -> None:
    parser = argparse.ArgumentParser(description="What etpc.suggest says on each task.")
    parser.add_argument("tasks", nargs="*", default=ALL)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="seconds")
    parser.add_argument("--ask", action="store_true", help="train nothing in full")
    parser.add_argument("--seeds", type=int, default=10, help="of the trainings in full")
    parser.add_argument("--json", type=Path, help="write what was found here, task by task")
    parser.add_argument("--page", type=Path, help="write the page of the documentation here")
    args = parser.parse_args()
    file = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    budgets = [1] if FAST else args.budgets
    found, done = file.setdefault("asked", {}), file.setdefault("trained", {})
    for budget in budgets:
        found.setdefault(f"{budget}", {})
    for name in [args.tasks[0], args.tasks[-1]] if FAST else args.tasks:
        if (task := task_of(name)) is None:
            print(f"{name}: its data is not installed")
            continue
        task = fast(task) if FAST else task
        ask(name, task, found, budgets)
        for record in (
            [] if args.ask else [tasks[name] for tasks in found.values() if name in tasks]
        ):
            sizes = (1, 1) if FAST else (args.seeds, TUNING)
            record["scores"] = columns(name, task, record, done.setdefault(name, {}), *sizes)
        if args.json:
            args.json.write_text(json.dumps(file, indent=1))
    for tasks in found.values():
        for name, record in tasks.items():
            if not args.ask:
                brought_up_to_date(name, record)
    if args.json:
        args.json.write_text(json.dumps(file, indent=1))
    if not args.ask:
        print("\n\n".join(map(table, found.values())))
    if args.page:
        args.page.write_text(page(found))


if __name__ == "__main__":
    main()
