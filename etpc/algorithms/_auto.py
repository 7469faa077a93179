"""For each weight operation the most exact trace that fits into a memory limit."""

import copy
import dataclasses
from collections.abc import Collection, Mapping
from typing import ClassVar

import jax.numpy as jnp

from .._errors import MemoryLimitError
from ..analyse import Analysis, WeightOp, one_step_block, trace_dtype, uncut_block
from ..traces import Decay, Full, LowRank, Site, Trace, bytes_of
from ._algorithm import Algorithm, Backprop, Choice, Context, Proved

RANKS = (32, 16, 8, 4, 2, 1)
"""What a trace that does not fit is reduced to, one after the other."""


@dataclasses.dataclass(frozen=True)
class Auto(Algorithm):
    """For each weight operation the most exact trace that fits into a memory limit.

    Nothing is cut as long as it fits; then the data of operations is cut, as in D-RTRL, one after
    the other, each time where that saves most; then the largest traces are kept to fewer and fewer
    modes, down to rank 1. The limit is `memory` of [`etpc.compile`][]. The printed program says
    what was chosen, and why.
    """

    name: ClassVar[str] = "auto"
    chosen: ClassVar[str] = "chosen to fit into memory"
    searches: ClassVar[bool] = True
    fitting: ClassVar["Fitting | None"] = None
    """What `found` found; not a setting, as it holds for one model alone."""

    def found(self, context: Context) -> "Auto":
        """The rule with the traces that fit.

        **Raises** `MemoryLimitError` where nothing fits.
        """
        rule = copy.copy(self)
        object.__setattr__(rule, "fitting", _fitting(context, self.backprop))
        return rule

    @property
    def cut_ops(self) -> bool | frozenset[int]:
        return self.cut if self.fitting is None else self.fitting.cut

    def choose(self, context: Context) -> Choice:
        return (self.fitting or _fitting(context, self.backprop)).choice


@dataclasses.dataclass(frozen=True)
class Fitting:
    """Traces that fit into a memory limit."""

    choice: Choice
    cut: frozenset[int]
    """The operations whose data is held constant."""


def _fitting(context: Context, backprop: Backprop) -> Fitting:
    """The most exact traces that fit, from the analysis of a step in which all operations with data are cut."""
    analysis = context.analysis
    state = [op.number for op in analysis.ops if analysis.reach[op.number].role == "state"]
    uncut = [k for k in state if k in analysis.cut]
    forms: dict[int, Trace] = {op.number: Full() for op in context.ops}
    costs = Costs(analysis, context.batch_size, context.proved(backprop))
    uncut_bytes = {op.number: costs.full(op, uncut) for op in context.ops}

    def total() -> int:
        return sum(costs.of(op, forms[op.number], uncut) for op in context.ops)

    while uncut and total() > context.memory:
        # All uses of a weight are cut together: of that which saves most, and of equal ones the
        # last, so that the first layers stay exact.
        weights = dict.fromkeys(analysis.ops[k].weight for k in reversed(uncut))
        uncut = min(
            ([k for k in uncut if analysis.ops[k].weight is not weight] for weight in weights),
            key=lambda still_uncut: sum(costs.full(op, still_uncut) for op in context.ops),
        )
    while total() > context.memory:
        lower = {op: costs.lower(op, forms[op.number], uncut) for op in context.ops}
        reducible = {op: form for op, form in lower.items() if form is not None}
        if not reducible:
            raise MemoryLimitError(
                f"The smallest traces take {total():,} bytes for {context.batch_size} example"
                f"{'s' if context.batch_size > 1 else ''}, and memory={context.memory:,} allows no more. Give "
                "fewer weights a trace (`weights=`), use a smaller batch, or pass a larger memory=."
            )
        largest = max(reducible, key=lambda op: costs.of(op, forms[op.number], uncut))
        forms[largest.number] = reducible[largest]
    cut = frozenset(analysis.cut) - frozenset(uncut)
    reasons = {
        op.number: _reason(op, forms[op.number], costs, uncut, uncut_bytes[op.number])
        for op in context.ops
    }
    return Fitting(Choice(forms, reasons), cut)


