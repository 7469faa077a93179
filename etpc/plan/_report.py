"""What each pass of a plan did, read from the traces before the passes and after them."""

from collections.abc import Iterator, Mapping, Sequence

from ..analyse import Analysis
from ..traces import Filtered, Full, Holomorphic, bytes_of
from ._blocks import Colouring
from ._passes import Change
from ._records import Sketch, TracePlan
from ._window import AT_LEAST

Found = Iterator[tuple[str, Change]]


def changes(
    plain: Sequence[Sketch],
    traces: Mapping[int, TracePlan],
    analysis: Analysis,
    colours: Colouring,
    window: tuple[int, str] | None,
) -> dict[str, tuple[Change, ...]]:
    """What each pass changed, by its name; `window` is the one that was chosen, and why."""
    by_pass: dict[str, list[Change]] = {}
    found = [
        *(item for t in plain for item in _of_trace(t, traces)),
        *_of_columns(analysis, colours),
    ]
    if window is not None and window[0] != AT_LEAST:
        steps, why = window
        found.append(("choose_window", Change("", f"{steps} steps in place of {AT_LEAST}: {why}")))
    for name, change in found:
        by_pass.setdefault(name, []).append(change)
    return {name: tuple(of_pass) for name, of_pass in by_pass.items()}


def _of_trace(t: Sketch, traces: Mapping[int, TracePlan]) -> Found:
    path, size = t.op.path, bytes_of(t.form, t.site)
    if t.op.number not in traces:
        yield "drop_ended", Change(path, "no later step reads its trace", size)
        return
    new = traces[t.op.number]
    if new.block < t.block:
        saved = size - bytes_of(t.form, new.site)
        size -= saved
        text = f"{new.block} of {t.block} states are left"
        yield "drop_unlasting", Change(path, text, saved)
    if new.found.why:
        name = {Filtered: "filtered", Holomorphic: "holomorphic"}[type(new.form)]
        saved = size - bytes_of(new.form, new.own)
        size -= saved
        yield name, Change(path, new.found.why, saved)
    if new.summed:
        yield (
            "share_uses",
            Change(path, f"added to the trace of its use at {_source(new, traces)}", size),
        )
    elif new.beside:
        owner = traces[new.shares or 0].op.path
        yield "join_products", Change(path, f"in the trace of {owner}", size - new.bytes)
    elif new.form == Full(as_complex=True):
        yield "pair_states", Change(path, "two states as one complex number")


def _source(trace: TracePlan, traces: Mapping[int, TracePlan]) -> str:
    return str(traces[trace.shares or 0].op.equation.source)


def _of_columns(analysis: Analysis, colours: Colouring) -> Found:
    for number, columns in colours.columns.items():
        op = analysis.ops[number]
        text = f"{columns.count} Jacobian-vector products in place of a row for each state"
        yield "by_columns", Change(op.path, text)


__all__ = ["changes"]
