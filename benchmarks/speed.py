"""How long does a gradient take, and how wrong is it?

Every contestant computes the gradient of the same sequence from the same weights, as one compiled
function that starts from a fresh state. They are timed in turns. `compile` is from nothing to the
first result. An error is the norm of the difference over the norm of the reference.
"""

import dataclasses
import functools as ft
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
from rich.console import Console

import etpc
from benchmarks import measure, network, peer
from benchmarks.network import Problem
from benchmarks.table import Column, Table, mebibytes, ratio, seconds
from etpc import D_RTRL, ES_D_RTRL, SnAp

Window = int | Literal["auto"]

DECAY = 0.9
WINDOWS: tuple[Window, ...] = (1, 10, 25, 50, "auto")
RANKS = (1, 4, 8)

TABLE = Table(
    "How long does a gradient take, and how wrong is it?",
    [
        Column("name", "contestant"),
        Column("min_ms", "min\nms", ".2f"),
        Column("median_ms", "median\nms", ".2f"),
        Column("to_bptt", "time to\nBPTT", ratio),
        Column("to_peer", "time to\nbraintrace", ratio),
        Column("bytes", "temp + arg\nMiB", mebibytes),
        Column("compile_s", "compile\ns", seconds),
        Column("error_bptt", "error to\nBPTT", ".2g"),
        Column("cosine_bptt", "cosine\nto BPTT", ".4f"),
        Column("error_d_rtrl", "error to\nD-RTRL", ".2g"),
        Column("error_rule", "error to\nits rule", ".2g"),
    ],
    [
        "time to braintrace: to its default mode of the same algorithm.",
        "error to BPTT and to D-RTRL: of the hidden weights.",
        (
            "error to its rule: to etpc's first other way to the same gradient, the largest of any "
            "parameter."
        ),
        "full windows: reverse mode inside a window, as in braintrace's windows.",
        (
            "Under ES-D-RTRL etpc keeps the full trace of a bias, which is no larger, and an exact one of the "
            "readout, whose outputs share their leak; braintrace smooths both: they are left out where "
            "the two are compared."
        ),
        "braintrace's windows of ES-D-RTRL count calls, not steps, in the correction of their decay.",
    ],
)


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A way to the gradient. Two with the same `rule` compute the same gradient by definition."""

    name: str
    build: Callable[[Problem], Any]
    algorithm: str
    rule: str


def contestants(
    windows: Sequence[Window], ranks: Sequence[int], snap: bool
) -> Iterator[Contestant]:
    """All of them. The first is BPTT."""
    yield Contestant("BPTT", network.bptt, "BPTT", "BPTT")
    yield Contestant("BPTT, checkpoints", ft.partial(network.bptt, checkpoint=True), "BPTT", "BPTT")
    for window in windows:
        yield _etpc(f"etpc D-RTRL W={window}", D_RTRL(window=window), "D-RTRL", "D-RTRL")
    for window in windows:
        rule = f"ES-D-RTRL {DECAY}"
        yield _etpc(
            f"etpc {rule} W={window}", ES_D_RTRL(decay=DECAY, window=window), "ES-D-RTRL", rule
        )
    for rank in ranks:
        name = f"ES-D-RTRL rank {rank} W=10"
        yield _etpc(f"etpc {name}", ES_D_RTRL(rank=rank, window=10), "ES-D-RTRL", name)
    if snap:
        yield _etpc("etpc SnAp(1)", SnAp(1), "SnAp", "SnAp(1)")
    longer = [w for w in windows if isinstance(w, int) and w > 1]
    for window in longer:
        rule = f"D-RTRL full windows W={window}"
        yield _etpc(f"etpc {rule}", D_RTRL(window=window, backprop="full"), "D-RTRL", rule)
    for window in longer:
        rule = f"ES-D-RTRL {DECAY} full windows W={window}"
        algorithm = ES_D_RTRL(decay=DECAY, window=window, backprop="full")
        yield _etpc(f"etpc {rule}", algorithm, "ES-D-RTRL", rule)
    if peer.available():
        yield from _peers("D-RTRL", "D-RTRL", longer, algorithm="d_rtrl")
        options = {"algorithm": "es_d_rtrl", "decay_or_rank": DECAY}
        yield from _peers("ES-D-RTRL", f"ES-D-RTRL {DECAY}", longer, **options)


def _peers(family: str, rule: str, windows: Sequence[int], **options: Any) -> Iterator[Contestant]:
    for mode in ("vmap", "batch"):
        build = ft.partial(peer.Gradient, mode=mode, **options)
        yield Contestant(f"braintrace {rule} {mode}", build, family, rule)
    for window in windows:
        build = ft.partial(peer.Gradient, mode="window", window=window, **options)
        name = f"braintrace {rule} window W={window}"
        yield Contestant(name, build, family, f"{rule} full windows W={window}")


def _etpc(name: str, algorithm: etpc.algorithms.Algorithm, family: str, rule: str) -> Contestant:
    return Contestant(name, ft.partial(network.online, algorithm=algorithm), family, rule)


def run(
    console: Console,
    sizes: Sequence[int],
    steps: int,
    batch: int,
    repeats: int,
    windows: Sequence[Window] = WINDOWS,
    ranks: Sequence[int] = RANKS,
    snap_size: int = 128,
) -> list[dict[str, Any]]:
    """A row for each contestant at each size.

    SnAp, whose traces hold all states that a weight reaches, takes part up to `snap_size`.
    """
    _import_everything()
    rows = []
    for size in sizes:
        problem = Problem.make(size, steps, batch)
        about = (
            f"N={size} B={batch} T={steps}, {problem.firing_rate():.3f} spikes per neuron and step"
        )
        console.print(f"\nspeed: {about}")
        field = list(contestants(windows, ranks, size <= snap_size))
        measured = _measure(console, problem, field, repeats)
        TABLE.show(console, measured, about)
        rows += [{"size": size, "batch": batch, "steps": steps, **row} for row in measured]
    return rows


def _import_everything() -> None:
    """So that the first contestant does not pay for what the libraries load when first used."""
    problem = Problem.make(4, 2, 2)
    network.online(problem, D_RTRL())()
    if peer.available():
        peer.Gradient(problem, "d_rtrl", "vmap")()


def _measure(
    console: Console, problem: Problem, field: list[Contestant], repeats: int
) -> list[dict[str, Any]]:
    gradients, results, rows = [], [], []
    for contestant in field:
        gradient, building = measure.timed(lambda c=contestant: c.build(problem))
        result, first = measure.timed(gradient)
        jax.block_until_ready(gradient())  # braintrace compiles again when it is called again
        gradients.append(gradient)
        results.append(result)
        size = measure.memory(gradient.lowered().compile())
        rows.append(
            {
                "name": contestant.name,
                "algorithm": contestant.algorithm,
                "rule": contestant.rule,
                "compile_s": building + first,
                "bytes": size["temp"] + size["argument"],
                "memory": size,
            }
        )
        console.print(f"  {contestant.name}: first result after {building + first:.2f} s")
    for row, taken in zip(rows, measure.interleaved(gradients, repeats), strict=True):
        row |= taken
    _compare(field, results, rows)
    return rows


def _compare(field: list[Contestant], results: list[Any], rows: list[dict[str, Any]]) -> None:
    rules = [c.rule for c in field]
    bptt, d_rtrl = 0, rules.index("D-RTRL")
    ours = [j for j, c in enumerate(field) if not c.name.startswith("braintrace")]
    for i, (contestant, row) in enumerate(zip(field, rows, strict=True)):
        row["to_bptt"] = row["min_ms"] / rows[bptt]["min_ms"]
        for other in rows:
            if other["algorithm"] == row["algorithm"] and other["name"].endswith(" vmap"):
                row["to_peer"] = row["min_ms"] / other["min_ms"]
        row["to_bptt_by_parameter"] = measure.difference(results[i], results[bptt])
        weight = row["to_bptt_by_parameter"]["hidden.weight"]
        row["error_bptt"], row["cosine_bptt"] = weight["error"], weight["cosine"]
        if contestant.algorithm.endswith("D-RTRL") and "full" not in contestant.rule:
            to_d_rtrl = measure.difference(results[i], results[d_rtrl])
            row["error_d_rtrl"] = to_d_rtrl["hidden.weight"]["error"]
        same = [j for j in ours if rules[j] == contestant.rule and j != i]
        if same:
            to_rule = measure.difference(results[i], results[same[0]])
            row["reference"] = field[same[0]].name
            row["to_rule_by_parameter"] = to_rule
            row["error_rule"] = max(
                d["error"] for name, d in to_rule.items() if name not in _left_out(contestant)
            )


def _left_out(contestant: Contestant) -> tuple[str, ...]:
    """The parameters that etpc and the peer treat differently by definition."""
    smoothed = contestant.algorithm == "ES-D-RTRL" and contestant.name.startswith("braintrace")
    return ("hidden.bias", "readout.weight") if smoothed else ()
