"""Which traces are sums of filtered inputs, whatever the parameters and the data are.

A trace moves as `eps_o' = D_o eps_o + F_o x`, for each output o. Outputs with equal D and F have equal
traces, also while the weights move. Where only D is equal and an entry of F depends on parameters alone,
the input filtered by D gives the traces of all these outputs, times their entries of F.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ..algorithms import Backprop, Proved
from ..analyse import Analysis, Pattern, WeightOp, columns_of, trace_dtype
from ..traces import Filtered, Full, Site, size_of
from ._blocks import block_rows, entered, lasting
from ._entries import MOST, Entries
from ._pairs import uses


def filtered(analysis: Analysis, ops: Sequence[WeightOp], backprop: Backprop) -> dict[int, Proved]:
    """The smallest `Filtered` form of each operation that has one smaller than the whole trace, by number."""
    entries: Entries | None = None
    among: dict[bytes, np.ndarray | None] = {}
    found = {}
    for op in ops:
        reach = analysis.reach[op.number]
        if op.kind.data is None or op.kind.links is not None or not reach.closed:
            continue
        block = lasting(analysis, reach.block) if backprop == "cut" else reach.block
        rows = block_rows(block)
        if not 0 < len(rows) <= MOST:
            continue
        entries = entries or Entries(analysis)
        key = rows.tobytes()
        if key not in among:
            among[key] = _transitions(entries, block, rows)
        transition, immediate = among[key], _immediate(entries, op, rows)
        if transition is None or immediate is None:
            continue
        site = Site(op.kind, len(rows), trace_dtype(analysis, op))
        forms = list(_forms(site, entries, rows >= 0, transition, immediate))
        form = min(forms, key=lambda form: size_of(form, site))
        if size_of(form, site) < size_of(Full(), site):
            found[op.number] = Proved(form, size_of(form, site))
    return found


def _transitions(entries: Entries, block: Pattern, rows: np.ndarray) -> np.ndarray | None:
    """D of each output as numbers, [m * m, O]."""
    compressed = entries.transition(columns_of(block))
    if compressed is None:
        return None
    m, outputs = rows.shape
    used = uses(rows, entries.analysis.transition)
    numbers = np.full((m, m, outputs), entries.none)
    numbers[used.after, used.before, used.output] = compressed.at(used.new, used.old)
    return numbers.reshape(m * m, outputs)


def _immediate(entries: Entries, op: WeightOp, rows: np.ndarray) -> np.ndarray | None:
    """F of each output as numbers, [m, O]."""
    compressed = entries.immediate(op.number)
    if compressed is None:
        return None
    place, output = np.nonzero(entered(rows, entries.analysis.immediate[op.number]))
    numbers = np.full(rows.shape, entries.none)
    numbers[place, output] = compressed.at(rows[place, output], output)
    return numbers


def _forms(
    site: Site,
    entries: Entries,
    present: np.ndarray,
    transition: np.ndarray,
    immediate: np.ndarray,
) -> Iterable[Filtered]:
    """The form with the entries of F that depend on no data taken out of the sum, and the one without."""
    groups = site.kind.groups
    by_data = entries.numbering.by_data(immediate).any(1)
    in_use = (immediate != entries.none).any(1)
    for apart in {tuple(np.flatnonzero(~by_data & in_use)), ()}:
        inside = np.setdiff1d(np.arange(len(immediate)), apart)
        classes = _classes([present, transition, immediate[inside]], groups)
        columns = tuple(int(n) for n in apart if not _equal(classes, immediate[n]))
        shared = bool(in_use[np.setdiff1d(np.arange(len(immediate)), columns)].any())
        form = Filtered(classes, columns, shared)
        numbers = _distinct(transition[:, form.first.reshape(-1)])
        yield Filtered(classes, columns, shared, len(np.unique(numbers, axis=1).T) == 1)


def _classes(tables: Sequence[np.ndarray], groups: int) -> tuple[tuple[int, ...], ...]:
    """The class of each output of each group: outputs of one class have equal columns of the tables."""
    columns = np.concatenate([_distinct(table) for table in tables])
    by_group = np.split(columns, groups, 1)
    numbered = [np.unique(part, axis=1, return_inverse=True)[1] for part in by_group]
    return tuple(tuple(map(int, numbers.reshape(-1))) for numbers in numbered)


def _distinct(table: np.ndarray) -> np.ndarray:
    """The numbers, where each element that was not followed gets a number of its own."""
    numbers = table.astype(np.int64)
    unknown = numbers < 0
    numbers[unknown] = -1 - np.arange(unknown.sum())
    return numbers


def _equal(classes: tuple[tuple[int, ...], ...], row: np.ndarray) -> bool:
    """Whether all outputs of a class have the same number."""
    pairs = {(g, c) for g, of_group in enumerate(classes) for c in of_group}
    numbers = _distinct(row).reshape(len(classes), -1)
    seen = {
        (g, c, int(n))
        for g, of_group in enumerate(classes)
        for c, n in zip(of_group, numbers[g], strict=True)
    }
    return len(seen) == len(pairs)


__all__ = ["filtered"]
