"""What the trace of an operation takes under each rule, without compiling for it."""

import jax.numpy as jnp

from ..algorithms import Backprop
from ..analyse import Analysis, WeightOp, one_step_block, trace_dtype, uncut_block
from ..plan import most, proved
from ..traces import Decay, Full, LowRank, Site, Trace, bytes_of


class Costs:
    """The bytes of traces for one example. They are an upper bound where influence escapes and a rule cuts nothing.

    `analysis` is one in which all operations with data are cut.
    """

    def __init__(self, analysis: Analysis, backprop: Backprop):
        self.analysis = analysis
        state = [op for op in analysis.ops if analysis.reach[op.number].role == "state"]
        self._proved = proved(analysis, state, backprop)

    def by_rule(self, op: WeightOp) -> dict[str, tuple[int, int]]:
        """Block and bytes of the trace of an operation under each rule."""
        reach = self.analysis.reach[op.number]
        cut, uncut = reach.size, uncut_block(self.analysis, op.number)
        rules: dict[str, tuple[Trace, int]] = {
            "RTRL": (Full(), uncut),
            "SnAp(1)": (Full(), min(one_step_block(self.analysis, op.number), uncut)),
            "D_RTRL": (Full(), cut),
        }
        if op.kind.data is not None:
            rules["ES_D_RTRL(decay=0.99)"] = (Decay(0.99), cut)
            rules["ES_D_RTRL(rank=4)"] = (LowRank(4).settle(self._site(op, cut)), cut)
        sizes: dict[str, tuple[int, int]] = {}
        for name, (form, block) in rules.items():
            size = bytes_of(form, self._site(op, block))
            # with less cut, more enters the transitions
            if not (reach.escapes and name in ("RTRL", "SnAp(1)")):
                size = self._smallest(op, form, size)
            sizes[name] = block, size
        return sizes

    def _site(self, op: WeightOp, block: int) -> Site:
        return Site(op.kind, block, trace_dtype(self.analysis, op))

    def _smallest(self, op: WeightOp, form: Trace, size: int) -> int:
        """The bytes of a form, or of one that is proved to hold the same and takes its place."""
        item = jnp.dtype(trace_dtype(self.analysis, op)).itemsize
        proved = self._proved.get(op.number)
        smaller = size if proved is None else item * proved.size
        return smaller if smaller <= most(size, form.exact) else size


__all__ = ["Costs"]
