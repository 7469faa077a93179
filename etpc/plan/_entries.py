"""The entries of D and F of a cut step as numbers: equal ones are equal for all parameters and data."""

import dataclasses

import numpy as np
import scipy.sparse as sp

from .._jax import propagate, prune
from ..analyse import Analysis, Numbering, Numbers, Pattern, is_complex
from ._blocks import colours_of

MOST = 16
"""D or F with more entries in one row is not looked into, as each entry takes a run of the tangents."""


@dataclasses.dataclass(frozen=True, eq=False)
class Compressed:
    """The entries of a Jacobian as numbers, by runs: columns of one run share no row."""

    run: np.ndarray
    """The run of each column; int."""
    numbers: Numbers
    """The numbers that each run gives for the new states; [runs, S]."""

    def at(self, rows: np.ndarray, columns: np.ndarray) -> Numbers:
        """The numbers of entries that the pattern has."""
        return self.numbers[self.run[columns], rows]


class Entries:
    """D and F of a step as numbers, by runs of its tangents on seeds of ones and zeros.

    Equations that the seeds do not enter are run once, so that a value has the same number in all runs.
    """

    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.numbering = Numbering()
        tangents, step, parts = analysis.tangents, analysis.step, analysis.hidden.parts
        self._outputs = tangents.outputs[: len(parts)]
        seeds = len(parts) + len(analysis.ops)
        arguments, self._seeds = tangents.inputs[:-seeds], tangents.inputs[-seeds:]
        equations = prune(tangents.equations, self._outputs)
        self._tangents = propagate(equations, self._seeds)
        enters = [any(v in self._tangents for v in eqn.inputs) for eqn in equations]
        self._moving = [eqn for eqn, e in zip(equations, enters, strict=True) if e]
        self._still = {v: self.numbering.constant(a) for v, a in tangents.constants.items()}
        for i, v in enumerate(arguments):
            self._still[v] = self.numbering.new(v.aval, data=i >= len(step.parameters))
        still = [eqn for eqn, e in zip(equations, enters, strict=True) if not e]
        self.numbering.run(still, self._still)
        self.none = int(self.numbering.scalars("no entry", [np.zeros(1, np.int64)])[0])
        """The number of an entry that the pattern does not have."""

    def transition(self, states: np.ndarray) -> Compressed | None:
        """D among some states; `None` where one of them reads too many."""
        hidden = self.analysis.hidden
        pattern: Pattern = sp.csr_array(self.analysis.transition[states][:, states])
        run = _runs(pattern, hidden.leaf_of(states))
        if run is None:
            return None
        of_state = np.full(hidden.size, -1)
        of_state[states] = run
        numbers = []
        for n in range(run.max(initial=0) + 1):
            ones = np.split((of_state == n).astype(float), np.cumsum(self._sizes)[:-1])
            numbers.append(self._run({i: a for i, a in enumerate(ones) if a.any()}))
        return Compressed(of_state, np.stack(numbers))

    def immediate(self, number: int) -> Compressed | None:
        """F of an operation; `None` where too many of its outputs enter one state."""
        op, pattern = self.analysis.ops[number], self.analysis.immediate[number]
        run = _runs(pattern, np.zeros(pattern.shape[1], np.int64))
        if run is None:
            return None
        place = len(self.analysis.hidden.parts) + number
        numbers = []
        for n in range(run.max(initial=0) + 1):
            by_unit = [
                self._run({place: unit * (run == n)})
                for unit in ((1, 1j) if is_complex(op.delta) else (1,))
            ]
            numbers.append(self.numbering.scalars("complex", by_unit))
        return Compressed(run, np.stack(numbers))

    @property
    def _sizes(self) -> list[int]:
        return [v.size for v in self._seeds[: len(self.analysis.hidden.parts)]]

    def _run(self, seeds: dict[int, np.ndarray]) -> Numbers:
        """The numbers of the tangents of all states, [S], for seeds given by their places; other seeds are zero."""
        env = dict(self._still)
        for place, v in enumerate(self._seeds):
            seed = seeds.get(place, np.zeros(()))
            value = np.broadcast_to(seed.reshape(v.shape) if seed.ndim else seed, v.shape)
            env[v] = self.numbering.constant(value.astype(v.aval.dtype))
        self.numbering.run(self._moving, env, self._tangents)
        return np.concatenate([env[v].reshape(-1) for v in self._outputs])


def _runs(pattern: Pattern, leaf: np.ndarray) -> np.ndarray | None:
    """A run for each column of a pattern, so that those of one share no row."""
    if np.diff(pattern.indptr).max(initial=0) > MOST:
        return None
    return colours_of(sp.csr_array(pattern.T), leaf)


__all__ = ["Compressed", "Entries"]
