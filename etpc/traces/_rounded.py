"""The whole trace, carried in bfloat16."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from .._errors import AlgorithmError
from ._bits import BITS, numbers
from ._full import Full
from ._trace import Carry, Site, Trace, zeros


@dataclasses.dataclass(frozen=True)
class Rounded(Full):
    """The whole trace in half the bytes: rounded to bfloat16 after each window.

    It is read, moved and added to in the dtype of the site, in which gradients are summed too. What a
    window adds is lost where it is less than half a unit in the last place, 1/512 to 1/256 of the entry.
    The carry holds the bits, as uint16.
    """

    exact = False
    window_matters = True

    @property
    def left_out(self) -> str:
        return "after each window the trace is rounded to bfloat16"

    @property
    def verdict(self) -> str:
        return "bfloat16"

    def precision(self, site: Site) -> str:
        return "bfloat16"

    def settle(self, site: Site) -> Trace:
        """**Raises** `AlgorithmError` where the trace is complex."""
        if jnp.issubdtype(site.dtype, jnp.complexfloating):
            raise AlgorithmError(
                f"The trace of a {site.kind.name} is {jnp.dtype(site.dtype).name} and cannot be carried "
                "in bfloat16. This is because there are no complex numbers of that precision. Leave "
                "trace_dtype= out; ES_D_RTRL(rank=4) takes less memory too."
            )
        return self

    def init(self, site: Site, batch: int) -> Carry:
        return zeros(batch, self.shapes(site), BITS)

    def same(self, site: Site) -> Any:
        same = super().same(site)
        return None if same is None else (BITS, same)

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        return {"trace": numbers(carry[0]).astype(site.dtype)}


__all__ = ["Rounded"]
