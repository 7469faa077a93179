"""What the examples of reinforcement learning share: how credit reaches the past, and a table of runs."""

import argparse
import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

import etpc

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few steps, to see that it runs
BLOCKS = 20  # of a curve
WINDOW = 16


class Arm(NamedTuple):
    """How credit reaches the past."""

    rule: etpc.algorithms.Algorithm
    remembers: bool = True
    """Whether the state goes on from step to step."""


class Task(NamedTuple):
    env: Any
    steps: int


def main(
    description: str,
    life: Callable[..., tuple[Array, Array]],
    tasks: Mapping[str, Task],
    arms: Mapping[str, Arm],
) -> None:
    """Run each arm on each task, all seeds at once.

    `life(env, arm, steps, key)` gives a number for each of 20 parts of a run, and one for after it.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tasks", default=",".join(tasks))
    parser.add_argument("--arms", default=",".join(arms))
    parser.add_argument("--seeds", type=int, default=1 if FAST else 5)
    parser.add_argument("--steps", type=int, help="in place of those of the task")
    parser.add_argument("--json", help="a file for the curves")
    args = parser.parse_args()
    print(
        f"{description}: the mean of {args.seeds} seeds in {BLOCKS} parts of a run; then each seed\n"
    )
    rows: list[dict[str, Any]] = []
    for task in args.tasks.split(","):
        env, steps = tasks[task]
        steps = args.steps or (10_000 if FAST else steps)
        for name in args.arms.split(","):
            start = time.perf_counter()
            one = functools.partial(life, env, arms[name], steps)
            keys = jax.vmap(jax.random.key)(jnp.arange(args.seeds))
            curves, final = jax.jit(jax.vmap(one))(keys)
            shown = " ".join(f"{x:.3g}" for x in curves.mean(0))
            last = " ".join(f"{x:.3g}" for x in final)
            seconds = time.perf_counter() - start
            print(f"{task:<9} {name:<13} {shown}   then {last}   {seconds:.0f} s", flush=True)
            row = dict(task=task, arm=name, steps=steps)
            rows.append(row | dict(curves=curves.tolist(), final=final.tolist()))
            if args.json:
                Path(args.json).write_text(json.dumps(rows))
