"""Products that are added up, `y = w_1 x_1 + w_2 x_2`, as one product of `[w_1, w_2]` and `[x_1, x_2]`."""

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..ops import Kind


@dataclasses.dataclass(frozen=True)
class Joined:
    """Several kinds with the same outputs and data of their own, as the form of a trace sees them.

    It is no kind of an equation: nothing is shifted, and each part takes its own data from its own equation.
    """

    parts: tuple[Kind, ...]
    data = 0
    links = None

    @property
    def name(self) -> str:
        return " + ".join(kind.name for kind in self.parts)

    @property
    def groups(self) -> int:
        return self.parts[0].groups

    @property
    def inputs(self) -> int:
        return sum(kind.inputs for kind in self.parts)

    @property
    def outputs(self) -> int:
        return self.parts[0].outputs

    def split(self, x: Array) -> list[Array]:
        """The data of each part, from the data of all parts, [..., I]."""
        return jnp.split(x, [*itertools.accumulate(k.inputs for k in self.parts)][:-1], -1)

    def factor(self, values: list[Any]) -> Array:
        raise TypeError("each part has an equation and a weight of its own")

    shift_inputs = shift_outputs = contract = gather = factor
