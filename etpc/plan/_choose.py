"""For each weight operation the most exact trace that fits into a memory limit."""

import dataclasses
from collections.abc import Collection, Mapping

from .._errors import MemoryLimitError
from ..analyse import Analysis, WeightOp, one_step_block, uncut_block
from ..traces import Decay, Full, LowRank, Site, Trace, bytes_of
from ._size import trace_dtype


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is cut, and the form of each trace, with the reasons."""

    cut: frozenset[int]
    forms: Mapping[int, Trace]
    reasons: Mapping[int, str]


RANKS = (32, 16, 8, 4, 2, 1)
"""What a trace that does not fit is reduced to, one after the other."""


def choose(analysis: Analysis, chosen: Collection[int], memory: int, batch_size: int) -> Choice:
    """Choose what to cut and which traces to factor.

    `analysis` is one in which every operation that mixes is cut; `chosen` are the operations that
    get a trace.

    **Raises** `MemoryLimitError` where nothing fits.
    """
    traced = [
        op
        for op in analysis.ops
        if op.number in chosen and analysis.reach[op.number].role == "state"
    ]
    state = [op.number for op in analysis.ops if analysis.reach[op.number].role == "state"]
    uncut = [k for k in state if k in analysis.cut]
    forms: dict[int, Trace] = {op.number: Full() for op in traced}
    costs = Costs(analysis, batch_size)
    whole = {op.number: costs.full(op, uncut) for op in traced}

    def total() -> int:
        return sum(costs.of(op, forms[op.number], uncut) for op in traced)

    while uncut and total() > memory:
        # All uses of a weight are cut together: of that which saves most, and of equal ones the
        # last, so that the first layers stay exact.
        weights = dict.fromkeys(analysis.ops[k].weight for k in reversed(uncut))
        uncut = min(
            ([k for k in uncut if analysis.ops[k].weight is not weight] for weight in weights),
            key=lambda kept: sum(costs.full(op, kept) for op in traced),
        )
    while total() > memory:
        lower = {op: costs.lower(op, forms[op.number], uncut) for op in traced}
        left = {op: form for op, form in lower.items() if form is not None}
        if not left:
            raise MemoryLimitError(
                f"The smallest traces take {total():,} bytes for {batch_size} example"
                f"{'s' if batch_size > 1 else ''}, and memory={memory:,} allows no more. Give "
                "fewer weights a trace (`weights=`), use a smaller batch, or pass a larger memory=."
            )
        largest = max(left, key=lambda op: costs.of(op, forms[op.number], uncut))
        forms[largest.number] = left[largest]
    cut = frozenset(analysis.cut) - frozenset(uncut)
    reasons = {
        op.number: _reason(op, forms[op.number], costs, uncut, whole[op.number]) for op in traced
    }
    return Choice(cut, forms, reasons)


class Costs:
    """Bytes of traces for a batch; at most so many where something is not cut."""

    def __init__(self, analysis: Analysis, batch_size: int):
        self.analysis, self.batch_size = analysis, batch_size
        self._bytes: dict[tuple[int, Trace, int], int] = {}

    def block(self, op: WeightOp, uncut: Collection[int]) -> int:
        if uncut:
            return uncut_block(self.analysis, op.number, uncut)
        return self.analysis.reach[op.number].size

    def site(self, op: WeightOp, block: int) -> Site:
        return Site(op.kind, block, trace_dtype(self.analysis, op))

    def bytes(self, op: WeightOp, form: Trace, block: int) -> int:
        """Of a trace of a form, with blocks of a size."""
        key = op.number, form, block
        if key not in self._bytes:
            self._bytes[key] = self.batch_size * bytes_of(form, self.site(op, block))
        return self._bytes[key]

    def lower(self, op: WeightOp, form: Trace, uncut: Collection[int]) -> Trace | None:
        """The next form that is smaller; `None` where there is none."""
        if op.kind.data is None:
            return None
        size = self.of(op, form, uncut)
        forms = (LowRank(rank) for rank in RANKS)
        return next((f for f in forms if self.of(op, f, uncut) < size), None)

    def by_rule(self, op: WeightOp) -> dict[str, tuple[int, int]]:
        """Block and bytes of the trace of an operation under each rule."""
        every = sorted(self.analysis.cut)
        cut, whole = self.block(op, ()), self.block(op, every)
        rules: dict[str, tuple[Trace, int]] = {
            "RTRL": (Full(), whole),
            "SnAp(1)": (Full(), min(one_step_block(self.analysis, op.number), whole)),
            "D_RTRL": (Full(), cut),
        }
        if op.kind.data is not None:
            rules["ES_D_RTRL(0.99)"] = (Decay(0.99), cut)
            rules["ES_D_RTRL(4)"] = (LowRank(4).settle(self.site(op, cut)), cut)
        return {name: (block, self.bytes(op, form, block)) for name, (form, block) in rules.items()}

    def of(self, op: WeightOp, form: Trace, uncut: Collection[int]) -> int:
        return self.bytes(op, form, self.block(op, uncut))

    def full(self, op: WeightOp, uncut: Collection[int]) -> int:
        return self.of(op, Full(), uncut)


def _reason(op: WeightOp, form: Trace, costs: Costs, uncut: Collection[int], whole: int) -> str:
    block, size = costs.block(op, uncut), costs.of(op, form, uncut)
    exact = f"with nothing cut it would hold at most {whole:,} bytes"
    if not form.exact:
        full = costs.full(op, uncut)
        return f"{form.verdict}, {size:,} bytes; the whole trace would hold {full:,}"
    if costs.full(op, uncut) == whole:
        return f"nothing is cut that it reaches: a block of {block:,}, {size:,} bytes"
    return f"cut as in D-RTRL: a block of {block:,}, {size:,} bytes; {exact}"


__all__ = ["Choice", "Costs", "choose"]
