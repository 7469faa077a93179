"""The hidden states of a step as one vector."""

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import Variable, is_complex, prims, propagate, real_avals, result_type
from ..trace import Step
from ._weights import Split


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenStates:
    """The float leaves of the state as one vector of S real elements.

    A leaf that no output depends on, at this step or later, gets no credit. It is data that is carried, and is left
    out. If no output depends on any leaf, all of them are in, and no weight counts as reaching one.
    """

    leaves: tuple[int, ...]
    """The numbers of these leaves among the array leaves of the state; those of transient ones follow."""
    paths: tuple[str, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]
    offsets: tuple[int, ...]
    """The number of the first element of each leaf, and S at the end."""
    reach_output: bool
    """Whether an output depends on them, at this step or later."""
    old: tuple[Variable, ...]
    new: tuple[Variable, ...]
    transient: int
    """How many of the leaves, the last ones, are values of the step that count as new states, and are not carried.
    Their old values are read by nothing."""

    @classmethod
    def of(
        cls, step: Step, parts: Split, transient: Mapping[Variable, str] = MappingProxyType({})
    ) -> "HiddenStates":
        """Those of a step; `transient` are values that count as new states, and their names."""
        read = _leaves_to_output(step)
        leaves = read or tuple(n for n, v in enumerate(step.state) if v.is_float)
        old = [step.state[i] for i in leaves]
        old += [Variable(-n, v.aval) for n, v in enumerate(transient, 1 << 62)]
        sizes = [v.size * (1 + is_complex(v.aval)) for v in old]
        carried = len(step.state)
        return cls(
            (*leaves, *range(carried, carried + len(transient))),
            (*(step.state_paths[i] for i in leaves), *transient.values()),
            tuple(v.aval for v in old),
            (0, *(int(n) for n in np.cumsum(sizes))),
            bool(read),
            tuple(old),
            (*(parts.next_state[i] for i in leaves), *transient),
            len(transient),
        )

    @property
    def stored(self) -> int:
        """How many of the leaves the step stores; the transient ones follow."""
        return len(self.leaves) - self.transient

    @property
    def carried(self) -> int:
        """How many elements are carried: those of transient leaves are the last ones."""
        return self.offsets[self.stored]

    @property
    def size(self) -> int:
        """S."""
        return self.offsets[-1]

    @cached_property
    def dtype(self) -> Any:
        """Of the vector and of its Jacobians: at least float32."""
        return result_type(jnp.float32, *(part.dtype for part in self.parts))

    @property
    def parts(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Real arrays that make up the vector: a complex leaf is its real, then its imaginary one."""
        return tuple(real_avals(self.avals))

    def leaf_of(self, elements: np.ndarray) -> np.ndarray:
        """For each element, which of `leaves` holds it."""
        return np.searchsorted(self.offsets, elements, side="right") - 1

    @cached_property
    def part_bounds(self) -> np.ndarray:
        """The number of the first element of each part, and S at the end."""
        return np.cumsum([0, *(math.prod(part.shape) for part in self.parts)])

    def part_of(self, elements: np.ndarray) -> np.ndarray:
        """For each element, which of `parts` holds it."""
        return np.searchsorted(self.part_bounds, elements, side="right") - 1

    def names(self, elements: np.ndarray) -> tuple[str, ...]:
        """The paths of the leaves that hold some elements, in order."""
        return tuple(self.paths[i] for i in np.unique(self.leaf_of(elements)))


def _leaves_to_output(step: Step) -> tuple[int, ...]:
    """The float leaves of the state that an output depends on through floats, at this step or later."""
    stops = lambda eqn, v: eqn.primitive is prims.stop_gradient_p
    reached = {
        i: propagate(step.equations, [v], stops) for i, v in enumerate(step.state) if v.is_float
    }
    read: set[int] = set()
    targets = [v for v in step.outputs if v.is_float]
    while more := {i for i, values in reached.items() if values.intersection(targets)} - read:
        read |= more
        targets = [step.next_state[i] for i in more]
    return tuple(sorted(read))
