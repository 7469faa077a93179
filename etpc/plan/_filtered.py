"""Which whole traces are a few filtered inputs, whatever the parameters and the data are.

A trace moves as `eps_o' = D_o eps_o + F_o x`, for each output o. Outputs with equal D and F have equal
traces, also while the weights move, and one of them is enough.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from ..analyse import Analysis, Pattern, WeightOp, columns_of
from ..forms import Filtered
from ..ir import block_rows, entered, uses
from ._entries import MOST, Compressed, Entries

LARGE = f"it is not looked for, as a state depends on more than {MOST} others"
DIFFER = "the transitions of its outputs differ"
ENTERED = "its outputs are entered by factors that differ"
NO_LESS = "filtered inputs would save too little, as few of its outputs have the same transitions"


@dataclasses.dataclass(eq=False)
class Look:
    """What was found of the trace of one operation."""

    op: WeightOp
    block: Pattern
    form: Filtered | None = None
    """The form in which filtered inputs are proved to hold the whole trace."""
    why: str = ""
    """Why they hold it, also while parameters move; or why there is no such form."""

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
    for look in looks:
        look.why = _ruled_out(analysis, look)
    left = [look for look in looks if not look.why]
    if left:
        entries = Entries(analysis, np.unique(np.concatenate([columns_of(l.block) for l in left])))
        _prove(entries, left)
    return {look.op.number: look for look in looks}


def _ruled_out(analysis: Analysis, look: Look) -> str:
    """Why there is no form, where sizes say it; empty where there may be one."""
    states = columns_of(look.block)
    among: Pattern = analysis.transition[states][:, states]
    entering = analysis.immediate[look.op.number]
    return LARGE if max(len(look.rows), _most(among), _most(entering)) > MOST else ""


def _most(pattern: Pattern) -> int:
    """The most entries of a row."""
    return int(np.diff(pattern.indptr).max(initial=0))


def _prove(entries: Entries, looks: Sequence[Look]) -> None:
    analysis, compressed = entries.analysis, entries.transition()
    transitions: dict[bytes, np.ndarray] = {}
    for look in looks:
        kind, key = look.op.kind, look.rows.tobytes()
        if key not in transitions:
            transitions[key] = _transitions(entries, compressed, look.rows)
        form = Filtered(_classes([look.rows >= 0, transitions[key]], kind.groups))
        look.why = DIFFER if form.per_group == kind.outputs else ""
    looks = [look for look in looks if not look.why]
    by_op = entries.immediate([look.op for look in looks]) if looks else {}
    for look in looks:
        pattern, transition = analysis.immediate[look.op.number], transitions[look.rows.tobytes()]
        immediate = _immediate(entries, by_op[look.op], look.rows, pattern)
        form = _form([look.rows >= 0, transition, immediate], transition, look.op.kind.groups)
        if form.per_group == look.op.kind.outputs:
            look.why = ENTERED
        else:
            look.form, look.why = form, _why(form, len(look.rows))


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
