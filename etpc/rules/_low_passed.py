"""The whole trace and a low-pass of it, which alone meets credit."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..algorithms import Choice, Context
from ..forms import Factors, Full, Line, Meaning, Pairs, Recursion, Site, where_no_stream_begins
from ._layers import before_readouts


@dataclasses.dataclass(frozen=True)
class LowPassed(Recursion):
    """`eps' = D eps + F x^T` and `low' = decay low + eps'`, a block of twice as many states."""

    decay: float
    exact = False

    @property
    def left_out(self) -> str:
        return f"credit meets the trace of all steps up to now, low-passed with decay {self.decay}"

    @property
    def verdict(self) -> str:
        return f"low-passed {self.decay:g}"

    @property
    def held(self) -> str:
        return "two entries for each use and state"

    def meaning(self) -> Meaning:
        low = Line("low", "uses", kept=self.decay, plus="e")
        return Meaning((Line("e", "uses", moved=1.0), low), meets="low")

    def site_of(self, site: Site) -> Site:
        after, before, order = self._transitions(site)
        pairs = Pairs(2 * site.block, after[order], before[order])
        return dataclasses.replace(site, block=2 * site.block, transitions=pairs)

    def step(self, site: Site, factors: Factors) -> tuple[Array, Array]:
        decay = where_no_stream_begins(factors, self.decay, factors.transition.dtype)
        d = factors.transition
        low = jnp.broadcast_to(decay[..., None, None], (*d.shape[:2], site.block, d.shape[3]))
        transition = jnp.concatenate([d, d, low], 2)[:, :, self._transitions(site)[2]]
        return transition, jnp.concatenate([factors.immediate] * 2, 2)

    def taken(self, credit: Array) -> Array:
        return jnp.concatenate([jnp.zeros_like(credit), credit], -2)

    def _transitions(self, site: Site) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """D into the trace, D into its low-pass, and the decay: after, before, and the order of `Pairs`."""
        m, pairs, low = site.block, site.pairs, site.block + np.arange(site.block)
        after = np.concatenate([pairs.after, m + pairs.after, low])
        before = np.concatenate([pairs.before, pairs.before, low])
        return after, before, np.lexsort((before, after))


def low_passed_before_readouts(context: Context, decay: float) -> Choice:
    """The low-passed trace of D-RTRL for what a readout or another layer reads; else the trace itself."""
    before = before_readouts(context.analysis)
    form = lambda op: LowPassed(decay) if op.number in before else Full()
    return Choice({op.number: form(op) for op in context.ops})
