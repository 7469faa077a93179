"""What an estimate says: records, a table, and in words what limits each rule."""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from ..files.record import record
from ..show import table

ADVICE = {
    "weights and moments": "each device holds them: take a smaller network, or an optimiser with less state",
    "traces and states": "they grow with the batch: take a smaller one, spread it by mesh=, or take a rule with smaller"
    " traces, such as ES_D_RTRL(rank=4)",
    "data": "pass fewer steps at once; the carry of a rule goes on from call to call",
    "temporaries": "they grow with the batch, under BPTT with the steps and under a rule with its window=: take less",
}
"""What takes memory, and what to change where that is most of it."""


@dataclasses.dataclass(frozen=True)
class EstimatedRow:
    """What one rule takes for a sequence. Bytes are those of one device.

    - `name`: the rule, or `"BPTT"` for backpropagation through time.
    - `steps`, `window`: T, and in which windows they are processed; `None` for BPTT.
    - `weights`, `moments`, `data`: bytes of the parameters, of the optimiser's state, and of inputs and targets.
    - `traces`: bytes of all that is carried on: traces and hidden states.
    - `temporary`: bytes beside arguments and results, as XLA lays them out; `None` where there is no program.
    - `peak`: bytes in all, as XLA lays them out; at least so many where there is no program. `None` if not known.
    - `fits`, `over`: whether it does, and by how many bytes not; below zero, how many are left.
    - `cycles`, `to_bptt`: of a step, as XLA estimates them for a TPU, times the trips of loops; relative to BPTT.
    - `kernels`: how many a step launches on a GPU.
    - `collectives`: by kind, how many an update takes, and the bytes of their results.
    - `unknown_loops`: how many loops count once, as the program does not say how often they run.
    - `seconds`: of compilation.
    - `refusal`, `limits`: why there is no program, as XLA or `etpc` says it; in words, what limits it.
    - `largest`: the largest batch that was found to fit, and the smallest that was not; `None` where not asked for.
    """

    name: str
    steps: int
    window: int | None
    weights: int
    moments: int
    traces: int
    data: int
    temporary: int | None = None
    peak: int | None = None
    over: int | None = None
    fits: bool = False
    cycles: float | None = None
    to_bptt: float | None = None
    kernels: float | None = None
    collectives: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0
    seconds: float = 0.0
    refusal: str | None = None
    limits: str = ""
    largest: tuple[int, int | None] | None = None

    @property
    def parts(self) -> dict[str, int]:
        """The bytes of the peak by what they are for."""
        known = self.weights + self.moments, self.traces, self.data
        return dict(zip(ADVICE, (*known, max(0, (self.peak or 0) - sum(known))), strict=True))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The result of [`etpc.estimate`][]. `print` it for a table.

    - `rows`: an [`EstimatedRow`][etpc.EstimatedRow] for BPTT and each rule, for each number of steps.
    - `on`, `chip`: what it is for, and what JAX calls that chip.
    - `devices`: over how many the batch is spread; bytes are those of each.
    - `memory`, `bandwidth`, `source`: of a device, in bytes and in GB/s, and where they are stated.
    - `batch_size`: B, of all devices together; `None` for one example.
    - `versions`: of the packages whose estimate it is.
    """

    rows: tuple[EstimatedRow, ...]
    on: str
    chip: str
    devices: int
    memory: int
    bandwidth: float | None
    source: str
    batch_size: int | None
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """What it says, ready for JSON."""
        return record("etpc-estimate/1", **dataclasses.asdict(self))

    def __str__(self) -> str:
        several = len({row.steps for row in self.rows}) > 1
        cells = {name: [of(row) or "-" for row in self.rows] for name, of in COLUMNS.items()}
        names = [n for n, column in cells.items() if n in ALWAYS or {*column} != {"-"}]
        names = [n for n in names if n != "steps" or several]
        lines = table(names, [list(row) for row in zip(*(cells[n] for n in names), strict=True)])
        steps = "" if several else f"{self.rows[0].steps:,} steps, "
        batch = "one example" if self.batch_size is None else f"batch {self.batch_size:,}"
        spread = f" over {self.devices:,} devices, bytes on each" if self.devices > 1 else ""
        no_times = "; cycles are no times" if any(row.cycles for row in self.rows) else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        below = [f"{row.name}{f', {row.steps:,}' * several}: {row.limits}" for row in self.rows]
        below.append(f"Estimated by XLA for {self.chip} ({versions}). Nothing was run{no_times}.")
        below = [textwrap.fill(text, 110, subsequent_indent="  ") for text in below]
        head = f"{self.on}: {self.chip}, {size_text(self.memory)} for a program; {steps}{batch}{spread}"
        return "\n".join([head, "", *lines, "", *below])

    __repr__ = __str__


def size_text(size: int | None) -> str:
    """Bytes in binary units, to three digits."""
    if size is None:
        return ""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) >= 999.5:
            value, unit = value / 1024, larger
    digits = 0 if unit == "B" or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def _fits(row: EstimatedRow) -> str:
    if row.over is None:
        return "NO"
    return f"NO, {size_text(row.over)} over" if row.over > 0 else f"{size_text(-row.over)} left"


def _collectives(row: EstimatedRow) -> str:
    of = row.collectives.items()
    return "; ".join(f"{count:g} {kind}, {size_text(round(size))}" for kind, (count, size) in of)


def _largest(row: EstimatedRow) -> str:
    fits, does_not = row.largest or (None, None)
    is_near = fits and does_not and does_not <= 1.02 * fits + 1
    return "" if fits is None else f"{'' if is_near or fits == 0 else '>= '}{fits:,}"


COLUMNS: dict[str, Callable[[EstimatedRow], str]] = {
    "rule": lambda row: row.name,
    "steps": lambda row: f"{row.steps:,}",
    "window": lambda row: f"{row.window:,}" if row.window else "",
    "weights": lambda row: size_text(row.weights + row.moments),
    "traces": lambda row: size_text(row.traces),
    "data": lambda row: size_text(row.data),
    "temporary": lambda row: size_text(row.temporary),
    "peak": lambda row: f"{'> ' if row.peak and row.refusal else ''}{size_text(row.peak)}",
    "fits": _fits,
    "cycles/step": lambda row: f"{row.cycles:,.0f}" if row.cycles else "",
    "to BPTT": lambda row: f"{row.to_bptt:.2f}" if row.to_bptt else "",
    "kernels/step": lambda row: f"{row.kernels:.1f}" if row.kernels else "",
    "collectives/update": _collectives,
    "largest batch": _largest,
    "compile s": lambda row: f"{row.seconds:.1f}",
}
ALWAYS = ("rule", "weights", "traces", "data", "temporary", "peak", "fits", "compile s")