class Costs:
    """The bytes of traces for a batch. They are an upper bound where an operation is not cut.

    `analysis` is one in which all operations with data are cut, and `proved` are the forms that were proved in it.
    """

    def __init__(
        self, analysis: Analysis, batch_size: int, proved: Mapping[int, tuple[Proved, ...]]
    ):
        self.analysis, self.batch_size, self.proved = analysis, batch_size, proved
        self._bytes: dict[tuple[int, Trace, int], int] = {}

    def block(self, op: WeightOp, uncut: Collection[int]) -> int:
        if uncut:
            return uncut_block(self.analysis, op.number, uncut)
        return self.analysis.reach[op.number].size

    def site(self, op: WeightOp, block: int) -> Site:
        return Site(op.kind, block, trace_dtype(self.analysis, op))

    def bytes(self, op: WeightOp, form: Trace, block: int) -> int:
        """The bytes of a trace of a form, with blocks of a size."""
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
        operations = sorted(self.analysis.cut)
        block_cut, block_uncut = self.block(op, ()), self.block(op, operations)
        rules: dict[str, tuple[Trace, int]] = {
            "RTRL": (Full(), block_uncut),
            "SnAp(1)": (Full(), min(one_step_block(self.analysis, op.number), block_uncut)),
            "D_RTRL": (Full(), block_cut),
        }
        if op.kind.data is not None:
            rules["ES_D_RTRL(decay=0.99)"] = (Decay(0.99), block_cut)
            rules["ES_D_RTRL(rank=4)"] = (LowRank(4).settle(self.site(op, block_cut)), block_cut)
        escapes = bool(self.analysis.reach[op.number].escapes)
        found: dict[str, tuple[int, int]] = {}
        for name, (form, block) in rules.items():
            # with less cut, more enters the transitions
            more = escapes and name in ("RTRL", "SnAp(1)")
            smaller = None if more else self._smaller(op, form, block)
            found[name] = block, self.bytes(op, form, block) if smaller is None else smaller
        return found

    def of(self, op: WeightOp, form: Trace, uncut: Collection[int]) -> int:
        """The bytes of the trace, of this form or of one that is proved to hold all of it."""
        block = self.block(op, uncut)
        smaller = None
        if not (uncut and self.analysis.reach[op.number].escapes):
            smaller = self._smaller(op, form, block)
        return self.bytes(op, form, block) if smaller is None else smaller

    def _smaller(self, op: WeightOp, form: Trace, block: int) -> int | None:
        """The bytes of the proved form that takes the place of this one; `None` where there is none."""
        item = self.batch_size * jnp.dtype(trace_dtype(self.analysis, op)).itemsize
        steady = [
            item * p.size for p in self.proved.get(op.number, ()) if p.steady or not form.exact
        ]
        limit = self.bytes(op, form, block) - form.exact
        return min((size for size in steady if size <= limit), default=None)

    def full(self, op: WeightOp, uncut: Collection[int]) -> int:
        return self.of(op, Full(), uncut)


def _reason(
    op: WeightOp, form: Trace, costs: Costs, uncut: Collection[int], uncut_bytes: int
) -> str:
    block, size = costs.block(op, uncut), costs.of(op, form, uncut)
    uncut_text = f"with nothing cut it would hold at most {uncut_bytes:,} bytes"
    full = costs.full(op, uncut)
    if not form.exact and size < costs.bytes(op, form, block):
        return f"{size:,} bytes; the whole trace would hold {full:,}"
    if not form.exact:
        return f"{form.verdict}, {size:,} bytes; the whole trace would hold {full:,}"
    if full == uncut_bytes:
        return f"nothing is cut that it reaches: a block of {block:,}, {size:,} bytes"
    return f"cut as in D-RTRL: a block of {block:,}, {size:,} bytes; {uncut_text}"


__all__ = ["Auto", "Costs"]
