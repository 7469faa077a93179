"""The numbers of the record that pages quote, with the words around them.

In a quote `{}` stands for what is taken from the record. `python -m benchmarks.pages` writes it into the page, and a
test says where a page has something else, and which numbers of the page of benchmarks no quote has.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import cells, record
from examples.published import study

ROOT = Path(__file__).parent.parent
PAGE, COMPARISON, README = "docs/benchmarks.md", "docs/comparison.md", "README.md"
CHOOSE = "docs/choose.md"
SIZES = (128, 512)
Row = dict[str, Any]


class Quote(NamedTuple):
    """Words of a page, and the values of their `{}`, as they are written. Words are first and last."""

    page: str
    text: str
    values: Sequence[str]

    def found(self, page: str) -> list[re.Match[str]]:
        """Where the page has the words, with any values. Lines may break anywhere."""
        parts = (r"\s+".join(map(re.escape, part.split(" "))) for part in self.text.split("{}"))
        return list(re.finditer(r"([^|]{1,40}?)".join(parts), page))

    def written(self, page: str) -> str:
        """The page with the values. Raises `ValueError` where it has no such words, or has them twice."""
        if len(matches := self.found(page)) != 1:
            raise ValueError(f"{self.page} should have once, not {len(matches)} times: {self.text}")
        for n, value in reversed([*enumerate(self.values, 1)]):
            start, end = matches[0].span(n)
            if page[start:end].split() != value.split():
                page = page[:start] + value + page[end:]
        return page


class Record:
    """The rows of the record."""

    def __init__(self, runs: Iterable[record.Run]):
        self.runs = list(runs)

    def rows(self, benchmark: str, **keys: Any) -> list[Row]:
        rows = [row for run in self.runs if run.benchmark == benchmark for row in run.rows]
        return [row for row in rows if all(row.get(key) == keys[key] for key in keys)]

    def named(self, benchmark: str, key: str = "name", **keys: Any) -> dict[Any, Row]:
        return {row[key]: row for row in self.rows(benchmark, **keys)}

    def on(self, benchmark: str, *names: str) -> list[str]:
        """What it was measured on: cores, processor and jaxlib, or what is asked for."""
        run = next(run for run in self.runs if run.benchmark == benchmark)
        return [run.environment[name] for name in names or ("cores", "cpu", "jaxlib")]


def short(value: float) -> str:
    """A number in two digits, or all that are in front of the point."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:#.2g}".rstrip(".")


def percent(value: float) -> str:
    return f"{short(100 * value)} %" if value > 1e-5 else "0"


def all_short(*values: float) -> list[str]:
    return [short(value) for value in values]


def ends(values: Iterable[float]) -> list[str]:
    """The least and the most."""
    ordered = sorted(values)
    return all_short(ordered[0], ordered[-1])


def quotes(of: Record) -> Iterator[Quote]:
    """All of them."""
    for part in (_network, _rules, _cells, _steps, _windows_and_ranks, _other_libraries):
        yield from part(of)
    yield from _published()


