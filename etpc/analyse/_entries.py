"""Runs of the tangents of a step on numbers: entries of D and F that are equal for all parameters and data."""

from collections.abc import Mapping, Sequence

import numpy as np

from .._jax import Equation, Flat, Variable, partition, propagate, prune
from ._values import Numbering, Numbers


class Runs:
    """Runs of tangents on seeds that are constants, such as ones and zeros.

    Equations that the seeds do not enter are run once, so that a value has the same number in all runs.
    """

    def __init__(
        self, tangents: Flat, seeds: int, outputs: Sequence[Variable], data: Sequence[int] = ()
    ):
        """`seeds`: how many of the arguments, the last ones, are tangents; `outputs`: what is looked at; `data`: which
        arguments have other values in the runs with `again`, so that what has the same number does not depend on them.
        """
        self.numbering = Numbering()
        arguments, self.seeds = tangents.inputs[:-seeds], tangents.inputs[-seeds:]
        equations = prune(tangents.equations, outputs)
        self.tangents = propagate(equations, self.seeds)
        reached = set(self.seeds)  # with booleans, such as whether a tangent is zero
        self._moving: list[Equation] = []
        resting: list[Equation] = []
        for eqn in equations:
            if reached.isdisjoint(eqn.inputs):
                resting.append(eqn)
            else:
                self._moving.append(eqn)
                reached.update(eqn.outputs)
        still = prune(resting, [*outputs, *(v for eqn in self._moving for v in eqn.inputs)])
        others = [arguments[n] for n in data]
        same = {v: self.numbering.constant(a) for v, a in tangents.constants.items()}
        same |= {v: self.numbering.new(v.aval) for v in arguments if v not in others}
        alone, of_data, _ = partition(still, same)
        self.numbering.run(alone, same)
        self._still: list[dict[Variable, Numbers]] = []
        for _ in range(2 if data else 1):
            self._still.append(same | {v: self.numbering.new(v.aval) for v in others})
            self.numbering.run(of_data, self._still[-1])

    def run(self, seeds: Mapping[int, np.ndarray], again: bool = False) -> dict[Variable, Numbers]:
        """The numbers of all values, for seeds given by their places; other seeds are zero."""
        env = dict(self._still[again])
        for place, v in enumerate(self.seeds):
            if place in seeds:
                value = seeds[place].reshape(v.shape).astype(v.aval.dtype)
                env[v] = self.numbering.constant(value)
            else:
                env[v] = self.numbering.zeros(v.aval)
        self.numbering.run(self._moving, env, self.tangents)
        return env
