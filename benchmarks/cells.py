"""How does the time depend on the cell?

Every neuron and recurrent cell of `etpc.nn`, GRU and LSTM with N units and a linear readout, a network of two
layers, the GIF network of the delayed match task, and a GRU with a wide readout. A spiking layer reads the
input and its own last spikes through one dense layer. All contestants of a cell compute the gradient of the
same sequence from the same weights, from a fresh state, and are timed in turns. An error is that of the whole
gradient, all parameters as one vector.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from rich.console import Console

import etpc
from benchmarks import by_hand, measure, peer
from benchmarks.network import N_IN, N_OUT, RATE, loss
from benchmarks.table import Column, Table, mebibytes, ratio
from etpc import D_RTRL, ES_D_RTRL, nn

DECAY, RANK = 0.9, 4
WIDE = 1000  # outputs of the wide readout

TABLE = Table(
    "How does the time depend on the cell?",
    [
        Column("cell", "cell"),
        Column("block", "m", "d"),
        Column("name", "contestant"),
        Column("window", "window"),
        Column("min_ms", "min\nms", ".2f"),
        Column("to_bptt", "time to\nBPTT", ratio),
        Column("temp", "temp\nMiB", mebibytes),
        Column("error_bptt", "error to\nBPTT", ".2g"),
        Column("cosine_bptt", "cosine\nto BPTT", ".4f"),
        Column("error_d_rtrl", "error to\nD-RTRL", ".2g"),
    ],
    [
        "m: the most states of a block, which is how many numbers a trace has for a use of a weight.",
        "errors: of the whole gradient, all parameters as one vector.",
        "full windows: reverse mode inside a window.",
        "D-RTRL and the others also give the carry with which the stream goes on.",
        "braintrace: its default mode, of its cell of this kind with weights of its own: a time, and no error.",
        "mean: the geometric mean over all cells, without the networks that are named in words.",
    ],
)


class Spiking(eqx.Module):
    """Neurons that read the input and each other's last spikes, and a linear readout of their spikes."""

    hidden: eqx.nn.Linear
    neurons: Any
    readout: eqx.nn.Linear

    def __init__(self, neurons: Any, size: int, gain: float, key: Array):
        keys = jax.random.split(key)
        hidden = eqx.nn.Linear(N_IN + size, size, key=keys[0])
        self.hidden = nn.init(hidden, "kaiming_normal", keys[0], gain=gain)
        self.neurons = neurons
        self.readout = eqx.nn.Linear(size, N_OUT, key=keys[1])

    def init_state(self) -> Any:
        return self.neurons.init_state()

    def __call__(self, x: Array, state: Any) -> tuple[Array, Any]:
        spikes = self.neurons.spike(state)
        spikes, state = self.neurons(self.hidden(jnp.concatenate([x, spikes])), state)
        return self.readout(spikes), state


class Recurrent(eqx.Module):
    """A layer of spiking neurons with recurrent weights, as a layer of `nn.Sequential`."""

    hidden: eqx.nn.Linear
    neurons: Any

    def init_state(self) -> Any:
        return self.neurons.init_state()

    def __call__(self, x: Array, state: Any) -> tuple[Array, Any]:
        spikes = self.neurons.spike(state)
        return self.neurons(self.hidden(jnp.concatenate([x, spikes])), state)


# Each with the gain of its weights that lets the neurons spike.
NEURONS: dict[str, tuple[Callable[[int], Any], float]] = {
    "LIF": (nn.LIF, 10.0),
    "ALIF": (nn.ALIF, 10.0),
    "GIF": (nn.GIF, 10.0),
    "QIF": (nn.QIF, 10.0),
    "EIF": (nn.EIF, 10.0),
    "AdEx": (nn.AdEx, 10.0),
    "Izhikevich": (nn.Izhikevich, 10.0),
    "ResonateAndFire": (nn.ResonateAndFire, 10.0),
}
RECURRENT: dict[str, Any] = {
    "VanillaRNN": nn.VanillaRNN,
    "IndRNN": nn.IndRNN,
    "GRU": eqx.nn.GRUCell,
    "MGU": nn.MGU,
    "LSTM": eqx.nn.LSTMCell,
    "MinGRU": nn.MinGRU,
    "MinLSTM": nn.MinLSTM,
}
OF_NN = (*NEURONS, *RECURRENT, "LRU", "S5")
NETWORKS = ("two layers of LIF", "task of 64 GIF", "GRU, wide readout")
NAMES = (*OF_NN, *NETWORKS)