def _network(of: Record) -> Iterator[Quote]:
    """The tables of one network."""
    speed = of.named("speed", size=512)
    yield Quote(PAGE, "batch 32, on {} cores of an {} with jaxlib {}. The error", of.on("speed"))
    yield Quote(COMPARISON, "batch 32, {} cores of an {}, jaxlib {};", of.on("speed"))
    rules = ("etpc D-RTRL W=auto", "etpc D-RTRL W=10", "BPTT", "braintrace D-RTRL vmap")
    values = [of.on("speed")[0], *all_short(*(speed[rule]["min_ms"] for rule in rules))]
    text = "On {} CPU cores, a gradient of 512 recurrent LIF neurons (T = 50, batch 32) takes {} ms by D-RTRL ({} ms"
    text = f"{text} in windows of 10), {{}} ms by BPTT, and {{}} ms by D-RTRL in braintrace {{}} ([compared"
    yield Quote(README, text, [*values, *of.on("speed", "braintrace")])
    cosine = short(speed["etpc D-RTRL W=10"]["cosine_bptt"])
    yield Quote(COMPARISON, "exact gradient; D-RTRL has a cosine of {} with it)", [cosine])
    for label, name in {
        "BPTT": "BPTT",
        "`etpc`, `D_RTRL(window=10)`": "etpc D-RTRL W=10",
        "`etpc`, `D_RTRL()`, which takes one window of all 50 steps": "etpc D-RTRL W=auto",
        '`etpc`, `D_RTRL(window=10, backprop="full")`': "etpc D-RTRL full windows W=10",
        "`etpc`, `ES_D_RTRL(rank=4, window=10)`": "etpc ES-D-RTRL rank 4 W=10",
        "`etpc`, `ES_D_RTRL(decay=0.9, window=10)`": "etpc ES-D-RTRL 0.9 W=10",
        "braintrace {}, D-RTRL, default mode": "braintrace D-RTRL vmap",
        "braintrace {}, D-RTRL, `batch` mode": "braintrace D-RTRL batch",
        "braintrace {}, ES-D-RTRL 0.9, default mode": "braintrace ES-D-RTRL 0.9 vmap",
        "braintrace {}, ES-D-RTRL 0.9, `batch` mode": "braintrace ES-D-RTRL 0.9 batch",
    }.items():
        row, version = speed[name], of.on("speed", "braintrace") if "{}" in label else []
        ms, to_bptt, size = all_short(row["min_ms"], row["to_bptt"], row["bytes"] / 2**20)
        error = percent(row["error_d_rtrl"]) if "error_d_rtrl" in row else "-"
        yield Quote(
            PAGE, f"| {label} | {{}} | {{}} | {{}} | {{}} |", [*version, ms, to_bptt, size, error]
        )
        if name == "BPTT":
            yield Quote(COMPARISON, "| BPTT | {} | (it", [ms])
        elif "full" not in name and "auto" not in name:
            yield Quote(COMPARISON, f"| {label} | {{}} | {{}} |", [*version, ms, error])


def _rules(of: Record) -> Iterator[Quote]:
    """What was found about the rules on that network."""
    speed = {size: of.named("speed", size=size) for size in SIZES}

    def ratios(*pairs: tuple[str, str]) -> list[str]:
        """How many times as long one takes as another, at each size."""
        ms = lambda name, size: speed[size][name]["min_ms"]
        return all_short(*(ms(a, size) / ms(b, size) for a, b in pairs for size in SIZES))

    errors = lambda name: [100 * speed[size][name]["error_d_rtrl"] for size in SIZES]
    whole, full = "etpc D-RTRL W=10", "etpc D-RTRL full windows W=10"
    theirs, windows = "braintrace D-RTRL vmap", "braintrace D-RTRL window W=10"
    yield Quote(
        PAGE,
        "in windows of 10 takes {} and {} times as long as BPTT at N = 128 and 512. In the default mode of braintrace "
        "{} it takes {} and {} times as long as here, in its windows of 10 steps {} and {} times, and {} and {} times "
        "as long as in full windows, which give the same gradient.",
        [
            *ratios((whole, "BPTT")),
            *of.on("speed", "braintrace"),
            *ratios((theirs, whole), (windows, whole), (windows, full)),
        ],
    )
    decay, theirs = "etpc ES-D-RTRL 0.9 W=10", "braintrace ES-D-RTRL 0.9 vmap"
    yield Quote(
        PAGE,
        "takes {} and {} times as long as BPTT in windows of 10, and {} and {} times step by step; the default mode of "
        "braintrace, which goes step by step, {} and {} times.",
        ratios((decay, "BPTT"), ("etpc ES-D-RTRL 0.9 W=1", "BPTT"), (theirs, "BPTT")),
    )
    ranks = [max(errors(f"etpc ES-D-RTRL rank {rank} W=10")) for rank in (1, 4)]
    text = "of 1 is {} % from D-RTRL's gradient on this network, one of 4 {} %; the decay is {} % from it."
    yield Quote(PAGE, text, all_short(*ranks, max(errors(decay))))
    temp = lambda *names: [row["temp"] for name in names for row in of.rows("memory", name=name)]
    online = ends(size / 2**20 for size in temp("etpc D-RTRL W=auto", "etpc D-RTRL W=1"))
    decay = short(max(temp("etpc ES-D-RTRL 0.9 W=1")) / 2**20)
    bptt = all_short(temp("BPTT")[1] / 2**20, temp("BPTT")[-1] / 2**30)  # of 500 steps, and of all
    text = "not grow with T: {} to {} MiB beside the carry for D-RTRL from T = 50 to 50,000, {} MiB for ES-D-RTRL"
    yield Quote(PAGE, text, [*online, decay])
    yield Quote(PAGE, "BPTT needs {} GiB at the end.", bptt[1:])
    yield Quote(COMPARISON, "(measured: {} MiB at T = 500, {} GiB at 50,000)", bptt)
    reference = "[the reference network](benchmarks.md#how-it-was-measured)"
    yield Quote(CHOOSE, f"needs {{}} MiB for {reference} at T = 500, and {{}} GiB at T", bptt)
    first = {name: row["first_s"] for name, row in of.named("compile").items()}
    ours = [first["etpc D-RTRL"], first["etpc ES-D-RTRL rank 4"]]
    theirs = ends(value for name, value in first.items() if "braintrace" in name)
    text = "of this network takes {} s with D-RTRL and {} s with rank 4 at N = 128, {} s with BPTT and {} to {} s with"
    yield Quote(PAGE, text, [*all_short(*ours, first["BPTT"]), *theirs])
    yield Quote("docs/limits.md", "compiles it: {} to {} s for the", all_short(*ours))


