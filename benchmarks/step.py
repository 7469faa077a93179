"""How long does a step take that learns, against the same rule by hand?

One stream, or a batch of them, whose weights move at every step: `etpc.online(every=1)` against the rules of
`benchmarks.by_hand`, with the same weights, inputs and gradient descent, in one process and in turns. A call
takes T steps in one go. Times are microseconds for a step, with the update; bytes are the traces'.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

import etpc
from benchmarks import measure
from benchmarks.by_hand import CELLS, Cell, loss
from benchmarks.table import Column, Table, mebibytes, ratio
from etpc.algorithms import Algorithm

RATE = 1e-4
N_IN, N_OUT = 40, 2

TABLE = Table(
    "How long does a step take that learns?",
    [
        Column("cell", "cell"),
        Column("batch", "B", "d"),
        Column("hand_us", "by hand\nus", ".1f"),
        Column("etpc_us", "etpc\nus", ".1f"),
        Column("to_hand", "etpc to\nby hand", ratio),
        Column("rank_us", "rank 4\nus", ".1f"),
        Column("decay_us", "decay\nus", ".1f"),
        Column("tbptt_us", "TBPTT(1)\nus", ".1f"),
        Column("hand_bytes", "traces by\nhand MiB", mebibytes),
        Column("etpc_bytes", "traces\nMiB", mebibytes),
        Column("error", "error", ".1g"),
    ],
    [
        "us: microseconds for a step with its update, the least of all repeats.",
        "error: of the change of all weights over the steps of a call, D-RTRL against the rule by hand.",
    ],
)
RULES: Mapping[str, Algorithm] = {
    "etpc": etpc.D_RTRL(),
    "rank": etpc.ES_D_RTRL(rank=4),
    "decay": etpc.ES_D_RTRL(decay=0.9),
    "tbptt": etpc.TBPTT(1),
}

Call = Callable[[], Any]


def run(
    console: Console,
    sizes: Sequence[int],
    steps: int,
    batches: Sequence[int],
    repeats: int,
    only: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """A row for each cell, size and batch."""
    rows = []
    for size in sizes:
        size_rows = []
        for cell in CELLS:
            if only is not None and cell.name not in only:
                continue
            for batch in batches:
                row = {"cell": cell.name, "size": size, "steps": steps, "batch": batch}
                size_rows.append(row | compared(cell, size, steps, batch, repeats))
        TABLE.show(console, size_rows, f"N={size} T={steps}, {N_IN} inputs")
        rows += size_rows
    return rows


def compared(
    cell: Cell,
    size: int,
    steps: int,
    batch: int,
    repeats: int,
    rules: Mapping[str, Algorithm] = RULES,
) -> dict[str, Any]:
    """The times of one cell by hand and by programs, and how far their weights are apart."""
    keys = jax.random.split(jax.random.key(0), 3)
    weights = cell.weights(keys[0], N_IN, size, N_OUT)
    xs = jax.random.normal(keys[1], (steps, batch, N_IN))
    targets = jax.random.normal(keys[2], (steps, batch, N_OUT))
    hand = by_hand(cell, weights, size, xs, targets)
    calls: dict[str, Call] = {"hand": hand}
    sizes = {"hand_bytes": size_of(cell.traces(weights, size, batch))}
    for name, rule in rules.items():
        program = etpc.compile(
            weights, rule, inputs=xs[0, 0], state=cell.state(size), step=cell.step
        )
        learner = etpc.online(program, loss, optax.sgd(RATE), every=1)
        opt_state, carry = learner.init(weights, batch)
        if name == "etpc":
            sizes["etpc_bytes"] = size_of(carry.traces)
        calls[name] = lambda learner=learner, o=opt_state, c=carry: learner.update(
            weights, o, c, xs, targets
        )
    want, got = hand()[0], calls["etpc"]()[0]
    for call in calls.values():
        jax.block_until_ready(call())
    times = measure.interleaved(list(calls.values()), repeats)
    per_step = {
        f"{name}_us": 1e3 * t["min_ms"] / steps for name, t in zip(calls, times, strict=True)
    }
    change = lambda after: jnp.concatenate([jnp.ravel(after[n] - weights[n]) for n in weights])
    error = jnp.linalg.norm(change(got) - change(want)) / jnp.linalg.norm(change(want))
    to_hand = per_step["etpc_us"] / per_step["hand_us"]
    return per_step | sizes | {"to_hand": to_hand, "error": float(error)}


def by_hand(cell: Cell, weights: Any, size: int, xs: jax.Array, targets: jax.Array) -> Call:
    """T steps of the rule by hand, each with its update."""
    batch, run = xs.shape[1], jax.jit(updates(cell))
    state = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape)), cell.state(size))
    traces = cell.traces(weights, size, batch)
    return lambda: run(weights, state, traces, xs, targets)


def updates(cell: Cell) -> Callable[..., Any]:
    """The rule of a cell by hand, with gradient descent at each step: a function of weights, state, traces, inputs and
    targets."""

    def run(weights: Any, state: Any, traces: Any, xs: jax.Array, targets: jax.Array) -> Any:
        def one(carry: Any, data: Any) -> Any:
            weights, state, traces = carry
            grads, state, traces, error = cell.learn(weights, state, traces, *data)
            weights = {name: w - RATE * grads[name] for name, w in weights.items()}
            return (weights, state, traces), error

        carry, losses = jax.lax.scan(one, (weights, state, traces), (xs, targets))
        return (*carry, losses)

    return run


def size_of(traces: Any) -> int:
    """Bytes of all arrays."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(traces))
