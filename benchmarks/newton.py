"""Windows that are solved in parallel: how many Newton iterations do their states take, and when is that slower?

The states of a window solve `h_t = f(x_t, h_{t-1})`. Newton's method begins with the state before the window at each
step; an iteration is a recurrence that is linear in the states, and where the derivative of f is diagonal,
`jax.lax.associative_scan` solves it in log2 W levels. Iterations are counted until no state is further from those of a
loop over steps than the tolerance, on a stream of noise that has run for a while. Cycles are those of XLA for a v5e
that is not there (`make accelerators` makes the environment), relative to the loop; more than 1 is slower.

    python -m benchmarks.newton

Sources: Lim et al., "Parallelizing non-linear sequential models over the sequence length", ICLR 2024, arXiv 2309.12252;
Danieli et al., "ParaRNN", ICLR 2026, arXiv 2510.21450.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from rich.console import Console

from benchmarks.table import Column, Table, ratio
from etpc.estimating import compiled
from etpc.estimating.chips import place

TOLERANCE, BEFORE, MOST = 1e-5, 500, 64
"""Largest error of a state; steps before the window; iterations that are tried."""
N, WINDOWS, BATCHES = 128, (50, 200, 1000), (1, 32)
Step = Callable[[Array, Array], Array]

TABLE = Table(
    "How many Newton iterations does a window take?",
    [
        Column("cell", "cell"),
        Column("window", "W"),
        Column("iterations", "iterations", str),
        *(Column(f"to_loop {batch}", f"to the loop,\nB={batch}", ratio) for batch in BATCHES),
    ],
    [
        f"N = {N}, float32, states to {TOLERANCE:g}. Cycles of a v5e, all iterations of the forward pass alone."
    ],
)


class Cell(NamedTuple):
    """A step of one example whose state of each unit reads its own past alone, driven by arrays of k x N."""

    step: Step
    drives: int


def _gated(drive: Array, h: Array) -> Array:
    z, r, n = drive
    z, r = jax.nn.sigmoid(z + 0.5 * h), jax.nn.sigmoid(r + 0.5 * h)
    return z * h + (1 - z) * jnp.tanh(n + r * h)


def _lif(drive: Array, v: Array) -> Array:
    """With a reset by subtraction; the derivative leaves the spike out, as Newton's method needs that of the step."""
    return 0.9 * (v - (v > 1)) + drive[0]


CELLS = {
    "leak, h' = .9 h + x": Cell(lambda drive, h: 0.9 * h + drive[0], 1),
    "tanh, h' = tanh(.9 h + x)": Cell(lambda drive, h: jnp.tanh(0.9 * h + drive[0]), 1),
    "tanh, h' = tanh(2 h + x)": Cell(lambda drive, h: jnp.tanh(2.0 * h + drive[0]), 1),
    "GRU with diagonal weights": Cell(_gated, 3),
    "LIF with a reset": Cell(_lif, 1),
}


def loop(step: Step, drives: Array, h: Array) -> Array:
    """All states, W B N, of drives of W k B N."""

    def after(h: Array, drive: Array) -> tuple[Array, Array]:
        h = step(drive, h)
        return h, h

    return jax.lax.scan(after, h, drives)[1]


def iteration(step: Step, drives: Array, h: Array, states: Array) -> Array:
    before = jnp.concatenate([h[None], states[:-1]])
    ones = jnp.ones_like(before)
    new, slope = jax.jvp(lambda a: jax.vmap(step)(drives, a), (before,), (ones,))
    combine = lambda a, b: (b[0] * a[0], b[0] * a[1] + b[1])
    shift = new - slope * before
    factors, sums = jax.lax.associative_scan(combine, (slope, shift))
    return factors * h + sums


def newton(step: Step, drives: Array, h: Array, iterations: int) -> Array:
    states = jnp.broadcast_to(h, (len(drives), *h.shape))
    for _ in range(iterations):
        states = iteration(step, drives, h, states)
    return states


def iterations(cell: Cell, window: int) -> int:
    """The least number with which no state is wrong; 0 where none was found."""
    shape = BEFORE + window, cell.drives, 4, N
    drives = jax.random.normal(jax.random.key(0), shape)
    h = loop(cell.step, drives[:BEFORE], jnp.zeros(shape[2:]))[-1]
    drives = drives[BEFORE:]
    right = loop(cell.step, drives, h)
    states = jnp.broadcast_to(h, right.shape)
    step = jax.jit(lambda states: iteration(cell.step, drives, h, states))
    for count in range(1, MOST + 1):
        states = step(states)
        if jnp.max(jnp.abs(states - right)) <= TOLERANCE:
            return count
    return 0


def cycles(function: Callable[..., Any], cell: Cell, window: int, batch: int) -> float:
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    args = shape(window, cell.drives, batch, N), shape(batch, N)
    return compiled.cost(compiled.compile_for(place("v5e:1x1"), function, *args)).cycles


def run(console: Console) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (name, cell), window in itertools.product(CELLS.items(), WINDOWS):
        count = iterations(cell, window)
        row: dict[str, Any] = {"cell": name, "window": window, "iterations": count or f"> {MOST}"}
        for batch in BATCHES if count else ():
            parallel = lambda drives, h, cell=cell, count=count: newton(cell.step, drives, h, count)
            plain = lambda drives, h, cell=cell: loop(cell.step, drives, h)
            by_loop = cycles(plain, cell, window, batch)
            row[f"to_loop {batch}"] = cycles(parallel, cell, window, batch) / by_loop
        rows.append(row)
    TABLE.show(console, rows)
    return rows


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(TABLE.markdown(run(Console(width=120))))
