"""What does a rank buy?

The trace of a weight matrix under ES-D-RTRL is one pair of factors smoothed with a decay, or R pairs
(a rank). Networks of four kinds of neurons say how near each comes to the gradient of D-RTRL, whose
full trace it stands for, and how near that is to BPTT; and how much nearer a rank is with longer
windows, between which alone something is dropped. Errors are of the one weight matrix into the
neurons: means over seeds of weights and data. All times of a network are taken in turns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from rich.console import Console

import etpc
from benchmarks import by_hand, measure
from benchmarks.table import Column, Table, mebibytes, ratio
from etpc import D_RTRL, ES_D_RTRL
from etpc.surrogate import SuperSpike

N_IN, N_OUT = 50, 10
RATE = 0.2  # spikes of an input per step
WINDOW = 10
RANKS = (1, 2, 4, 8, 16, 32)
DECAYS = (0.5, 0.8, 0.9, 0.95, 0.99)
FEW = (1, 2, 4)
WINDOWS = (10, 25, 50, 100)

TABLE = Table(
    "What does a rank buy?",
    [
        Column("network", "network"),
        Column("rule", "trace"),
        Column("error_d_rtrl", "error to\nD-RTRL", ".4f"),
        Column("worst_d_rtrl", "worst\nseed", ".4f"),
        Column("error_bptt", "error to\nBPTT", ".4f"),
        Column("cosine_bptt", "cosine\nto BPTT", ".4f"),
        Column("trace_bytes", "traces\nMiB", mebibytes),
        Column("min_ms", "min\nms", ".2f"),
        Column("to_d_rtrl", "time to\nD-RTRL", ratio),
    ],
)

OVER_WINDOWS = Table(
    "How much nearer is it with longer windows?",
    [
        Column("network", "network"),
        Column("window", "window", "d"),
        *(
            column
            for r in FEW
            for column in (
                Column(f"error_{r}", f"rank {r}\nerror", ".4f"),
                Column(f"worst_{r}", "worst\nseed", ".4f"),
            )
        ),
        Column("temp", f"temp MiB,\nrank {FEW[-1]}", mebibytes),
    ],
)

spike = SuperSpike()


class LIF(eqx.Module):
    """Leaky integrate-and-fire neurons."""

    w: Array
    out: Array

    def init_state(self) -> Array:
        return jnp.zeros(self.w.shape[0])

    def __call__(self, x: Array, v: Array) -> tuple[Array, Array]:
        z = spike(v - 1)
        v = 0.9 * v * (1 - z) + self.w @ jnp.concatenate([x, z])
        return self.out @ spike(v - 1), v


class CurrentLIF(LIF):
    """The same behind a synaptic current."""

    def init_state(self) -> Any:
        return jnp.zeros(self.w.shape[0]), jnp.zeros(self.w.shape[0])

    def __call__(self, x: Array, state: Any) -> tuple[Array, Any]:
        v, g = state
        z = spike(v - 1)
        g = 0.8 * g + self.w @ jnp.concatenate([x, z])
        v = 0.9 * v * (1 - z) + 0.2 * g
        return self.out @ spike(v - 1), (v, g)


class AdaptiveLIF(CurrentLIF):
    """Neurons whose threshold rises with each of their spikes."""

    def __call__(self, x: Array, state: Any) -> tuple[Array, Any]:
        v, a = state
        z = spike(v - 1 - a)
        v = 0.9 * v - z * (1 + a) + self.w @ jnp.concatenate([x, z])
        a = 0.97 * a + 0.1 * z
        return self.out @ spike(v - 1 - a), (v, a)


class Gated(eqx.Module):
    """A gated recurrent unit without a reset gate."""

    w: Array
    out: Array

    def init_state(self) -> Array:
        return jnp.zeros(self.w.shape[0] // 2)

    def __call__(self, x: Array, h: Array) -> tuple[Array, Array]:
        gate, value = jnp.split(self.w @ jnp.concatenate([x, h]), 2)
        gate = jax.nn.sigmoid(gate - 1)
        h = (1 - gate) * h + gate * jnp.tanh(value)
        return self.out @ h, h


# Each with the rows of its weight for a neuron, and the scale of that weight.
NETWORKS = {
    "LIF": (LIF, 1, 2.0),
    "current LIF": (CurrentLIF, 1, 2.0),
    "adaptive LIF": (AdaptiveLIF, 1, 2.0),
    "gated": (Gated, 2, 1.0),
}


def loss(y: Array, target: Array) -> Array:
    """Cross-entropy of one example at one step."""
    return -jax.nn.log_softmax(y)[target]


def draw(name: str, size: int, steps: int, batch: int, seed: int) -> tuple[Any, Array, Array]:
    """A network with random weights, inputs and targets."""
    make, rows, scale = NETWORKS[name]
    keys = jax.random.split(jax.random.key(seed), 4)
    n = N_IN + size
    w = scale * jax.random.normal(keys[0], (rows * size, n)) / jnp.sqrt(n)
    out = jax.random.normal(keys[1], (N_OUT, size)) / jnp.sqrt(size)
    xs = jax.random.bernoulli(keys[2], RATE, (steps, batch, N_IN)).astype(jnp.float32)
    return make(w, out), xs, jax.random.randint(keys[3], (steps, batch), 0, N_OUT)


def rules(ranks: Sequence[int], decays: Sequence[float]) -> dict[str, etpc.algorithms.Algorithm]:
    """By name. The first is what the others approximate."""
    by_name: dict[str, etpc.algorithms.Algorithm] = {"full (D-RTRL)": D_RTRL(window=WINDOW)}
    by_name |= {f"rank {r}": ES_D_RTRL(rank=r, window=WINDOW) for r in ranks}
    return by_name | {f"decay {a}": ES_D_RTRL(decay=a, window=WINDOW) for a in decays}


def run(
    console: Console,
    size: int,
    steps: int,
    batch: int,
    seeds: int,
    repeats: int,
    ranks: Sequence[int] = RANKS,
    decays: Sequence[float] = DECAYS,
    networks: Sequence[str] = tuple(NETWORKS),
) -> list[dict[str, Any]]:
    """A row for each network and trace."""
    console.print(f"\nlow-rank: N={size} B={batch} T={steps}")
    rows = []
    for name in networks:
        draws = [draw(name, size, steps, batch, seed) for seed in range(seeds)]
        rows += _network(name, draws, batch, repeats, rules(ranks, decays))
        console.print(f"  {name}")
    about = f"N={size} B={batch} T={steps} W={WINDOW}, {seeds} seeds"
    TABLE.show(console, rows, about)
    return [{"size": size, "batch": batch, "steps": steps, "seeds": seeds, **row} for row in rows]


def _network(
    name: str,
    draws: list[tuple[Any, Array, Array]],
    batch: int,
    repeats: int,
    rules: dict[str, etpc.algorithms.Algorithm],
) -> list[dict[str, Any]]:
    bptt = [{"w": by_hand.bptt(*drawn, loss)[1].w} for drawn in draws]
    calls, rows, full = [], [], []
    for rule, algorithm in rules.items():
        program, gradient = _compiled(algorithm, draws, batch)
        grads = [{"w": gradient(*drawn)} for drawn in draws]
        full = full or grads
        to_full = [measure.difference(a, b)["w"] for a, b in zip(grads, full, strict=True)]
        to_bptt = [measure.difference(a, b)["w"] for a, b in zip(grads, bptt, strict=True)]
        calls.append(lambda gradient=gradient: gradient(*draws[0]))
        rows.append(
            {
                "network": name,
                "rule": rule,
                "error_d_rtrl": _mean([d["error"] for d in to_full]),
                "worst_d_rtrl": max(d["error"] for d in to_full),
                "error_bptt": _mean([d["error"] for d in to_bptt]),
                "cosine_bptt": _mean([d["cosine"] for d in to_bptt]),
                "trace_bytes": dict(program.memory(batch).traces)[".w"],
            }
        )
    for row, taken in zip(rows, measure.interleaved(calls, repeats), strict=True):
        row |= taken
        row["to_d_rtrl"] = row["min_ms"] / rows[0]["min_ms"]
    return rows


def over_windows(
    console: Console,
    size: int,
    steps: int,
    batch: int,
    seeds: int,
    windows: Sequence[int] = WINDOWS,
    networks: Sequence[str] = tuple(NETWORKS),
) -> list[dict[str, Any]]:
    """A row for each network and window: errors to the gradient of D-RTRL, which is the same for all."""
    rows = []
    for name in networks:
        draws = [draw(name, size, steps, batch, seed) for seed in range(seeds)]
        full, _ = _gradients(D_RTRL(window=WINDOW), draws, batch)
        for window in windows:
            row = {"network": name, "window": window}
            for r in FEW:
                grads, row["temp"] = _gradients(ES_D_RTRL(rank=r, window=window), draws, batch)
                errors = [
                    measure.difference(a, b)["w"]["error"] for a, b in zip(grads, full, strict=True)
                ]
                row |= {f"error_{r}": _mean(errors), f"worst_{r}": max(errors)}
            rows.append(row)
    about = f"N={size} B={batch} T={steps}, {seeds} seeds; errors to D-RTRL"
    OVER_WINDOWS.show(console, rows, about)
    return [{"size": size, "batch": batch, "steps": steps, "seeds": seeds, **row} for row in rows]


def _gradients(
    algorithm: etpc.algorithms.Algorithm, draws: list[tuple[Any, Array, Array]], batch: int
) -> tuple[list[dict[str, Array]], int]:
    """By the weight matrix; and the bytes that the compiled function allocates beside arguments and
    results."""
    _, gradient = _compiled(algorithm, draws, batch)
    compiled = jax.jit(gradient).lower(*draws[0]).compile()
    return [{"w": compiled(*drawn)} for drawn in draws], measure.memory(compiled)["temp"]


def _compiled(
    algorithm: etpc.algorithms.Algorithm, draws: list[tuple[Any, Array, Array]], batch: int
) -> tuple[etpc.Program, Callable[[Any, Array, Array], Array]]:
    """A program, and its gradient by the weight matrix from a fresh carry."""
    model, xs, _ = draws[0]
    program = etpc.compile(model, algorithm, inputs=xs[0, 0], weights="all")
    gradient, carry = program.value_and_grad(loss, "sum"), program.init(batch)
    return program, lambda model, xs, targets: gradient(model, xs, targets, carry)[1].w


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
