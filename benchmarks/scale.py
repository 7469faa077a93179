"""What does an update cost on 1 to 256 chips that are not there, and what follows for 4,096?

Nothing is run. A layer of LIF neurons that read each other is compiled for v5e topologies, once with streams over the
chips and once with hidden units. `benchmarks/cluster.py` makes times of it.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

import etpc
from benchmarks import cluster
from benchmarks.cluster import V5E, Load
from benchmarks.record import Run
from benchmarks.table import Column, Table, mebibytes
from etpc import nn
from etpc.estimating import compiled
from etpc.estimating.chips import place

TOPOLOGIES = {1: "1x1", 4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"}
INPUTS, STEPS = 128, 20
"""Of one update."""
STREAMS, UNITS = 512, 16_384
"""Neurons of the layer whose streams are spread, and of the one that is itself."""
PER_CHIP = (64, 1024, 3907)
"""Streams on each chip; the last are those of 10^6 on 256."""
LARGER = (7813, 10_200, 11_000)
"""Streams on one chip: those of 10^6 on 128, and near the most that it holds."""
BATCH = 4
"""Streams of the large layer."""
LOOP = "jit(_over_mesh)/while/"
"""What the lines of the loop over steps begin with."""
FAST = 128 << 20
"""Bytes of fast memory of a v5e (`etpc/estimating/chips.py`)."""

TABLE = Table(
    "What does an update cost on chips that are not there?",
    [
        Column("by", "over the chips"),
        Column("size", "N"),
        Column("chips", "chips", ",d"),
        Column("batch", "streams", ",d"),
        Column("cycles", "cycles\nan update", ",.0f"),
        Column("held", "arguments\nMiB", mebibytes),
        Column("temp", "temporary\nMiB", mebibytes),
        Column("operations", "collectives", ",d"),
        Column("moved", "bytes\nmoved", ",d"),
        Column("seconds", "compiled\ns", ".0f"),
    ],
    [
        f"One update of {STEPS} steps by D-RTRL and Adam, {INPUTS} inputs, arguments donated, as XLA compiles it.",
        "Bytes are those of each chip; those moved are the results of the collective operations.",
    ],
)


def lif(size: int) -> tuple[Any, Any, jax.Array]:
    """LIF neurons that read each other: shapes of their layers, the step, and the state."""
    neurons, key = nn.LIF(size), jax.random.key(0)
    linear = functools.partial(eqx.nn.Linear, out_features=size, key=key)
    new = lambda: (linear(INPUTS), linear(size, use_bias=False))

    def step(layers: Any, x: jax.Array, V: jax.Array) -> Any:
        inputs, recurrent = layers
        return neurons(inputs(x) + recurrent(neurons.spike(V)), V)

    return eqx.filter_eval_shape(new), step, neurons.init_state()


def lowered(
    topology: str,
    shape: Mapping[str, int],
    size: int,
    batch: int,
    rule: etpc.algorithms.Algorithm,
    steps: int,
    every: int,
    layer: Callable[[int], tuple[Any, Any, jax.Array]] = lif,
) -> tuple[Any, Any, Any]:
    """An update of a layer, lowered for a mesh of chips with axes `streams` or `hidden`, or both; and the shapes of
    model and carry."""
    model, step, state = layer(size)
    of: Any = dict(inputs=jnp.zeros(INPUTS), state=state, step=step, target="tpu", memory=2**60)
    program = etpc.compile(model, rule, **of)
    loss: Any = lambda y, t: jnp.mean((y - t) ** 2)
    alone = etpc.online(program, loss, optax.adam(1e-3), every)
    opt_state, carry = eqx.filter_eval_shape(alone.init, model, batch)
    chips = place(topology).devices[: math.prod(shape.values())]
    axes: Any = {name: name if name in shape else None for name in ("streams", "hidden")}
    spread = alone.over(Mesh(np.array(chips).reshape([*shape.values()]), [*shape]), **axes)
    data = (jax.ShapeDtypeStruct((steps, batch, k), jnp.float32) for k in (INPUTS, size))
    return spread.lower(model, opt_state, carry, *data, donate=True), model, carry


def update(by: str, chips: int, size: int, batch: int) -> compiled.Cost:
    """What an update of a layer costs on each of some chips, with streams or hidden units over them."""
    topology = f"v5e:{TOPOLOGIES[chips]}"
    found, *_ = lowered(topology, {by: chips}, size, batch, etpc.D_RTRL(), STEPS, STEPS)
    return compiled.cost(found.compile())


def run(console: Console, chips: tuple[int, ...] = (*TOPOLOGIES,)) -> list[dict[str, Any]]:
    cases = [("streams", STREAMS, each * n, n) for each in PER_CHIP for n in chips]
    cases += [("streams", STREAMS, each, 1) for each in LARGER]
    cases += [("hidden", UNITS, BATCH, n) for n in chips]
    rows: list[dict[str, Any]] = []
    for by, size, batch, n in cases:
        start = time.perf_counter()
        row: dict[str, Any] = {"by": by, "size": size, "chips": n, "batch": batch}
        try:
            found = update(by, n, size, batch)
        except jax.errors.JaxRuntimeError as error:  # it does not fit
            console.print(f"  {by} on {n}: {str(error).splitlines()[0][:200]}")
            rows.append(row)
            continue
        assert not found.unknown, found.unknown
        kinds = {kind: list(of) for kind, of in found.collectives.items()}
        row |= {
            "cycles": found.cycles,
            "of_steps": sum(n for line, n in found.by_line.items() if line.startswith(LOOP)),
            "held": found.arguments,
            "temp": found.temporary,
            "operations": sum(count for count, _ in kinds.values()),
            "moved": sum(size for _, size in kinds.values()),
            "kinds": kinds,
            "seconds": time.perf_counter() - start,
        }
        rows.append(row)
    TABLE.show(console, rows)
    return rows


# --- what follows ---

CHIPS = (1, 4, 16, 64, 256, 1024, 4096)
FLEET = 10**6
BEGIN, END = "<!-- by `python -m benchmarks.pages` -->", "<!-- to here -->"


def _ms(value: float) -> str:
    return f"{1e3 * value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %"


TIMES = [
    Column("chip", "chip\nms", _ms),
    Column("exchange", "exchange\nms", _ms),
    Column("feed", "host\nms", _ms),
    Column("pauses", "pauses\nms", _ms),
    Column("lost", "failures", _percent),
    Column("update", "update\nms", _ms),
]
LIMIT = Column("limit", "most of it is")
MACHINES = Column("chips", "chips", ",d")
WEAK = Table(
    "",
    [
        MACHINES,
        Column("streams", "streams", ",d"),
        *TIMES,
        Column("rate", "steps of streams\na second", ".3g"),
        LIMIT,
    ],
)
FIXED = Table(
    "",
    [
        MACHINES,
        Column("each", "streams\na chip", ",d"),
        Column("share", "of its\nmemory", ".0%"),
        *TIMES,
        Column("fed", "host feeds up to,\nbytes a step of a stream", ",.0f"),
        LIMIT,
    ],
)
STRONG = Table("", [MACHINES, *TIMES, Column("faster", "than\none chip", ".1f"), LIMIT])
LOST = Table(
    "",
    [
        MACHINES,
        Column("between", "hours between\nfailures", ",.0f"),
        Column("save", "a checkpoint\ntakes, s", ".0f"),
        Column("interval", "best interval,\nmin", ".0f"),
        Column("lost", "time\nlost", _percent),
        Column("copied", "in the background\nit waits, s", ".1f"),
        Column("background", "time\nlost", _percent),
    ],
)
PLAYED = Table(
    "",
    [
        Column("save", "checkpoint\ns", ".0f"),
        Column("restart", "restart\ns", ".0f"),
        Column("between", "between failures\ns", ",.0f"),
        Column("interval", "best interval\ns", ".0f"),
        *(
            Column(f"{what} {factor}", f"{factor:g}x,\n{what}", ".3f")
            for factor in (0.25, 1, 4)
            for what in ("model", "played")
        ),
    ],
)
WAITED = Table(
    "",
    [
        Column("hosts", "hosts", ",d"),
        *(
            Column(f"{what} {case}", f"{case},\n{what}", ".2f")
            for case in ("1 ms", "pauses")
            for what in ("model", "played")
        ),
    ],
)
AGREEMENT = Table(
    "",
    [
        Column("what", "what"),
        Column("by", "from"),
        Column("said", "said", ",.0f"),
        Column("found", "compiled", ",.0f"),
        Column("ratio", "ratio", ".2f"),
    ],
)

OF_PLAYED = """\
How many times as long a job takes that has 4,000 failures, with checkpoints at a quarter of the best interval, at it,
and at four times as much."""
OF_WAITED = f"""\
How many ms an update of 20 ms waits for the slowest of some hosts, whose times differ by a standard deviation of 1 ms;
and with pauses of {V5E.pause} s too, which a host has with a probability of {V5E.pauses} in a second."""


class Compiled:
    """The rows of the record, and what the model reads between them."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        self.streams = {
            (r["chips"], r["batch"] // r["chips"]): r for r in rows if r["by"] == "streams"
        }
        self.units = {r["chips"]: r for r in rows if r["by"] == "hidden"}
        self.most = max(chips for chips, _ in self.streams)

    def between(self, key: str, each: float) -> float:
        """A value for so many streams on a chip: on the line through those that were compiled."""
        found = sorted(
            (per, row[key]) for (chips, per), row in self.streams.items() if chips == self.most
        )
        sizes, values = zip(*found, strict=True)
        if each > sizes[-1]:
            slope = (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
            return values[-1] + slope * (each - sizes[-1])
        return float(np.interp(each, sizes, values))

    def of_streams(self, chips: int, each: int) -> Load:
        held = self.between("held", each)
        data = 4 * STEPS * each * (INPUTS + STREAMS)
        gradient = 4 * STREAMS * (STREAMS + INPUTS + 1)
        return Load(
            cycles=self.between("cycles", each),
            reads=4
            * STEPS
            * each
            * (INPUTS + 1),  # a stream has inputs, and a target of one number
            saves=held - data,
            reduces=(1, gradient) if chips > 1 else (0, 0),
        )

    def cycles_of_units(self, chips: int) -> float:
        """What one chip takes, divided evenly. The products of a step are faster where a chip's weights lie in its
        fast memory, and take some time however small they are: by what 16 and 64 chips take."""
        one = self.units[1]
        steps = one["of_steps"] / chips
        if 4 * UNITS * (UNITS + INPUTS) / chips <= FAST:
            some, more = self.units[16]["of_steps"], self.units[64]["of_steps"]
            divided = (some - more) / (1 / 16 - 1 / 64)
            steps = divided / chips + some - divided / 16
        return (one["cycles"] - one["of_steps"]) / chips + steps

    def of_units(self, chips: int) -> Load:
        """Beyond what was compiled, what the model says of cycles."""
        row = self.units[min(chips, max(self.units))]
        kinds = {kind: (count, size) for kind, (count, size) in row["kinds"].items()}
        more = chips / row["chips"]
        gathers = [
            kinds.get(kind, (0, 0)) for kind in ("all-gather", "all-to-all", "reduce-scatter")
        ]
        return Load(
            cycles=row["cycles"] if chips in self.units else self.cycles_of_units(chips),
            reads=4 * STEPS * BATCH * (INPUTS + 1),
            saves=row["held"] / more,
            reduces=kinds.get("all-reduce", (0, 0)),
            gathers=(sum(n for n, _ in gathers), sum(size for _, size in gathers)),
            passes=kinds.get("collective-permute", (0, 0)),
        )


def _row(chips: int, load: Load, **more: Any) -> dict[str, Any]:
    found = cluster.times(V5E, chips, load)
    lost = 1 - 1 / found.in_background
    return {
        "chips": chips,
        **vars(found),
        "update": found.update,
        "limit": found.limit,
        "lost": lost,
        **more,
    }


def weak(found: Compiled, each: int = 1024) -> list[dict[str, Any]]:
    """So many streams on each chip."""
    rows = [_row(n, found.of_streams(n, each), streams=n * each) for n in CHIPS]
    return [row | {"rate": row["streams"] * STEPS / row["update"]} for row in rows]


def fixed(found: Compiled) -> list[dict[str, Any]]:
    """A million streams on the chips that can hold them, and more."""
    rows: list[dict[str, Any]] = []
    for n in (64, 128, 256, 512, 1024, 4096):
        each = -(-FLEET // n)
        share = (found.between("held", each) + found.between("temp", each)) / V5E.memory
        row = _row(n, found.of_streams(n, each), each=each, share=share)
        work = row["chip"] + row["exchange"]
        row["fed"] = work * V5E.network / V5E.per_host / (each * STEPS)
        rows.append(
            row
            if share <= 1
            else {"chips": n, "each": each, "share": share, "limit": "it does not fit"}
        )
    return rows


def strong(found: Compiled) -> list[dict[str, Any]]:
    rows = [_row(n, found.of_units(n)) for n in CHIPS]
    return [row | {"faster": rows[0]["update"] / row["update"]} for row in rows]


def lost(found: Compiled, each: int = 3907) -> list[dict[str, Any]]:
    """To failures and checkpoints, with so many streams on each chip."""
    rows: list[dict[str, Any]] = []
    for n in CHIPS:
        load = found.of_streams(n, each)
        t = cluster.times(V5E, n, load)
        rows.append(
            {
                "chips": n,
                "between": V5E.between_failures / n / cluster.HOUR,
                "save": t.save,
                "interval": t.interval / 60,
                "lost": 1 - 1 / t.failures,
                "copied": t.save * V5E.disk / V5E.copy,
                "background": 1 - 1 / t.in_background,
            }
        )
    return rows


def played() -> list[dict[str, Any]]:
    """What failures cost, by the model and played through, at a quarter of the best interval, at it, and at four."""
    rows: list[dict[str, Any]] = []
    for save, restart, between in ((10.0, 30.0, 3600.0), (60.0, 300.0, 7200.0), (5.0, 60.0, 600.0)):
        best = cluster.best_interval(save, between)
        row: dict[str, Any] = dict(save=save, restart=restart, between=between, interval=best)
        for factor in (0.25, 1, 4):
            work, rng = factor * best, np.random.default_rng(0)
            count = int(4000 * between / work)
            row[f"model {factor}"] = cluster.slower(work, save, restart, between)
            row[f"played {factor}"] = cluster.simulated_failures(
                work, save, restart, between, count, rng
            )
        rows.append(row)
    return rows


def waited() -> list[dict[str, Any]]:
    """Milliseconds that an update of 20 ms takes longer: hosts differ by 1 ms, and stand still for 0.1 s as well."""
    rows: list[dict[str, Any]] = []
    for hosts in (8, 64, 512):
        rng, slowest = np.random.default_rng(hosts), cluster.slowest(hosts, 1e-3)
        paused = cluster.paused(hosts, 0.02, V5E.pause, V5E.pauses)
        times = [
            cluster.simulated_stragglers(hosts, 0.02, 1e-3, pause, V5E.pauses, 5000, rng) - 0.02
            for pause in (0.0, V5E.pause)
        ]
        found = {"model 1 ms": slowest, "played 1 ms": times[0]}
        found |= {"model pauses": slowest + paused, "played pauses": times[1]}
        rows.append({"hosts": hosts} | {name: 1e3 * value for name, value in found.items()})
    return rows


def agreement(found: Compiled) -> list[dict[str, Any]]:
    """What the model says of programs that it was not made from, beside those."""
    rows: list[dict[str, Any]] = []
    few, some, many = PER_CHIP
    more, *near = LARGER
    at = lambda each, key: found.streams[found.most, each][key]
    for key, name in (("cycles", "cycles"), ("held", "argument bytes")):
        slope = (at(some, key) - at(few, key)) / (some - few)
        said = at(some, key) + slope * (many - some)
        rows.append(
            dict(
                what=f"{name}, {many:,} streams on each of 256",
                by=f"{few} and {some:,}",
                said=said,
                found=at(many, key),
            )
        )
        said, there = found.between(key, more), found.streams[1, more][key]
        by = f"{some:,} and {many:,}"
        rows.append(dict(what=f"{name}, {more:,} streams on one", by=by, said=said, found=there))
        one = found.streams[1, some][key]
        rows.append(
            dict(
                what=f"{name}, {some:,} streams on each of 256",
                by="one chip",
                said=one,
                found=at(some, key),
            )
        )
        for n in sorted(found.units)[1:]:
            said = found.cycles_of_units(n) if key == "cycles" else found.units[1][key] / n
            origin = "one chip; steps of 16 and 64" if key == "cycles" and n > 4 else "one chip"
            rows.append(
                dict(
                    what=f"{name}, {UNITS:,} units on {n}",
                    by=origin,
                    said=said,
                    found=found.units[n][key],
                )
            )
    holds = lambda each: found.between("held", each) + found.between("temp", each) <= V5E.memory
    said = max(each for each in range(many, 2 * more) if holds(each))
    most = max(each for each in near if "cycles" in found.streams[1, each])
    rows.append(dict(what="streams that one chip holds", by=by, said=said, found=most))
    return [row | {"ratio": row["said"] / row["found"]} for row in rows]


def section(rows: Sequence[Mapping[str, Any]], about: str) -> str:
    """The tables of the page."""
    found = Compiled(rows)
    shown = [r for r in rows if r["by"] == "hidden" or r["batch"] == r["chips"] * PER_CHIP[-1]]
    parts = [
        "### What XLA compiles",
        TABLE.markdown(shown),
        " ".join(TABLE.notes),
        about,
        "### The model beside it",
        AGREEMENT.markdown(agreement(found)),
        "### 1,024 streams on each chip",
        WEAK.markdown(weak(found)),
        f"### {FLEET:,} streams",
        FIXED.markdown(fixed(found)),
        f"### A layer of {UNITS:,} units, {BATCH} streams",
        STRONG.markdown(strong(found)),
        "### Failures and checkpoints",
        LOST.markdown(lost(found)),
        "### Played through",
        OF_PLAYED,
        PLAYED.markdown(played()),
        OF_WAITED,
        WAITED.markdown(waited()),
    ]
    return "\n\n".join(parts)


def written(page: str, runs: Sequence[Run]) -> str:
    """The page with the tables of the record."""
    (run,) = (run for run in runs if run.benchmark == "scale")
    about = ", ".join(
        f"{name} {run.environment[name]}" for name in ("jax", "libtpu") if name in run.environment
    )
    about = f"`{run.command}`, {run.date}, with {about}."
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{section(run.rows, about)}\n\n{END}{rest.split(END)[1]}"