def _cells(of: Record) -> Iterator[Quote]:
    """The means over cells, and their ranges."""
    yield Quote(
        PAGE, "and a linear readout, on {} cores of an {} with jaxlib {}. | geo", of.on("cells")
    )
    rules, means = ["D-RTRL", "D-RTRL, full windows", "ES-D-RTRL rank 4", "ES-D-RTRL 0.9"], {}
    for n in SIZES:
        rows = of.rows("cells", size=n)
        named = {row["name"]: row["to_bptt"] for row in rows if row["cell"].startswith("mean of")}
        means[n] = [named[rule] for rule in rules]
        yield Quote(PAGE, f"| N = {n} | {{}} | {{}} | {{}} | {{}} |", all_short(*means[n]))
        d_rtrl = [row for row in rows if row["name"] == "D-RTRL" and row["cell"] in cells.OF_NN]
        one, two, four = (
            ends(row["to_bptt"] for row in d_rtrl if row["block"] in blocks)
            for blocks in ((0, 1), (2,), (4,))
        )
        text = "{} to {} times BPTT's time with one state at most, {} to {} times with two and {} times with four"
        text = f"at N = {n} {text}"
        yield Quote(PAGE, text, [*one, *two, four[0]])
        if n == SIZES[0]:
            text = "Over {} kinds of cells at N = 128, D-RTRL takes {} times as long as BPTT in the geometric mean"
            text = f"{text} ({{}} to {{}}),"
            values = [str(len(d_rtrl)), short(means[n][0]), *ends(row["to_bptt"] for row in d_rtrl)]
            yield Quote(COMPARISON, text, values)
    text = "with full windows {}, ES-D-RTRL of rank 4 {} and with a decay {}; at N = 512 it is {}, {}, {} and {} ([all"
    yield Quote(COMPARISON, text, all_short(*means[128][1:], *means[512]))
    theirs = ends(row["to_bptt"] for row in of.rows("cells", size=128, name="braintrace D-RTRL"))
    yield Quote(
        PAGE,
        "D-RTRL of braintrace {} takes {} to {} times",
        [*of.on("cells", "braintrace"), *theirs],
    )
    full = ends(means[n][1] / means[n][0] for n in SIZES)
    yield Quote(CHOOSE, "cut inside a window | {} to {}x slower in the mean", full)


