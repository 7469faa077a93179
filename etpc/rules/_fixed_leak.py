"""The whole trace with a fixed leak in the place of the Jacobian."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..forms import Factors, Line, Meaning, Pairs, Recursion, Site, where_no_stream_begins


@dataclasses.dataclass(frozen=True)
class FixedLeak(Recursion):
    """`eps' = kept eps + F x^T`: each state of a block keeps this part of its trace, and hands nothing on."""

    kept: float
    exact = False

    @property
    def left_out(self) -> str:
        return "each state is taken to keep a fixed part of its trace"

    @property
    def verdict(self) -> str:
        return "fixed leak"

    @property
    def held(self) -> str:
        return "one entry for each use and state"

    def meaning(self) -> Meaning:
        return Meaning((Line("e", "uses", kept=self.kept),), meets="e")

    def site_of(self, site: Site) -> Site:
        places = np.arange(site.block)
        return dataclasses.replace(site, transitions=Pairs(site.block, places, places))

    def step(self, site: Site, factors: Factors) -> tuple[Array, Array]:
        kept = where_no_stream_begins(factors, self.kept, factors.transition.dtype)[..., None, None]
        shape = (*kept.shape[:2], site.block, 1)
        return jnp.broadcast_to(kept, shape), factors.immediate
