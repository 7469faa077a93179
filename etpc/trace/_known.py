"""Values of a program that neither a parameter nor data changes."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from .._jax import Equation, Tracer, Variable, evaluate, partition, prune


class Known:
    """Called with a variable: its value, computed when asked, or `None` where it is not known."""

    def __init__(
        self,
        equations: Iterable[Equation],
        constants: Mapping[Variable, Any],
        fixed: Mapping[Variable, Any] = MappingProxyType({}),
    ):
        """`fixed` are the values of arguments, which other calls may have otherwise."""
        values = {**constants, **fixed}
        # A constant that is traced itself, as in a backward rule under `jit`, has no value yet.
        self._values = {v: a for v, a in values.items() if not isinstance(a, Tracer)}
        self.consulted: dict[Variable, None] = {}
        """The variables that were asked for and are known."""
        self._equations, _, self._known = partition(equations, self._values)
        self._of_fixed = set(fixed)
        for eqn in self._equations:
            if not self._of_fixed.isdisjoint(eqn.inputs):
                self._of_fixed.update(eqn.outputs)

    def __call__(self, variable: Variable) -> np.ndarray | None:
        if variable not in self._known:
            return None
        self.consulted[variable] = None
        if variable not in self._values:
            with jax.ensure_compile_time_eval():
                evaluate(prune(self._equations, [variable], known=self._values), self._values)
        return np.asarray(self._values[variable])

    def constant(self, variable: Variable) -> np.ndarray | None:
        """The value of a variable that no argument changes."""
        return None if variable in self._of_fixed else self(variable)

    def sources(self) -> set[Variable]:
        """The variables that were asked for, and all that they were computed from."""
        sources = set(self.consulted)
        for eqn in reversed(self._equations):
            if any(v in sources for v in eqn.outputs):
                sources.update(eqn.inputs)
        return sources
