"""The trace of an operation whose influence ends with the step: nothing is carried."""

import dataclasses
from typing import Any

from jax import Array

from ._trace import Carry, Factors, Site, Trace


@dataclasses.dataclass(frozen=True)
class Ended(Trace):
    """No array, as no credit of a later step arrives. The gradient of each step is that of the whole trace.

    An example is the output gate of an LSTM whose last output enters weights alone, whose data is held constant.
    """

    exact = True
    start_alone = True

    @property
    def held(self) -> str:
        return "nothing, as its influence ends with the step"

    def init(self, site: Site, batch: int) -> Carry:
        return ()

    def follow(self, site: Site, factors: Factors, carry: Carry) -> tuple[Carry, Any]:
        return (), ()

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        return {}


__all__ = ["Ended"]
