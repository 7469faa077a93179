"""Do bytes grow with T, and does `program.memory()` say what XLA allocates?

Each program is compiled for shapes alone and asked for its memory analysis; nothing runs. The carry
is donated, so that XLA can write the new traces over the old ones: `alias` is what it does write
there. `temp` is what it allocates beside arguments and results; of it only what does not grow with T
is online. On the CPU, a process of its own also runs one length and says by how much it grew.
"""

import functools as ft
import multiprocessing
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from rich.console import Console

import etpc
from benchmarks import measure, network, peer
from benchmarks.network import Problem
from benchmarks.table import Column, Table, mebibytes, ratio
from etpc import D_RTRL, ES_D_RTRL

TABLE = Table(
    "Do bytes grow with T, and does program.memory() say what XLA allocates?",
    [
        Column("name", "contestant"),
        Column("steps", "T", ","),
        Column("inputs", "inputs\nMiB", mebibytes),
        Column("promised", "promised carry\nMiB", mebibytes),
        Column("alias", "carry in place\nMiB", mebibytes),
        Column("temp", "temp\nMiB", mebibytes),
        Column("growth", "temp to\nshortest T", ratio),
        Column("temp_to_traces", "temp to\ntraces", ratio),
        Column("peak", "process grew\nMiB", mebibytes),
    ],
    [
        "inputs: the whole sequence and its targets, which are arguments of every contestant.",
        "promised carry: the bytes that program.memory(batch_size) says.",
        "carry in place: what XLA writes over the donated carry.",
        (
            "process grew: the peak resident memory of a process that compiles and runs it once, over what "
            "it was with the inputs alone. The compiler's own memory is part of it."
        ),
    ],
)

ALGORITHMS = {
    "etpc D-RTRL W=auto": D_RTRL(),
    "etpc D-RTRL W=1": D_RTRL(window=1),
    "etpc ES-D-RTRL 0.9 W=auto": ES_D_RTRL(decay=0.9),
    "etpc ES-D-RTRL 0.9 W=1": ES_D_RTRL(decay=0.9, window=1),
    "etpc ES-D-RTRL rank 4 W=auto": ES_D_RTRL(rank=4),
}
OTHERS: dict[str, Callable[[Problem], Any]] = {
    "BPTT": network.bptt,
    "BPTT, checkpoints": ft.partial(network.bptt, checkpoint=True),
}
PEERS: dict[str, Callable[[Problem], Any]] = {
    "braintrace D-RTRL vmap": ft.partial(peer.Gradient, algorithm="d_rtrl", mode="vmap"),
    "braintrace ES-D-RTRL 0.9 vmap": ft.partial(
        peer.Gradient, algorithm="es_d_rtrl", mode="vmap", decay_or_rank=0.9
    ),
}


def run(
    console: Console,
    size: int,
    lengths: Sequence[int],
    batch: int,
    peak_steps: int | None = None,
    only: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """A row for each contestant, or those in `only`, and length; `peak_steps` is what is run."""
    console.print(f"\nmemory: N={size} B={batch}")
    problem = Problem.make(size, 2, batch)
    others = OTHERS | (PEERS if peer.available() else {})
    rows = []
    for name, algorithm in ALGORITHMS.items():
        if only is not None and name not in only:
            continue
        rows += [_online(problem, name, algorithm, steps) for steps in lengths]
        console.print(f"  {name}")
    for name, build in others.items():
        if only is not None and name not in only:
            continue
        gradient = build(problem)
        for steps in lengths:
            sizes = measure.memory(gradient.lowered(steps).compile())
            rows.append(_row(problem, name, steps, sizes))
        console.print(f"  {name}")
    for row in rows:
        shortest = next(r for r in rows if r["name"] == row["name"])
        row["growth"] = row["temp"] / shortest["temp"]
        if row["steps"] == peak_steps and CAN_MEASURE_PEAK and jax.default_backend() == "cpu":
            row["peak"] = _in_own_process(_peak, row["name"], size, peak_steps, batch)
            console.print(f"  {row['name']}: ran {peak_steps} steps")
    rows = [{"size": size, "batch": batch, **row} for row in rows]
    TABLE.show(console, rows, f"N={size} B={batch}")
    return rows


def _row(problem: Problem, name: str, steps: int, sizes: dict[str, int]) -> dict[str, Any]:
    inputs = sum(a.size * a.dtype.itemsize for a in problem.shapes(steps))
    return {"name": name, "steps": steps, "inputs": inputs, **sizes}


def _online(
    problem: Problem, name: str, algorithm: etpc.algorithms.Algorithm, steps: int
) -> dict[str, Any]:
    program = etpc.compile(problem.model, algorithm, inputs=problem.xs[0, 0])
    arrays, static = eqx.partition(problem.model, eqx.is_array)
    gradient = program.value_and_grad(network.loss, "sum")

    def run(arrays: Any, xs: Any, targets: Any, carry: etpc.Carry) -> Any:
        return gradient(eqx.combine(arrays, static), xs, targets, carry)

    carry = jax.eval_shape(lambda: program.init(problem.batch))
    lowered = jax.jit(run, donate_argnums=3).lower(arrays, *problem.shapes(steps), carry)
    sizes = measure.memory(lowered.compile())
    promised = program.memory(problem.batch)
    traces = sum(size for _, size in promised.traces)
    return {
        **_row(problem, name, steps, sizes),
        "promised": promised.total,
        "temp_to_traces": sizes["temp"] / traces,
    }


def _peak(name: str, size: int, steps: int, batch: int) -> int:
    """Bytes by which this process grows when it compiles and runs a contestant."""
    problem = jax.block_until_ready(Problem.make(size, steps, batch))
    jax.block_until_ready(network.bptt(Problem.make(4, 2, 2))())
    CLEAR_REFS.write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    builders = OTHERS | PEERS
    for contestant, algorithm in ALGORITHMS.items():
        builders[contestant] = ft.partial(network.online, algorithm=algorithm)
    gradient = builders[name](problem)
    jax.block_until_ready(gradient())
    return _status("VmHWM") - before


CLEAR_REFS = Path("/proc/self/clear_refs")
CAN_MEASURE_PEAK = CLEAR_REFS.exists()


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def _in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
