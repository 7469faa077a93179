"""What does each pass of the compiler buy?

The gradient of a sequence with all passes, without each of those that change its program, and without any: of the same
weights and inputs, in one process and in turns. A ratio is without the pass to with it, so that more than one is what
it buys. Times to compile are the least of two, from empty caches, of tracing, lowering and XLA.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from rich.console import Console

import etpc
from benchmarks import cells, measure
from benchmarks.cells import Example
from benchmarks.network import N_IN, N_OUT
from benchmarks.table import Column, Table, mebibytes, ratio
from etpc.algorithms import Algorithm
from etpc.plan import PASSES

ALL = "all of them"
TABLE = Table(
    "What does each pass of the compiler buy?",
    [
        Column("cell", "cell"),
        Column("rule", "rule"),
        Column("without", "without"),
        Column("ms", "ms with\nall", ".2f"),
        Column("time", "time", ratio),
        Column("trace_mib", "traces MiB\nwith all", mebibytes),
        Column("traces", "traces", ratio),
        Column("temp", "temporary\nmemory", ratio),
        Column("compile_s", "s to compile\nwith all", ".2f"),
        Column("compile", "time to\ncompile", ratio),
    ],
    [
        "time, traces, temporary memory, time to compile: without the pass to with all.",
        "each step: windows of one step; the other rules have windows that are chosen.",
    ],
)
RULES: Mapping[str, Algorithm] = {
    "D-RTRL": etpc.D_RTRL(),
    "D-RTRL, each step": etpc.D_RTRL(window=1),
    "ES-D-RTRL 0.9": etpc.ES_D_RTRL(decay=0.9),
    "ES-D-RTRL 0.9, each step": etpc.ES_D_RTRL(decay=0.9, window=1),
}
LEAKY = "LIF with a leaky readout"
FOLLOWING: Mapping[str, Algorithm] = {
    "e-prop": etpc.EProp(),
    "e-prop, each step": etpc.EProp(window=1),
}
"""Rules that follow a leaky readout, and are D-RTRL where there is none."""
THROUGH = dataclasses.replace(TABLE, title="And where a rule follows a leaky readout?")


class LeakyReadout(eqx.Module):
    """A spiking network whose readout leaks with one constant."""

    network: cells.Spiking

    def init_state(self) -> Any:
        return self.network.init_state(), jnp.zeros(N_OUT)

    def __call__(self, x: Array, state: Any) -> tuple[Array, Any]:
        y, inner = self.network(x, state[0])
        y = 0.9 * state[1] + y
        return y, (inner, y)


class SharedConstant(eqx.Module):
    """A layer whose units have one learned time constant, and a readout."""

    weight: Array
    leak: Array
    out: Array

    def init_state(self) -> Array:
        return jnp.zeros(len(self.weight))

    def __call__(self, x: Array, h: Array) -> tuple[Array, Array]:
        h = jax.nn.sigmoid(self.leak) * h + jnp.tanh(self.weight @ x)
        return self.out @ h, h


class ApartGates(eqx.Module):
    """An LSTM each of whose gates has weights of its own."""

    gates: tuple[tuple[Array, Array, Array], ...]
    out: Array

    def init_state(self) -> tuple[Array, Array]:
        zeros = jnp.zeros(self.out.shape[1])
        return zeros, zeros

    def __call__(self, x: Array, state: Any) -> tuple[Array, Any]:
        h, c = state
        i, f, o, g = (w @ x + r @ h + b for w, r, b in self.gates)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return self.out @ h, (h, c)


class Tied(eqx.Module):
    """A layer that reads its input, and a function of it, through one weight."""

    weight: Array
    out: Array

    def init_state(self) -> Array:
        return jnp.zeros(len(self.weight))

    def __call__(self, x: Array, h: Array) -> tuple[Array, Array]:
        h = 0.9 * h + jnp.tanh(self.weight @ x + self.weight @ jnp.tanh(jnp.roll(x, 1)))
        return self.out @ h, h


def _own(name: str, size: int) -> Any:
    """The networks that no other benchmark has, by name."""
    if name == LEAKY:
        return LeakyReadout(cells.example("LIF", size, 1, 1).model)
    keys = iter(jax.random.split(jax.random.key(0), 16))
    drawn = lambda *shape: jax.random.normal(next(keys), shape) / math.sqrt(shape[-1])
    if name == "one time constant":
        return SharedConstant(drawn(size, N_IN), jnp.asarray(2.0), drawn(N_OUT, size))
    if name == "LSTM with gates apart":
        gates = tuple((drawn(size, N_IN), drawn(size, size), jnp.zeros(size)) for _ in range(4))
        return ApartGates(gates, drawn(N_OUT, size))
    return Tied(drawn(size, N_IN), drawn(N_OUT, size))


OWN = (
    LEAKY,
    "LSTM with gates apart",
    "one time constant",
    "weight used twice",
)
NAMES = ("ALIF", "GIF", "GRU", "LSTM", "LRU", *OWN)


def run(
    console: Console,
    size: int,
    steps: int,
    batch: int,
    repeats: int,
    only: Collection[str] | None = None,
    rules: Mapping[str, Algorithm] = RULES,
) -> list[dict[str, Any]]:
    """A row for each cell, rule and pass that changes the program."""
    console.print(f"\npasses: N={size} B={batch} T={steps}")
    rows: list[dict[str, Any]] = []
    for name in (name for name in NAMES if only is None or name in only):
        problem = cells.example("GRU" if name in OWN else name, size, steps, batch)
        if name in OWN:
            problem = problem._replace(model=_own(name, size))
        for rule, algorithm in rules.items():
            new = list(_rows(problem, algorithm, repeats))
            rows += [{"cell": name, "rule": rule, **row} for row in new]
            said = ", ".join(f"{row['without']} {row['time']:.2f}" for row in new)
            console.print(f"  {name}, {rule}: {said}")
    TABLE.show(console, rows, f"N={size} B={batch} T={steps}")
    return [{"size": size, "batch": batch, "steps": steps, **row} for row in rows]


def _rows(problem: Example, algorithm: Algorithm, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each pass that changes the program, and one for all of them."""
    program = etpc.compile(problem.model, algorithm, inputs=problem.xs[0, 0])
    fired = set(program.passes.fired)
    if algorithm.window != 1:
        fired.discard("read_after")
    names = [name for name in PASSES if name in fired]
    left = {"": tuple(PASSES)}
    left |= {name: tuple(other for other in PASSES if other != name) for name in names}
    left[ALL] = ()
    built = {name: _Built(problem, algorithm, passes) for name, passes in left.items()}
    taken = measure.interleaved([built[name].call for name in left], repeats)
    times = {name: t["min_ms"] for name, t in zip(left, taken, strict=True)}
    whole = built[""]
    for name in [*names, ALL]:
        other = built[name]
        yield {
            "without": name,
            "ms": times[""],
            "time": times[name] / times[""],
            "trace_mib": whole.traces,
            "traces": other.traces / max(whole.traces, 1),
            "temp": other.temp / max(whole.temp, 1),
            "compile_s": whole.compile_s,
            "compile": other.compile_s / whole.compile_s,
        }


class _Built:
    """A gradient with some passes, and what it takes."""

    def __init__(self, problem: Example, algorithm: Algorithm, passes: Collection[str]):
        def build() -> cells.Gradient:
            jax.clear_caches()
            return cells.Gradient(problem, algorithm, passes)

        (self.call, first), (_, second) = measure.timed(build), measure.timed(build)
        self.compile_s = min(first, second)
        self.traces = self.call.traces or 0
        self.temp = measure.memory(self.call.compiled)["temp"]


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a line for each pass: where it buys most, and the geometric mean."""
    lines = [
        "| without | programs | time: mean | most | traces: most | temporary memory: most | compile: mean | most |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in [*PASSES, ALL]:
        of_pass = [row for row in rows if row["without"] == name]
        if not of_pass:
            continue
        values = lambda key, of=of_pass: [row[key] for row in of]
        mean = lambda key, v=values: math.exp(sum(map(math.log, v(key))) / len(v(key)))
        most = lambda key, v=values: ratio(max(v(key)))
        cells = [name, str(len(of_pass)), ratio(mean("time")), most("time"), most("traces")]
        cells += [most("temp"), ratio(mean("compile")), most("compile")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
