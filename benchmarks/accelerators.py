"""What do programs cost on TPUs and GPUs, as the compilers of these say?

Nothing is run: each program is compiled for a chip that is not there (`etpc/estimating`). Cells are those of
`benchmarks/cells.py`, with a cross-entropy of one-hot targets, as a TPU makes a loop of a loss that indexes. All
contestants compute the gradient of the same sequences, from a fresh state; what would only be carried on is left out.
The rules by hand are those of `benchmarks/step.py`, where weights move at each step.
"""

import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from rich.console import Console

import etpc
from benchmarks import cells, network, peer, step
from benchmarks.by_hand import CELLS, Cell, bptt
from benchmarks.by_hand import loss as squared
from benchmarks.cells import DECAY, RANK
from benchmarks.network import N_IN, N_OUT, Problem
from benchmarks.table import Column, Table, mebibytes, ratio
from etpc.estimating import compiled
from etpc.estimating.chips import place

ON = ("v5e:2x2", "v6e:2x2", "h100")
RULES: Mapping[str, etpc.algorithms.Algorithm] = {
    "D-RTRL": etpc.D_RTRL(),
    "D-RTRL, each step": etpc.D_RTRL(window=1),
    f"decay {DECAY}": etpc.ES_D_RTRL(decay=DECAY),
    f"decay {DECAY}, each step": etpc.ES_D_RTRL(decay=DECAY, window=1),
    f"rank {RANK}": etpc.ES_D_RTRL(rank=RANK),
    "RTRL": etpc.RTRL(),
}
ROUNDED = "D-RTRL, default precision"
ADAM, UNROLLED = "D-RTRL, Adam at each step", "BPTT, 4 steps in a loop's body"
SUMMED = (UNROLLED, *RULES, ROUNDED, ADAM)
LARGEST = 1 << 30
"""RTRL takes part where its traces have no more bytes than this."""
OFTEN = ("LIF", "ALIF", "GIF", "GRU", "LSTM", "MinGRU", "LRU")
"""The cells of the means."""

TABLE = Table(
    "What do programs cost on accelerators, as their compilers say?",
    [
        Column("on", "on"),
        Column("cell", "cell"),
        Column("name", "contestant"),
        Column("window", "W"),
        Column("cycles", "cycles\na step", ",.0f"),
        Column("kernels", "kernels\na step", ".1f"),
        Column("to_bptt", "to\nBPTT", ratio),
        Column("temp", "temp\nMiB", mebibytes),
        Column("traces", "traces\nMiB", mebibytes),
        Column("fast", "in VMEM\nMiB", mebibytes),
        Column("seconds", "s to\ncompile", ".1f"),
    ],
    [
        "cycles: XLA's estimate of each instruction times the trips of its loops; none on a GPU.",
        "to BPTT: of cycles, or of kernels where there are none, to the first contestant of these cells.",
        "in VMEM: the most bytes that a loop carries in the memory of a TPU's core.",
        f"mean: the geometric mean over {', '.join(OFTEN)}.",
    ],
)


def loss(y: Array, target: Array) -> Array:
    """The cross-entropy of one example at one step, without an index."""
    return optax.softmax_cross_entropy(y, jax.nn.one_hot(target, N_OUT))


