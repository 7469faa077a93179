"""What the trace of an operation takes under each rule, without compiling for it."""

import jax.numpy as jnp

from ..algorithms import Backprop
from ..analyse import Analysis, WeightOp, trace_dtype
from ..forms import Decay, Full, LowRank, Site, bytes_of, size_of
from ..plan import Proofs
from ._bounds import one_step_block, uncut_block


class Costs:
    """The bytes of traces for one example. They are an upper bound where influence escapes and a rule cuts nothing.

    `analysis` is one in which all operations with data are cut.
    """

    def __init__(self, analysis: Analysis, backprop: Backprop):
        self.analysis, self._proofs = analysis, Proofs.of(analysis, backprop)

    def by_rule(self, op: WeightOp) -> dict[str, tuple[int, int]]:
        """Block and bytes of the trace of an operation under each rule."""
        reach = self.analysis.reach[op.number]
        cut, uncut = reach.size, uncut_block(self.analysis, op.number)
        one_step = min(one_step_block(self.analysis, op.number), uncut)
        sizes: dict[str, tuple[int, int]] = {}
        for name, block in {"RTRL": uncut, "SnAp(1)": one_step, "D_RTRL": cut}.items():
            size = bytes_of(Full(), self._site(op, block))
            # with less cut, more enters the transitions
            proved = not reach.escapes or name == "D_RTRL"
            sizes[name] = block, min(size, self._whole(op)) if proved else size
        if op.kind.data is None:
            return sizes
        forms = {"ES_D_RTRL(decay=0.99)": Decay(0.99), "ES_D_RTRL(rank=4)": LowRank(4)}
        for name, form in forms.items():
            site = self._site(op, cut)
            whole = self._proofs.whole_size(op) <= size_of(form, site)
            sizes[name] = sizes["D_RTRL"] if whole else (cut, bytes_of(form, site))
        return sizes

    def _site(self, op: WeightOp, block: int) -> Site:
        return Site(op.kind, block, trace_dtype(self.analysis, op))

    def _whole(self, op: WeightOp) -> int:
        """The bytes of a whole trace, or of what is proved to hold it and takes its place."""
        return self._proofs.whole_size(op) * jnp.dtype(trace_dtype(self.analysis, op)).itemsize
