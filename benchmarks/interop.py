"""Does a model of another library cost anything when it runs?

The reference network is taken twice, with the same weights: in Equinox, and as a module of brainstate by
`etpc.interop.from_brainstate`. Both are compiled by etpc, run in turns in one process, and their gradients are
compared. braintrace's own gradient of the module, in its default mode, stands beside them. It needs braintrace
(`make bench` installs it).
"""

from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console

import etpc
from benchmarks import measure, network, peer
from benchmarks.network import Gradients, Problem
from benchmarks.table import Column, Table, ratio, seconds

DECAY = 0.9
RULES: dict[str, tuple[etpc.algorithms.Algorithm, dict[str, Any]]] = {
    "D-RTRL": (etpc.D_RTRL(), {"algorithm": "d_rtrl"}),
    "ES-D-RTRL": (etpc.ES_D_RTRL(decay=DECAY), {"algorithm": "es_d_rtrl", "decay_or_rank": DECAY}),
}
TABLE = Table(
    "Does a model of another library cost anything when it runs?",
    [
        Column("name", "gradient"),
        Column("min_ms", "min\nms", ".2f"),
        Column("median_ms", "median\nms", ".2f"),
        Column("to_equinox", "time to\nEquinox", ratio),
        Column("compile_s", "compile\ns", seconds),
        Column("error", "error to\nEquinox", ".2g"),
    ],
    [
        (
            "error: the largest of the two matrices, relative to the norm of the gradient; of the hidden one "
            "for braintrace's ES-D-RTRL, which smooths the readout too."
        ),
        "braintrace: its default mode, one step per call.",
    ],
)


def adapted(problem: Problem, algorithm: etpc.algorithms.Algorithm) -> Callable[[], Gradients]:
    """The gradient of the brainstate module's program."""
    import brainstate  # pyright: ignore[reportMissingImports]

    with peer._environment():
        module = peer.build_model(problem)
        brainstate.nn.init_all_states(module)
        model = etpc.interop.from_brainstate(module, problem.xs[0, 0])
    program = etpc.compile(model, algorithm, inputs=problem.xs[0, 0])
    gradient = program.value_and_grad(network.loss, "sum")

    @jax.jit
    def run(model: Any, xs: Any, targets: Any) -> Gradients:
        grads = gradient(model, xs, targets, program.init(problem.batch))[1].params
        return {
            "hidden.weight": grads.linear.weight["weight"].mantissa.T,
            "hidden.bias": grads.linear.weight["bias"].mantissa,
            "readout.weight": grads.readout.W.T,
        }

    return lambda: run(model, problem.xs, problem.targets)


def run(console: Console, size: int, steps: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each gradient."""
    problem = Problem.make(size, steps, batch)
    about = f"N={size} B={batch} T={steps}, {problem.firing_rate():.3f} spikes per neuron and step"
    rows = []
    for rule, (algorithm, options) in RULES.items():
        ways: dict[str, Callable[[], Any]] = {
            "Equinox": lambda a=algorithm: network.online(problem, a),
            "brainstate": lambda a=algorithm: adapted(problem, a),
            "braintrace": lambda o=options: peer.Gradient(problem, mode="vmap", **o),
        }
        calls, rule_rows = [], []
        for name, build in ways.items():
            call, building = measure.timed(build)
            result, first = measure.timed(call)
            jax.block_until_ready(call())  # braintrace compiles again when it is called again
            calls.append(call)
            wrong = measure.difference(result, result if not rule_rows else rule_rows[0]["result"])
            # Under ES-D-RTRL etpc has an exact trace of the readout, whose outputs share their leak.
            smoothed = (rule, name) == ("ES-D-RTRL", "braintrace")
            keys = ("hidden.weight",) if smoothed else ("hidden.weight", "readout.weight")
            error = max(wrong[key]["error"] for key in keys)
            row = {"name": f"{rule}, {name}", "compile_s": building + first, "error": error}
            rule_rows.append({**row, "result": result})
        for row, taken in zip(rule_rows, measure.interleaved(calls, repeats), strict=True):
            row |= taken
            row["to_equinox"] = row["min_ms"] / rule_rows[0]["min_ms"]
            del row["result"]
        rows += rule_rows
    TABLE.show(console, rows, about)
    return [{"size": size, "batch": batch, "steps": steps, **row} for row in rows]
