"""Which whole traces are a few filtered inputs, whatever the parameters and the data are.

A trace moves as `eps_o' = D_o eps_o + F_o x`, for each output o. Outputs with equal D and F have equal
traces, also while the weights move, and one of them is enough.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from ..analyse import Analysis, Pattern, WeightOp, columns_of, trace_dtype
from ..forms import Filtered, Site, size_of
from ..ir import block_rows, entered, uses
from ._entries import MOST, Compressed, Entries
from ._varied import varied

LARGE = f"it is not looked for, as a state depends on more than {MOST} others"
DIFFER = "the transitions of its outputs differ"
ENTERED = "its outputs are entered by factors that differ"
NO_LESS = "filtered inputs would save too little, as few of its outputs have the same transitions"


@dataclasses.dataclass(frozen=True)
class Proved:
    """Filtered inputs that are proved to hold the whole trace, in less memory."""

    form: Filtered
    size: int
    """How many numbers they are for one example."""
    why: str
    """Why they hold the whole trace, also while parameters move."""


class Look:
    """What was found of the trace of one operation."""

    def __init__(self, op: WeightOp, block: Pattern):
        self.op, self.block = op, block
        self.proved: Proved | None = None
        """Filtered inputs that hold the whole trace in less memory."""
        self.why_not = ""
        """Why there are none; empty where there may be some."""

    @cached_property
    def rows(self) -> np.ndarray:
        """The states of the block of each output; [m, O]."""
        return block_rows(self.block)


def filtered(analysis: Analysis, blocks: Mapping[WeightOp, Pattern]) -> dict[int, Look]:
    """What is found of each operation whose outputs might share something, by number.

    `blocks`: outputs x states, the states that the whole trace of each output holds.
    """
    looks = [
        Look(op, block)
        for op, block in blocks.items()
        if op.kind.data is not None and op.kind.links is None
        if op.kind.outputs > 1 and op.kind.inputs and block.nnz
    ]
    _check_leaves(analysis, looks)
    _check_sizes(analysis, looks)
    left = [look for look in looks if not look.why_not]
    if left:
        entries = Entries(analysis, np.unique(np.concatenate([columns_of(l.block) for l in left])))
        _prove(entries, left)
    return {look.op.number: look for look in looks}


def _check_sizes(analysis: Analysis, looks: Sequence[Look]) -> None:
    """Rule out what would take many runs of the tangents."""
    for look in looks:
        if look.why_not:
            continue
        states = columns_of(look.block)
        among: Pattern = analysis.transition[states][:, states]
        entering = analysis.immediate[look.op.number]
        if max(len(look.rows), _most(among), _most(entering)) > MOST:
            look.why_not = LARGE


def _most(pattern: Pattern) -> int:
    """The most entries of a row."""
    return int(np.diff(pattern.indptr).max(initial=0))


def _check_leaves(analysis: Analysis, looks: Sequence[Look]) -> None:
    """Rule out, by a quick look, what has a transition of its own for each output."""
    if not looks:
        return
    by_part, parts = varied(analysis), analysis.hidden.parts
    bounds = np.cumsum([0, *(int(np.prod(a.shape)) for a in parts)])
    for look in looks:
        places = np.searchsorted(bounds, columns_of(look.block), side="right") - 1
        of_block = np.unique(places).tolist()
        old = sum(1 << j for j in of_block)
        if any(by_part[i] & old for i in of_block):
            look.why_not = DIFFER


def _prove(entries: Entries, looks: Sequence[Look]) -> None:
    analysis, compressed = entries.analysis, entries.transition()
    transitions: dict[bytes, np.ndarray] = {}
    by_block: dict[tuple[bytes, int], Filtered] = {}
    for look in looks:
        kind, key = look.op.kind, look.rows.tobytes()
        if key not in transitions:
            transitions[key] = _transitions(entries, compressed, look.rows)
        if (key, kind.groups) not in by_block:
            tables = [look.rows >= 0, transitions[key]]
            by_block[key, kind.groups] = Filtered(_classes(tables, kind.groups))
        if by_block[key, kind.groups].per_group == kind.outputs:
            look.why_not = DIFFER
    looks = [look for look in looks if not look.why_not]
    by_op = entries.immediate([look.op.number for look in looks])
    for look in looks:
        number, transition = look.op.number, transitions[look.rows.tobytes()]
        immediate = _immediate(entries, by_op[number], look.rows, analysis.immediate[number])
        form = _form([look.rows >= 0, transition, immediate], transition, look.op.kind.groups)
        if form.per_group == look.op.kind.outputs:
            look.why_not = ENTERED
            continue
        size = size_of(form, Site(look.op.kind, len(look.rows), trace_dtype(analysis, look.op)))
        look.proved = Proved(form, size, _why(form, len(look.rows)))


def _transitions(entries: Entries, compressed: Compressed, rows: np.ndarray) -> np.ndarray:
    """D of each output as numbers, [m * m, O]."""
    m, outputs = rows.shape
    used = uses(rows, entries.analysis.transition)
    numbers = np.full((m, m, outputs), entries.none)
    numbers[used.after, used.before, used.output] = compressed.at(used.new, used.old)
    return numbers.reshape(m * m, outputs)


def _immediate(
    entries: Entries, compressed: Compressed, rows: np.ndarray, pattern: Pattern
) -> np.ndarray:
    """F of each output as numbers, [m, O]."""
    place, output = np.nonzero(entered(rows, pattern))
    numbers = np.full(rows.shape, entries.none)
    numbers[place, output] = compressed.at(rows[place, output], output)
    return numbers


def _form(tables: Sequence[np.ndarray], transition: np.ndarray, groups: int) -> Filtered:
    """The form in which outputs with equal columns of all tables share filtered inputs."""
    form = Filtered(_classes(tables, groups))
    numbers = _distinct(transition[:, form.first.reshape(-1)])
    return Filtered(form.classes, uniform=len(np.unique(numbers, axis=1).T) == 1)


def _why(form: Filtered, block: int) -> str:
    count, classes = form.count(block), form.per_group
    outputs = "all outputs" if form.uniform else "the outputs of each group"
    alike = f"{outputs} decay alike"
    if classes > 1:
        alike = f"the outputs filter the inputs in only {classes} ways"
    copies = "one filtered copy of the inputs replaces"
    if count > 1:
        copies = f"{count} filtered copies of the inputs replace"
    return f"stored smaller, without loss: {alike}, so {copies} the whole trace"


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