def _steps(of: Record) -> Iterator[Quote]:
    """An update at every step."""
    rows = of.rows("step", size=128)
    yield Quote(PAGE, "On {} cores of an {} with jaxlib {}. A decay", of.on("step"))
    for cell in dict.fromkeys(row["cell"] for row in rows):
        pair = of.named("step", "batch", size=128, cell=cell)
        values = [
            pair[batch][key] for batch in (1, 16) for key in ("hand_us", "etpc_us", "to_hand")
        ]
        yield Quote(
            PAGE, f"| {cell} | {{}} | {{}} | {{}} | | {{}} | {{}} | {{}} |", all_short(*values)
        )
    ratios = lambda one, other: ends(row[f"{one}_us"] / row[f"{other}_us"] for row in rows)
    yield Quote(
        PAGE, "step** takes {} to {} times as long as the same rule", ratios("etpc", "hand")
    )
    text = "A decay takes {} to {} times D-RTRL's time, and {} to {} times that of TBPTT(1),"
    yield Quote(PAGE, text, [*ratios("decay", "etpc"), *ratios("decay", "tbptt")])
    yield Quote(PAGE, "of 4 takes {} to {} times D-RTRL's time: its", ratios("rank", "etpc"))


def _windows_and_ranks(of: Record) -> Iterator[Quote]:
    """The tables on the page about choosing."""
    speed = {size: of.named("speed", size=size) for size in SIZES}
    for label, name, windows in (
        ("D-RTRL | {} |", "etpc D-RTRL W={}", (1, 10, 25, 50)),
        ('D-RTRL, `"full"` | - |', "etpc D-RTRL full windows W={}", (10, 25, 50)),
        ("ES-D-RTRL, decay 0.9 | {} |", "etpc ES-D-RTRL 0.9 W={}", (1, 10, 25, 50)),
    ):
        values = [speed[512][name.format(window)]["to_bptt"] for window in windows]
        yield Quote(CHOOSE, f"| {label} {{}} | {{}} | {{}} |", all_short(*values))
    ms = [speed[512][f"etpc D-RTRL W={window}"]["min_ms"] for window in (1, 10)]
    yield Quote(CHOOSE, "at N = 512 it is {}x faster with W = 10.", [short(ms[0] / ms[1])])
    for network, label in {
        "LIF": "LIF, hard reset",
        "current LIF": "LIF with synaptic currents",
        "adaptive LIF": "adaptive LIF",
        "gated": "gated rates",
    }.items():
        rows = of.named("low-rank", "rule", network=network)
        errors = [rows[f"rank {rank}"]["error_d_rtrl"] for rank in (1, 2, 4, 8, 16)]
        errors += [min(row["error_d_rtrl"] for rule, row in rows.items() if "decay" in rule)]
        yield Quote(CHOOSE, f"| {label} |" + " {} |" * 6, [percent(error) for error in errors])
    names = [*(f"etpc ES-D-RTRL rank {rank} W=10" for rank in (1, 4, 8)), "etpc ES-D-RTRL 0.9 W=10"]
    errors = [percent(speed[128][name]["error_d_rtrl"]) for name in names]
    yield Quote(CHOOSE, "| the reference network, soft reset | {} | - | {} | {} | - | {} |", errors)
    text = "rank 4 is {} to {} % from D-RTRL with W = 10, and {} to {} % with W = 100 (T = 500;"
    windows = [of.rows("low-rank-windows", window=window) for window in (10, 100)]
    values = [end for rows in windows for end in ends(100 * row["error_4"] for row in rows)]
    yield Quote(CHOOSE, text, values)
    over = of.named("low-rank-windows", "window", network="LIF")
    sizes = all_short(*(over[window]["temp"] / 2**20 for window in (10, 100)))
    yield Quote(
        CHOOSE, "of the first network takes {} MiB with W = 10 and {} MiB with W = 100.", sizes
    )
    lif = of.named("low-rank", "rule", network="LIF")
    errors = [f"{100 * lif[rule]['error_bptt']:.1f} %" for rule in ("rank 4", "full (D-RTRL)")]
    yield Quote(
        CHOOSE, "on the first network it is {} with rank 4 and {} with the whole trace.", errors
    )
    text = (
        "Rank 4 takes {} and {} times as long as BPTT at N = 128 and 512, rank 8 {} and {} times."
    )
    values = [speed[size][name]["to_bptt"] for name in names[1:3] for size in SIZES]
    yield Quote(CHOOSE, text, all_short(*values))