class Example(NamedTuple):
    """A network with data."""

    model: Any
    xs: Array
    targets: Array


def example(name: str, size: int, steps: int, batch: int, seed: int = 0) -> Example:
    """The network of a cell. Raises `ValueError` where a spiking one does not spike."""
    model_key, cell_key, x_key, target_key = jax.random.split(jax.random.key(seed), 4)
    n_in, n_out, cell_keys = N_IN, N_OUT, jax.random.split(cell_key, 4)
    if name in NEURONS:
        make, gain = NEURONS[name]
        model = Spiking(make(size), size, gain, model_key)
    elif name in RECURRENT:
        cell = RECURRENT[name](N_IN, size, key=cell_keys[0])
        model = nn.Sequential([cell, eqx.nn.Linear(size, N_OUT, key=model_key)])
    elif name in ("LRU", "S5"):
        cell = {"LRU": nn.LRU, "S5": nn.S5}[name](N_IN, size, size, key=cell_keys[0])
        model = nn.Sequential([cell, eqx.nn.Linear(size, N_OUT, key=model_key)])
    elif name == "two layers of LIF":
        cells = []
        for n, key in zip((N_IN, size), cell_keys, strict=False):
            hidden = eqx.nn.Linear(n + size, size, key=key)
            hidden = nn.init(hidden, "kaiming_normal", key, gain=10.0)
            cells.append(Recurrent(hidden, nn.LIF(size)))
        model = nn.Sequential([*cells, eqx.nn.Linear(size, N_OUT, key=model_key)])
    elif name == "task of 64 GIF":
        from examples.tasks import dms

        model, n_in, n_out = dms.Network(model_key), dms.STIMULI * dms.GROUP, 2
    elif name == "GRU, wide readout":
        n_out = WIDE
        cell = eqx.nn.GRUCell(N_IN, size, key=cell_keys[0])
        model = nn.Sequential([cell, eqx.nn.Linear(size, WIDE, key=model_key)])
    else:
        raise ValueError(f"There is no cell {name!r}. Known: {', '.join(NAMES)}.")
    xs = jax.random.bernoulli(x_key, RATE, (steps, batch, n_in)).astype(jnp.float32)
    return Example(model, xs, jax.random.randint(target_key, (steps, batch), 0, n_out))


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A way to the gradient; `algorithm` is `None` for BPTT."""

    name: str
    algorithm: etpc.algorithms.Algorithm | None


def contestants() -> list[Contestant]:
    """All of them. The first is BPTT, the second D-RTRL."""
    return [
        Contestant("BPTT", None),
        Contestant("D-RTRL", D_RTRL()),
        Contestant("D-RTRL, full windows", D_RTRL(backprop="full")),
        Contestant(f"ES-D-RTRL {DECAY}", ES_D_RTRL(decay=DECAY)),
        Contestant(f"ES-D-RTRL rank {RANK}", ES_D_RTRL(rank=RANK)),
    ]


class Gradient:
    """A gradient as one compiled function, from a fresh state and fresh traces.

    It gives the carry too, as a stream goes on: else XLA would leave out the traces of the last window.
    """

    def __init__(
        self,
        problem: Example,
        algorithm: etpc.algorithms.Algorithm | None,
        passes: Collection[str] | None = None,
    ):
        arrays, static = eqx.partition(problem.model, eqx.is_array)
        steps, batch = problem.xs.shape[:2]
        self.window = self.block = self.traces = None
        if algorithm is None:

            def grads(model: Any, xs: Array, targets: Array) -> Any:
                return None, by_hand.bptt(model, xs, targets, loss)[1]

        else:
            x = problem.xs[0, 0]
            program = etpc.compile(problem.model, algorithm, inputs=x, passes=passes)
            gradient = program.value_and_grad(loss, "sum")
            self.window = program.window_for(steps)
            self.block = max((op.block for op in program.plan.ops), default=0)
            self.traces = sum(size for _, size in program.memory(batch).traces)

            def grads(model: Any, xs: Array, targets: Array) -> Any:
                (_, carry), gradients = gradient(model, xs, targets, program.init(batch))
                return carry, gradients

        @jax.jit
        def run(arrays: Any, xs: Array, targets: Array) -> Any:
            carry, gradients = grads(eqx.combine(arrays, static), xs, targets)
            flat = jax.tree.leaves_with_path(gradients)
            return {jax.tree_util.keystr(path): g for path, g in flat}, carry

        self._arguments = arrays, problem.xs, problem.targets
        self._run = run.lower(*self._arguments).compile()

    def __call__(self) -> Mapping[str, Array]:
        return self._run(*self._arguments)[0]

    @property
    def compiled(self) -> jax.stages.Compiled:
        return self._run


def run(
    console: Console,
    sizes: Sequence[int],
    steps: int,
    batch: int,
    repeats: int,
    only: Collection[str] | None = None,
    peer_size: int = 128,
) -> list[dict[str, Any]]:
    """A row for each cell and contestant at each size; `only` some cells, or all.

    The peer, which takes up to half a minute for a gradient of larger ones, takes part up to `peer_size`.
    """
    names = [name for name in NAMES if only is None or name in only]
    console.print(f"\ncells: B={batch} T={steps}")
    rows = []
    for size in sizes:
        size_rows = []
        for name in names:
            if name == "task of 64 GIF" and size != sizes[0]:  # which has a size of its own
                continue
            problem = example(name, size, steps, batch)
            of_cell, bptt = _cell(problem, repeats)
            if size <= peer_size:
                of_cell += _of_peer(name, problem, size, bptt, repeats)
            size_rows += [{"cell": name, **row} for row in of_cell]
            said = ", ".join(
                f"{row['name']} {row['to_bptt']:.2f}" for row in size_rows if row["cell"] == name
            )
            console.print(f"  N={size} {name}: {said}")
        size_rows += _means(size_rows)
        TABLE.show(console, size_rows, f"N={size} B={batch} T={steps}")
        rows += [{"size": size, "batch": batch, "steps": steps, **row} for row in size_rows]
    return rows


def _cell(problem: Example, repeats: int) -> tuple[list[dict[str, Any]], Gradient]:
    """A row for each contestant, and the first of them, BPTT."""
    field = contestants()
    calls: list[Any] = [Gradient(problem, c.algorithm) for c in field]
    results = [jax.block_until_ready(call()) for call in calls]
    rows = []
    taken = measure.interleaved(calls, repeats)
    for contestant, call, result, times in zip(field, calls, results, taken, strict=True):
        to_bptt = _difference(result, results[0])
        row = {
            "name": contestant.name,
            "window": call.window,
            "block": calls[1].block,
            "temp": measure.memory(call.compiled)["temp"],
            **times,
            "to_bptt": times["min_ms"] / taken[0]["min_ms"],
            "error_bptt": to_bptt["error"],
            "cosine_bptt": to_bptt["cosine"],
        }
        if "D-RTRL" in contestant.name and "full" not in contestant.name:
            row["error_d_rtrl"] = _difference(result, results[1])["error"]
        rows.append(row)
    return rows, calls[0]


def _of_peer(
    name: str, problem: Example, size: int, bptt: Callable[[], Any], repeats: int
) -> list[dict[str, Any]]:
    """Its gradients of a cell of the same kind, timed in turns with BPTT, where it has one.

    Its parameters are laid out another way, and drawn by itself: there is no error to compare.
    """
    if not peer.available() or name not in (*peer.CELLS, *peer.NEURONS):
        return []
    options: dict[str, dict[str, Any]] = {
        "braintrace D-RTRL": dict(algorithm="d_rtrl"),
        f"braintrace ES-D-RTRL {DECAY}": dict(algorithm="es_d_rtrl", decay_or_rank=DECAY),
    }
    build = lambda: peer.build_cell(name, size)
    programs = [peer.Program(build, problem.xs, mode="vmap", **o) for o in options.values()]
    theirs = [lambda program=program: program(problem.xs, problem.targets) for program in programs]
    for call in theirs:  # which compiles it
        jax.block_until_ready(call())
    taken = measure.interleaved([bptt, *theirs], repeats)
    return [
        {"name": row, **times, "to_bptt": times["min_ms"] / taken[0]["min_ms"]}
        for row, times in zip(options, taken[1:], strict=True)
    ]


def _difference(got: Mapping[str, Array], want: Mapping[str, Array]) -> dict[str, float]:
    """Of the parameters that both have, as one vector."""
    names = [name for name in want if name in got]
    as_one = lambda of: {"all": jnp.concatenate([jnp.ravel(of[name]) for name in names])}
    return measure.difference(as_one(got), as_one(want))["all"]


def _means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over all cells."""
    of_nn = [row for row in rows if row["cell"] in OF_NN]
    means = []
    for name in dict.fromkeys(row["name"] for row in of_nn):
        times = [row["to_bptt"] for row in of_nn if row["name"] == name]
        mean = math.exp(sum(map(math.log, times)) / len(times))
        means.append({"cell": f"mean of {len(times)}", "name": name, "to_bptt": mean})
    return means
