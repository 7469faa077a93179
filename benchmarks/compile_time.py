"""How does compile time grow?

`etpc` is the time of `etpc.compile`, which analyses the step and plans the traces; `lower` is what
JAX then needs to trace and lower the gradient of a sequence, `XLA` what XLA needs to compile it.
Nothing runs, but for the reference network: there `first result` is from nothing to a gradient, with
empty caches, and `traced again` counts the programs that are traced when it is called once more.
"""

import functools as ft
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import sparse
from rich.console import Console

import etpc
from benchmarks import cells, measure, network, peer
from benchmarks.network import Problem
from benchmarks.table import Column, Table, ratio, seconds
from etpc import D_RTRL, ES_D_RTRL, nn

STEPS, BATCH = 20, 1
CONNECTIONS = 10  # of each neuron of a sparse network
REPEATS = 3  # of which the least is shown

GROWTH = Table(
    "How does compile time grow?",
    [
        Column("name", "network"),
        Column("neurons", "neurons", ","),
        Column("weights", "weights", ","),
        Column("plan_s", "etpc\ns", seconds),
        Column("lower_s", "lower\ns", seconds),
        Column("xla_s", "XLA\ns", seconds),
    ],
)
FIRST = Table(
    "How long is it to the first gradient?",
    [
        Column("name", "contestant"),
        Column("plan_s", "compile()\ns", seconds),
        Column("lower_s", "lower\ns", seconds),
        Column("xla_s", "XLA\ns", seconds),
        Column("first_s", "first result\ns", seconds),
        Column("again", "traced\nagain", "d"),
    ],
    [
        (
            "traced again: programs that the second call traces, with arguments of the same shapes. "
            "braintrace's states begin as weakly typed floats, so it compiles everything twice."
        ),
    ],
)

LAYERS = Table(
    "How does the time to the first gradient grow with depth?",
    [
        Column("layers", "layers", "d"),
        Column("bptt_s", "BPTT\ns", seconds),
        Column("etpc_s", "D-RTRL\ns", seconds),
        Column("to_bptt", "D-RTRL\nto BPTT", ratio),
    ],
    [
        "from nothing to a gradient, with empty caches; BPTT is `jax.grad` of a loop over the steps, `lax.scan`."
    ],
)


