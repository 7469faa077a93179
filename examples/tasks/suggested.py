"""What `etpc.suggest` says on each task, beside the scores of all rules there.

    python -m examples.tasks.suggested                  # a table; a minute or more for each task
    python -m examples.tasks.suggested --budget 120 --json docs/suggested.json    # the record of docs/choose.md

Each task gives one batch, the initial weights of seed 0 and Adam at the task's rate. The scores are those in
`docs/tasks/`, of full trainings with a rate for each rule and windows of the task's own length.
"""

import argparse
import importlib
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import etpc

from .arms import FAST, Task, default_arms, load

TASKS = (
    *("copying", "dms", "memory_chain", "evidence", "conductance", "sequential_digits"),
    *("sequential_digits_lru", "event_camera", "japanese_vowels", "characters"),
)
LEVEL = 8
"""Of the curriculum of copying: strings of up to so many bits."""

SCORES = Path(__file__).parents[2] / "docs" / "tasks"


def task_of(name: str) -> Task | None:
    """The task of a module; `None` where its data is not installed."""
    module = importlib.import_module(f"examples.tasks.{name}")
    if name == "characters":
        return module.make_task(module.read())
    return module.TASK if hasattr(module, "TASK") else module.make_task()


def suggestion(task: Task, budget: float) -> etpc.Suggestion:
    """The suggestion for a batch of a task."""
    model_key, data_key = jax.random.split(jax.random.key(0))
    model = task.make_model(model_key)
    level = [jnp.asarray(LEVEL if task.curriculum else 0)]
    more = level if task.curriculum or task.stream else []
    xs, targets, mask = jax.jit(task.batch)(data_key, *more)
    return etpc.suggest(
        *(model, xs, targets, task.loss_fn),
        optimiser=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(task.rate)),
        every=task.every,
        batch_size=jax.tree.leaves(xs)[0].shape[1],
        mask=mask,
        budget=budget,
    )


def arm_of(task: Task, rule: Any) -> str:
    """The arm of a task that is the same rule, with windows and look-back of the task's length; of truncations the one
    of about as many steps."""
    if rule == etpc.RTRL(window=rule.window):
        return "exact gradient" if task.every else "BPTT"
    kind = lambda rule: (
        type(rule),
        getattr(rule, "main", None),
        rule.backprop,
        bool(rule.lookback),
    )
    if isinstance(rule, etpc.TBPTT) and rule.steps > 1:
        truncated = {
            a.rule.steps: a.name
            for a in default_arms(task)
            if isinstance(a.rule, etpc.TBPTT) and a.name == str(a.rule)
        }
        return truncated[min(truncated, key=lambda steps: abs(steps - rule.steps))]
    return next(a.name for a in default_arms(task) if a.rule and kind(a.rule) == kind(rule))


def compared(task: Task, name: str, rule: Any) -> dict[str, Any]:
    """The scores of the rule, of BPTT, and of the best rule that was run on the task."""
    scores: dict[str, list[float]] = {}
    for row in load(SCORES / f"{name}.json"):
        scores.setdefault(row.arm, []).append(row.score)
    sign = -1 if "bits" in task.unit else 1
    rules = [arm for arm in scores if arm not in ("BPTT", "exact gradient")]
    best = max(rules, key=lambda arm: sign * statistics.fmean(scores[arm]))
    suggested = None if rule is None else arm_of(task, rule)
    arms = {"suggested": suggested, "best": best, "BPTT": "BPTT"}
    return {
        column: [arm, scores.get(arm or "", [])] for column, arm in arms.items() if arm is not None
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What etpc.suggest says on each task.")
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for each task")
    parser.add_argument("--json", type=Path, help="write what was found here, task by task")
    args = parser.parse_args()
    found = {}
    for name in args.tasks[:1] if FAST else args.tasks:
        if (task := task_of(name)) is None:
            print(f"{name}: its data is not installed")
            continue
        advice = suggestion(task, 1.0 if FAST else args.budget)
        columns = compared(task, name, advice.rule)
        found[name] = {"rule": str(advice.rule), "reasons": advice.reasons, "scores": columns}
        print(f"\n## {task.name}\n\n{advice}\n")
        for column, (arm, scores) in columns.items():
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            mean = statistics.fmean(scores) if scores else float("nan")
            print(f"{column:10} {arm:30} {mean:.3f} +- {spread:.3f} ({len(scores)} seeds)")
        if args.json:
            args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
