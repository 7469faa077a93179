"""What is proved of the whole traces of a program, for all values of its parameters."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ..algorithms import Backprop
from ..analyse import Analysis, Pattern, WeightOp, closure, trace_dtype
from ..forms import Full, Site, size_of
from ._filtered import Look, filtered


class Proofs:
    """What is proved of the whole traces of a program, for all values of its parameters; looked for when asked."""

    def __init__(self, analysis: Analysis, backprop: Backprop):
        self.analysis = analysis
        self.lasting = lasting_states(analysis) if backprop == "cut" else None
        """Which states are in a trace that is read at the start of a window alone; `None` for all."""

        self._blocks: dict[WeightOp, Pattern] = {}

    @classmethod
    def of(cls, analysis: Analysis, backprop: Backprop) -> "Proofs":
        """Those of an analysis, which are the same for all programs made from it."""
        key = cls, backprop
        if key not in analysis.derived:
            analysis.derived[key] = cls(analysis, backprop)
        return analysis.derived[key]

    def block(self, op: WeightOp) -> Pattern:
        """The states in the whole trace of an operation that are read at the start of a window."""
        if op not in self._blocks:
            reach = self.analysis.reach[op.number]
            kept, lasting = reach.block, self.lasting
            if lasting is not None and reach.closed and not lasting[kept.indices].all():
                kept = sp.csr_array(kept.multiply(lasting[None]))
                kept.eliminate_zeros()
                kept.sort_indices()
            self._blocks[op] = kept
        return self._blocks[op]

    def ends(self, op: WeightOp) -> bool:
        """Whether no later step reads what an operation does to the states, but as data that is held constant."""
        return self.analysis.reach[op.number].block.nnz > 0 and not self.block(op).nnz

    @cached_property
    def looks(self) -> Mapping[int, Look]:
        """What was found of operations whose outputs might share filtered inputs, by number."""
        blocks = {op: self.block(op) for op in self.analysis.live if not self.ends(op)}
        return filtered(self.analysis, blocks)

    def whole_size(self, op: WeightOp) -> int:
        """The fewest numbers, of one example, that are proved to hold the whole trace of an operation."""
        if self.ends(op) or not self.block(op).nnz:
            return 0
        block = int(np.diff(self.block(op).indptr).max(initial=0))
        site = Site(op.kind, block, trace_dtype(self.analysis, op))
        whole, look = size_of(Full(), site), self.looks.get(op.number)
        size = whole if look is None or look.form is None else size_of(look.form, site)
        return size if saves_enough(size, whole) else whole

    def look(self, op: WeightOp, block: Pattern) -> Look | None:
        """What was found of an operation whose trace has some block; `None` if nothing was looked for."""
        if block is self.block(op):
            return self.looks.get(op.number)
        return filtered(self.analysis, {op: block}).get(op.number)


def saves_enough(size: int, whole: int) -> bool:
    """Whether filtered inputs of some size take the place of a whole trace.

    They may take at most half of it: where two outputs shared each filtered input, they were 1.13x slower than the
    whole trace, with 32 examples and an update at each step.
    """
    return 2 * size <= whole


def lasting_states(analysis: Analysis) -> np.ndarray:
    """Which states are read by more than cut data, at this step or later, as the last output of an LSTM is not; boolean
    [S]. The credit of the other states at the start of a window is zero.
    """
    read = np.zeros(analysis.hidden.size, bool)
    for reads in analysis.outputs:
        read |= reads.states
    for reach in analysis.reach:
        if reach.role != "state":
            read |= reach.dependence.states
    for full in analysis.in_full.values():
        read |= full.states
    seeds = sp.csr_array(read[None])
    read[closure(seeds, sp.csr_array(analysis.transition.T)).indices] = True
    return read