class Layers(eqx.Module):
    """Layers of LIF neurons, each driven by the one before and, if recurrent, by itself."""

    linears: tuple[eqx.nn.Linear, ...]
    lifs: tuple[nn.LIF, ...]
    recurrent: bool = eqx.field(static=True)

    def __init__(self, layers: int, size: int, recurrent: bool):
        key = jax.random.key(0)
        n_in = 2 * size if recurrent else size
        linear = eqx.nn.Linear(n_in, size, key=key)
        self.linears = tuple(nn.init(linear, "zeros", key) for _ in range(layers))
        self.lifs = tuple(nn.LIF(size) for _ in range(layers))
        self.recurrent = recurrent

    def init_state(self) -> tuple[Array, ...]:
        return tuple(lif.init_state() for lif in self.lifs)

    def __call__(self, x: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        after = []
        for linear, lif, V in zip(self.linears, self.lifs, state, strict=True):
            inputs = jnp.concatenate([x, lif.spike(V)]) if self.recurrent else x
            x, V = lif(linear(inputs), V)
            after.append(V)
        return x, tuple(after)


class Sparse(eqx.Module):
    """LIF neurons with a few connections each."""

    weight: sparse.BCOO
    lif: nn.LIF

    def __init__(self, size: int):
        rng = np.random.default_rng(0)
        rows = np.repeat(np.arange(size), CONNECTIONS)
        indices = np.stack([rows, rng.integers(0, size, rows.size)], axis=1).astype(np.int32)
        data = jnp.zeros(rows.size)
        self.weight = sparse.BCOO((data, jnp.asarray(indices)), shape=(size, size))
        self.lif = nn.LIF(size)

    def init_state(self) -> Array:
        return self.lif.init_state()

    def __call__(self, x: Array, V: Array) -> tuple[Array, Array]:
        return self.lif(x + self.weight @ self.lif.spike(V), V)


def growth(
    console: Console, layers: Sequence[int], layer_size: int, sparse_sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each network that grows."""
    console.print("\ncompile: growth")
    rows = []
    for name, model, n_in in _networks(layers, layer_size, sparse_sizes):
        rows.append({"name": name, **_split(model, n_in)})
        console.print(f"  {name}: etpc.compile took {rows[-1]['plan_s']:.2f} s")
    GROWTH.show(console, rows, f"D-RTRL, B={BATCH} T={STEPS}")
    return rows


def _networks(
    layers: Sequence[int], layer_size: int, sparse_sizes: Sequence[int]
) -> Iterator[tuple[str, Any, int]]:
    for recurrent in (False, True):
        for count in layers:
            kind = "recurrent" if recurrent else "feed-forward"
            model = Layers(count, layer_size, recurrent)
            yield f"{count} {kind} x {layer_size:,}", model, layer_size
    for size in sparse_sizes:
        yield f"sparse, {CONNECTIONS} each", Sparse(size), size


def _split(model: Any, n_in: int) -> dict[str, Any]:
    x = jax.ShapeDtypeStruct((n_in,), jnp.float32)
    program, plan_s = measure.timed(
        lambda: etpc.compile(model, D_RTRL(), inputs=x, weights=_weights(model))
    )
    gradient = program.value_and_grad(lambda y, target: jnp.sum((y - target) ** 2), "sum")
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def run(arrays: Any, xs: Array, carry: etpc.Carry) -> Any:
        return gradient(eqx.combine(arrays, static), xs, xs, carry)

    xs = jax.ShapeDtypeStruct((STEPS, BATCH, n_in), jnp.float32)
    carry = jax.eval_shape(lambda: program.init(BATCH))
    lowered, lower_s = measure.timed(lambda: jax.jit(run).lower(arrays, xs, carry))
    _, xla_s = measure.timed(lowered.compile)
    return {
        "neurons": sum(a.size for a in jax.tree.leaves(model.init_state())),
        "weights": sum(a.size for a in jax.tree.leaves(arrays)),
        "plan_s": plan_s,
        "lower_s": lower_s,
        "xla_s": xla_s,
    }


def _weights(model: Any) -> Any:
    """The layers of `etpc.nn` mark their weights; a plain sparse matrix is all there is."""
    return "all" if isinstance(model, Sparse) else None


def first(
    console: Console, size: int, steps: int, batch: int, only: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """A row for each contestant, or those in `only`, on the reference network."""
    console.print("\ncompile: the reference network")
    builders: dict[str, Callable[[Problem], Any]] = {
        "BPTT": network.bptt,
        "etpc D-RTRL": ft.partial(network.online, algorithm=D_RTRL()),
        "etpc ES-D-RTRL 0.9": ft.partial(network.online, algorithm=ES_D_RTRL(decay=0.9)),
        "etpc ES-D-RTRL rank 4": ft.partial(network.online, algorithm=ES_D_RTRL(rank=4)),
    }
    if peer.available():
        for mode in peer.MODES:
            builders[f"braintrace D-RTRL {mode}"] = ft.partial(
                peer.Gradient, algorithm="d_rtrl", mode=mode, window=10 if mode == "window" else 1
            )
    if only is not None:
        builders = {name: build for name, build in builders.items() if name in only}
    problem = Problem.make(size, steps, batch)
    for build in builders.values():  # what a library loads when it is first used
        build(Problem.make(4, 10, 2))()
    rows = []
    for name, build in builders.items():
        runs = [_first(build, problem) for _ in range(REPEATS)]
        rows.append({"name": name, **{key: min(run[key] for run in runs) for key in runs[0]}})
        console.print(f"  {name}: first result after {rows[-1]['first_s']:.2f} s")
    FIRST.show(console, rows, f"reference network, N={size} B={batch} T={steps}")
    return [{"size": size, "batch": batch, "steps": steps, **row} for row in rows]


def layers(
    console: Console, counts: Sequence[int], size: int, steps: int, batch: int
) -> list[dict[str, Any]]:
    """A row for each depth of a network of GRUs."""
    rows = []
    for count in counts:
        keys = jax.random.split(jax.random.key(0), count + 1)
        grus = [eqx.nn.GRUCell(size, size, key=key) for key in keys[1:]]
        model = nn.Sequential([*grus, eqx.nn.Linear(size, network.N_OUT, key=keys[0])])
        xs, targets = jnp.ones((steps, batch, size)), jnp.zeros((steps, batch), int)
        problem = cells.Example(model, xs, targets)
        taken = {"bptt_s": _to_first(problem, None), "etpc_s": _to_first(problem, D_RTRL())}
        rows.append({"layers": count, **taken, "to_bptt": taken["etpc_s"] / taken["bptt_s"]})
        console.print(f"  {count} GRU layers: {rows[-1]['to_bptt']:.2f} times BPTT")
    LAYERS.show(console, rows, f"layers of {size} GRUs, B={batch} T={steps}")
    return [{"size": size, "batch": batch, "steps": steps, **row} for row in rows]


def _to_first(problem: cells.Example, algorithm: Any) -> float:
    """Seconds from nothing to a gradient, the least of some."""
    taken = []
    for _ in range(REPEATS):
        jax.clear_caches()
        build = lambda: jax.block_until_ready(cells.Gradient(problem, algorithm)())
        taken.append(measure.timed(build)[1])
    return min(taken)


def _first(build: Callable[[Problem], Any], problem: Problem) -> dict[str, float]:
    """One row, from empty caches."""
    jax.clear_caches()
    gradient, plan_s = measure.timed(lambda: build(problem))
    lowered, lower_s = measure.timed(gradient.lowered)
    _, xla_s = measure.timed(lowered.compile)
    jax.clear_caches()
    gradient, building_s = measure.timed(lambda: build(problem))
    _, calling_s = measure.timed(gradient)
    with measure.compilations() as counts:
        jax.block_until_ready(gradient())
    split = {"plan_s": plan_s, "lower_s": lower_s, "xla_s": xla_s}
    return {**split, "first_s": building_s + calling_s, "again": counts["trace"]}