def run(
    console: Console,
    sizes: Sequence[int],
    steps: Sequence[int],
    batches: Sequence[int],
    on: Sequence[str],
    only: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """A row for each accelerator, size, length, batch, cell and contestant."""
    names = [name for name in cells.OF_NN if only is None or name in only]
    rows: list[dict[str, Any]] = []
    for size, length, batch, chip in itertools.product(sizes, steps, batches, on):
        shape = chip, size, length, batch
        fields = [(name, of_cell(name, *shape)) for name in names]
        fields += [(c.name, by_hand(c, *shape)) for c in CELLS if only is None or c.name in only]
        if peer.available() and batch > 1:
            fields.append(("reference network", reference(*shape)))
        found = [
            {"cell": cell, **row}
            for cell, field in fields
            for row in _rows(console, chip, length, field)
        ]
        found = [{"on": chip, **row} for row in (*found, *_means(found))]
        TABLE.show(console, found, f"N={size} B={batch} T={length}")
        rows += [{"size": size, "batch": batch, "steps": length, **row} for row in found]
    return rows


Contestant = tuple[str, dict[str, Any], Callable[..., Any], tuple[Any, ...]]
"""A name, what is known of it, a function and its arguments."""


def _rows(
    console: Console, chip: str, steps: int, field: Iterator[Contestant]
) -> list[dict[str, Any]]:
    """What each contestant costs, in units of the first."""
    rows: list[dict[str, Any]] = []
    for name, known, function, arguments in field:
        start = time.perf_counter()
        try:
            cost = compiled.cost(compiled.compile_for(place(chip), function, *arguments))
        except jax.errors.JaxRuntimeError as error:  # it does not fit
            console.print(f"  {chip} {name}: {str(error).splitlines()[0][:200]}")
            continue
        row = {
            "name": name,
            **known,
            "kernels": cost.kernels / steps,
            "temp": cost.temporary,
            "fast": cost.fast,
            "copies": sum(times for size, times in cost.copies.items() if size >= 1 << 20),
            "seconds": time.perf_counter() - start,
        }
        if cost.cycles:
            row["cycles"] = cost.cycles / steps
        unit = "cycles" if cost.cycles else "kernels"
        row["to_bptt"] = row[unit] / (rows[0] if rows else row)[unit]
        if cost.unknown:
            console.print(f"  {chip} {name}: loops of unknown length count once: {cost.unknown}")
        rows.append(row)
    return rows


def of_cell(name: str, chip: str, size: int, steps: int, batch: int) -> Iterator[Contestant]:
    """BPTT as one writes it, and rules, of a network with one layer of these cells."""
    model = cells.example(name, size, 2, 1).model
    arrays, static = eqx.partition(model, eqx.is_array)
    shape = lambda *axes, dtype=jnp.float32: jax.ShapeDtypeStruct(axes, dtype)
    xs, targets = shape(steps, batch, N_IN), shape(steps, batch, dtype=jnp.int32)
    data = arrays, xs, targets

    def plain(arrays: Any, xs: Array, targets: Array, unroll: int = 1) -> Any:
        return bptt(eqx.combine(arrays, static), xs, targets, loss, unroll=unroll)[1]

    yield "BPTT", {}, plain, data
    yield UNROLLED, {}, functools.partial(plain, unroll=4), data
    for rule_name, rule in {**RULES, ROUNDED: etpc.D_RTRL()}.items():
        precision = "default" if rule_name == ROUNDED else "highest"
        target = etpc.Target(place(chip).chip.platform, precision=precision)
        of: Any = dict(inputs=shape(N_IN), weights="all", target=target, memory=1 << 62)
        program = etpc.compile(model, rule, **of)
        traces = sum(size for _, size in program.memory(batch).traces)
        if rule_name == "RTRL" and traces > LARGEST:
            continue
        gradient = program.value_and_grad(loss, "sum")

        def grads(arrays: Any, xs: Array, targets: Array, program=program, run=gradient) -> Any:
            return run(eqx.combine(arrays, static), xs, targets, program.init(batch))[1]

        window = program.window_for(steps)
        known = {"window": window, "traces": traces}
        yield rule_name, known, grads, data
        if rule_name == "D-RTRL, each step":
            learner: Any = etpc.online(program, loss, optax.adam(1e-3), every=1)
            start = jax.eval_shape(functools.partial(learner.init, model, batch))

            def update(arrays: Any, start: Any, xs: Array, targets: Array, one=learner) -> Any:
                model, *after, _ = one.update(eqx.combine(arrays, static), *start, xs, targets)
                return eqx.filter(model, eqx.is_array), after

            yield ADAM, known, update, (arrays, start, xs, targets)


def by_hand(cell: Cell, chip: str, size: int, steps: int, batch: int) -> Iterator[Contestant]:
    """A rule by hand, and the same in etpc, with gradient descent at each step."""
    n_in, n_out, rate = step.N_IN, step.N_OUT, step.RATE
    weights = cell.weights(jax.random.key(0), n_in, size, n_out)
    shape = lambda *axes: jax.ShapeDtypeStruct(axes, jnp.float32)
    data = shape(steps, batch, n_in), shape(steps, batch, n_out)
    of_state = jax.eval_shape(lambda: cell.state(size))
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape), a.dtype), of_state)
    traces = jax.eval_shape(lambda: cell.traces(weights, size, batch))

    yield "by hand", {}, step.updates(cell), (weights, state, traces, *data)
    program = etpc.compile(
        *(weights, etpc.D_RTRL()),
        inputs=shape(n_in),
        state=cell.state(size),
        step=cell.step,
        target=place(chip).chip.platform,
    )
    learner: Any = etpc.online(program, squared, optax.sgd(rate), every=1)
    start = jax.eval_shape(lambda: learner.init(weights, batch))
    known = {"window": 1, "traces": sum(size for _, size in program.memory(batch).traces)}
    update = lambda weights, start, xs, ts: learner.update(weights, *start, xs, ts)
    yield "etpc beside it", known, update, (weights, start, *data)