def _other_libraries(of: Record) -> Iterator[Quote]:
    """Modules of brainstate, and Norse."""
    page, rows = "docs/brainstate.md", of.named("interop")
    versions = of.on("interop", "braintrace", "jaxlib")
    yield Quote(page, "braintrace {}, jaxlib {}, the smallest of all repeats", versions)
    for rule, label in (("D-RTRL", "D-RTRL"), ("ES-D-RTRL", "ES-D-RTRL, decay 0.9")):
        ways = [rows[f"{rule}, {way}"] for way in ("Equinox", "brainstate", "braintrace")]
        values = [*all_short(*(way["min_ms"] for way in ways)), f"{ways[1]['error']:.0e}"]
        yield Quote(page, f"| {label} |" + " {} |" * 4, values)
    yield Quote(PAGE, "with Norse {} and PyTorch {}, eager", of.on("norse", "norse", "torch"))
    for name, label in (
        ("BPTT", "BPTT, temporary arrays"),
        ("Norse", "Norse, arrays stored for the backward pass"),
        ("etpc D-RTRL W=10", "`etpc`, `D_RTRL(window=10)`, temporary arrays"),
    ):
        sizes = [row["bytes"] / 2**20 for row in of.rows("norse-memory", name=name)]
        yield Quote(PAGE, f"| {label} |" + " {} |" * 3, all_short(*sizes))
    norse = {size: of.named("norse", size=size) for size in SIZES}
    errors = [
        norse[128][f"Norse, {to}"]["error"] for to in ("to BPTT", "detached, to BPTT, 10 steps")
    ]
    text = "gradient is that of BPTT to {}, and with the state detached every 10 steps that of truncated BPTT to {}."
    yield Quote(PAGE, text, [f"{error:.0e}" for error in errors])
    text = "Its gradient takes {} and {} times as long as our BPTT at N = 128 and 512 (cores: {})."
    times = all_short(*(norse[size]["Norse, to BPTT"]["to_bptt"] for size in SIZES))
    yield Quote(PAGE, text, [*times, *of.on("norse", "cores")])


def _published() -> Iterator[Quote]:
    """The table of published numbers."""
    for name, task, rule, digits, label in (
        (
            "eprop",
            "Pattern generation",
            "loss 1",
            ".12f",
            "e-prop in NEST, pattern generation, first loss",
        ),
        (
            "tmaze",
            "N = 20",
            "RTU",
            ".3f",
            "T-maze in closed loop, N = 20, recurrent trace units, success",
        ),
        ("chaotic_series", "Hénon", "SnAp(1)", ".4f", "Hénon map, SnAp(1), normalised error"),
    ):
        rows = study.load(ROOT / "docs" / "results" / f"{name}.json")
        (row,) = (row for row in rows if task in row.task and row.name == rule)
        ours = sum(row.ours) / len(row.ours)
        yield Quote(
            COMPARISON, f"| {label} | {{}} | {{}} |", [f"{row.published}", f"{ours:{digits}}"]
        )


def write() -> None:
    """Write what is quoted into the pages."""
    for quote in quotes(Record(record.load())):
        path = ROOT / quote.page
        path.write_text(quote.written(path.read_text()))
