"""How far back does a streaming agent remember? MemoryChain of 2 to 1,024 steps, one stream, an update at each step.

    python -m examples.rl.chains --json docs/rl/chains.json     # runs what the file lacks, and prints the table
    python -m examples.rl.chains --lengths 128,512 --agents "GRU, TBPTT(1)" --seeds 10 --json docs/rl/chains.json

The agents are those of `examples.rl.streaming`, with 32 features from 16 recurrent trace units (RTU) or from a GRU
of 32 units, and differ in how credit reaches the past:

- exact: D-RTRL, through all of the past of the episode;
- TBPTT(16): backpropagation through the last 16 steps, anew at each step;
- TBPTT(1): the current step alone.

A cell of the table has the mean return of the last tenth of a run, and how many seeds are right after it (mean return
of 100 episodes of best actions above 0.5, where a guess has 0). The file has one record for each length and agent; a
later run adds the records and the seeds that it lacks, and starts a record anew where the steps are others.

Source of the question: Farr, Reddi, D'Eramo and Peters, "Streaming reinforcement learning under partial observability
with real-time recurrent learning", 2026, arXiv 2605.24709, section 4.1, with QRC(lambda) in place of an actor-critic.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

import etpc

from .environments import evaluate, memory_chain
from .runs import BLOCKS, FAST, WINDOW, Arm
from .streaming import UNITS, learner, rtu


class GRU(eqx.Module):
    """A gated recurrent unit that returns its state."""

    cell: eqx.nn.GRUCell

    def __init__(self, inputs: int, key: PRNGKeyArray):
        self.cell = eqx.nn.GRUCell(inputs, 2 * UNITS, key=key)

    def init_state(self) -> Array:
        return jnp.zeros(2 * UNITS)

    def __call__(self, x: Array, h: Array) -> tuple[Array, Array]:
        h = self.cell(x, h)
        return h, h


disc = functools.partial(rtu, r_max=1.0)
slow = functools.partial(rtu, r_min=0.99, r_max=0.9999, max_phase=0.05)
"""Eigenvalues from all of the unit disc, as those of the source, and such as keep a bit for hundreds of steps. Those of
`rtu` have moduli from 0.5 to 0.999 and phases below 0.5."""
AGENTS: dict[str, tuple[Any, Arm]] = {
    "RTU, exact": (rtu, Arm(etpc.D_RTRL(window=1))),
    "RTU, TBPTT(1)": (rtu, Arm(etpc.TBPTT(1))),
    f"RTU, TBPTT({WINDOW})": (rtu, Arm(etpc.TBPTT(WINDOW, every=1))),
    "disc RTU, exact": (disc, Arm(etpc.D_RTRL(window=1))),
    "disc RTU, TBPTT(1)": (disc, Arm(etpc.TBPTT(1))),
    "slow RTU, exact": (slow, Arm(etpc.D_RTRL(window=1))),
    "slow RTU, TBPTT(1)": (slow, Arm(etpc.TBPTT(1))),
    "GRU, TBPTT(1)": (GRU, Arm(etpc.TBPTT(1))),
    f"GRU, TBPTT({WINDOW})": (GRU, Arm(etpc.TBPTT(WINDOW, every=1))),
}
STEPS = {2: 50_000, 8: 50_000, 32: 200_000, 128: 500_000, 512: 500_000, 1024: 500_000}
"""Of the environment, for each length."""


@functools.cache
def runner(agent: str) -> Any:
    """All seeds of an agent at once, compiled once for all lengths and numbers of steps."""
    cell, arm = AGENTS[agent]

    def run(length: Array, steps: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        env = memory_chain(length)._replace(steps=max(STEPS) + 1)
        start, step = learner(env, arm, key, cell)

        def one(_: Array, carry: Any) -> Any:
            state, rewards, ends, key = carry
            key, step_key = jax.random.split(key)
            state, (reward, over) = step(state, step_key)
            return state, rewards + reward, ends + over, key

        def block(carry: Any, _: None) -> Any:
            state, key = carry
            start = state, jnp.zeros(()), jnp.int32(0), key
            state, rewards, ends, key = jax.lax.fori_loop(0, steps // BLOCKS, one, start)
            return (state, key), rewards / jnp.maximum(ends, 1)

        (end, key), curve = jax.lax.scan(block, (start, key), length=BLOCKS)
        actor = end.model.actor
        return curve, evaluate(actor, actor.init_state(), env, end.seen, key)

    return jax.jit(jax.vmap(run, (None, None, 0)))


def trained(length: int, agent: str, steps: int, seeds: range) -> dict[str, Any]:
    """The curve of each seed, and its return after the run."""
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    curves, final = runner(agent)(jnp.int32(length), jnp.int32(steps), keys)
    digits = lambda a: np.round(np.asarray(a, float), 4).tolist()
    return dict(steps=steps, curves=digits(curves), final=digits(final))


def shown(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    last = np.array(record["curves"])[:, -BLOCKS // 10 :].mean()
    right = sum(score > 0.5 for score in record["final"])
    return f"{last:.2f}, {right} of {len(record['final'])}"


def table(found: dict[str, Any]) -> str:
    """What was found, in Markdown: a row for each agent, a column for each length."""
    records = [found.get(str(length), {}) for length in STEPS]
    steps = [{f"{record['steps']:,}" for record in of.values()} for of in records]
    rows = [
        ["chain", *map("{:,}".format, STEPS)],
        ["---", *["---:"] * len(STEPS)],
        ["*steps of a run*", *(", ".join(sorted(each)) or "-" for each in steps)],
        *([name, *(shown(of.get(name)) for of in records)] for name in AGENTS),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="MemoryChain by streaming agents.")
    parser.add_argument("--lengths", default="2" if FAST else ",".join(map(str, STEPS)))
    parser.add_argument(
        "--agents",
        default=";".join([*AGENTS][:: 7 if FAST else 1]),
        help="names, with ; between them",
    )
    parser.add_argument("--seeds", type=int, default=1 if FAST else 5)
    parser.add_argument("--steps", type=int, help="in place of those of the length")
    parser.add_argument(
        "--json", type=Path, help="a file for the records, which a later run adds to"
    )
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for length in map(int, args.lengths.split(",")):
        steps, of = (
            args.steps or (400 if FAST else STEPS[length]),
            found.setdefault(str(length), {}),
        )
        for agent in args.agents.split(";"):
            old = of.get(agent, {})
            old = old if old.get("steps") == steps else dict(curves=[], final=[])
            if (begin := len(old["final"])) >= args.seeds:
                continue
            start = time.perf_counter()
            new = trained(length, agent, steps, range(begin, args.seeds))
            of[agent] = new | {name: old[name] + new[name] for name in ("curves", "final")}
            seconds = time.perf_counter() - start
            print(f"{length:>5}  {agent:<14} {shown(of[agent])}   {seconds:.0f} s", flush=True)
            if args.json:
                args.json.write_text(json.dumps(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