def reference(chip: str, size: int, steps: int, batch: int) -> Iterator[Contestant]:
    """etpc and braintrace on the reference network. Its loss indexes, which etpc does for all steps of a window at
    once, and a TPU by a loop over them."""
    problem = Problem.make(size, steps, batch)
    arrays, static = eqx.partition(problem.model, eqx.is_array)
    targets = jnp.broadcast_to(problem.targets, (steps, batch))
    program = etpc.compile(
        problem.model, etpc.D_RTRL(), inputs=problem.xs[0, 0], target=place(chip).chip.platform
    )
    known = {"window": program.window_for(steps)}
    for name, of_step in (("one-hot loss", loss), ("loss by index", network.loss)):
        gradient = program.value_and_grad(of_step, "sum")

        def grads(arrays: Any, xs: Array, targets: Array, run=gradient) -> Any:
            return run(eqx.combine(arrays, static), xs, targets, program.init(batch))[1]

        yield f"etpc D-RTRL, {name}", known, grads, (arrays, problem.xs, targets)
    for mode in ("vmap", "batch"):
        theirs = peer.Program(lambda: peer.build_model(problem), problem.xs, "d_rtrl", mode=mode)
        function, shapes = theirs.as_function(problem.xs, targets)
        yield f"braintrace D-RTRL, {mode}", {}, function, tuple(shapes)


def _means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over the cells of `OFTEN`, where all are there."""
    means: list[dict[str, Any]] = []
    for name in dict.fromkeys(row["name"] for row in rows):
        found = [row for row in rows if row["name"] == name and row["cell"] in OFTEN]
        if len(found) == len(OFTEN):
            mean = float(jnp.exp(jnp.log(jnp.array([row["to_bptt"] for row in found])).mean()))
            means.append({"cell": f"mean of {len(found)}", "name": name, "to_bptt": mean})
    return means


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each accelerator, size, length and batch: a line for each cell, a column for each contestant."""
    shapes = dict.fromkeys((row["on"], row["size"], row["steps"], row["batch"]) for row in rows)
    sections: list[str] = []
    for on, size, steps, batch in shapes:
        here = [
            row
            for row in rows
            if (row["on"], row["size"], row["steps"], row["batch"]) == (on, size, steps, batch)
            and row["name"] in SUMMED
        ]
        names = [name for name in SUMMED if any(r["name"] == name for r in here)]
        lines = [["cell", *names], ["---", *["---:"] * len(names)]]
        for cell in dict.fromkeys(row["cell"] for row in here):
            found = {row["name"]: f"{row['to_bptt']:.2f}" for row in here if row["cell"] == cell}
            lines.append([cell, *(found.get(name, "-") for name in names)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        sections += [f"### {on}, N = {size}, T = {steps}, B = {batch}", table]
    return "\n\n".join(sections)
