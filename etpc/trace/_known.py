"""Values of a program that neither a parameter nor data changes."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from .._jax import Equation, Tracer, Variable, evaluate, partition, prune


class Known:
    """Called with a variable: its value, computed when asked, or `None` where it is not known."""

    def __init__(self, equations: Iterable[Equation], values: Mapping[Variable, Any]):
        # A constant that is traced itself, as in a backward rule under `jit`, has no value yet.
        self._values = {v: a for v, a in values.items() if not isinstance(a, Tracer)}
        self.consulted: dict[Variable, None] = {}
        """The variables that were asked for and are known."""
        self._equations, _, self._known = partition(equations, self._values)

    def __call__(self, variable: Variable) -> np.ndarray | None:
        if variable not in self._known:
            return None
        self.consulted[variable] = None
        if variable not in self._values:
            with jax.ensure_compile_time_eval():
                evaluate(prune(self._equations, [variable], known=self._values), self._values)
        return np.asarray(self._values[variable])

    def sources(self) -> set[Variable]:
        """The variables that were asked for, and all that they were computed from."""
        sources = set(self.consulted)
        for eqn in reversed(self._equations):
            if any(v in sources for v in eqn.outputs):
                sources.update(eqn.inputs)
        return sources
