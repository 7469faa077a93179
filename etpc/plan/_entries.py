"""The entries of D and F of a cut step as numbers: equal ones are equal for all parameters and data."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from .._jax import is_complex
from ..analyse import Analysis, Numbers, Pattern, Runs, WeightOp, colours_of

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
    """D and F among some states of a step as numbers, by runs of its tangents on seeds of ones and zeros."""

    def __init__(self, analysis: Analysis, states: np.ndarray):
        self.analysis, self.states = analysis, states
        tangents, hidden = analysis.tangents, analysis.hidden
        self._outputs = {int(n): tangents.outputs[n] for n in np.unique(hidden.part_of(states))}
        self._bounds = hidden.part_bounds
        seeds = len(hidden.parts) + len(analysis.ops)
        self._runs = Runs(tangents, seeds, [*self._outputs.values()])
        self.numbering = self._runs.numbering
        self.none = int(self.numbering.scalars("no entry", [np.zeros(1, np.int64)])[0])
        """The number of an entry that the pattern does not have."""

    def transition(self) -> Compressed:
        """D among the states, none of which may read more than `MOST` other states."""
        hidden, states = self.analysis.hidden, self.states
        pattern: Pattern = sp.csr_array(self.analysis.transition[states][:, states])
        run = colours_of(sp.csr_array(pattern.T), hidden.leaf_of(states))
        of_state = np.full(hidden.size, -1)
        of_state[states] = run
        numbers = []
        for n in range(run.max(initial=0) + 1):
            ones = np.split((of_state == n).astype(float), self._bounds[1:-1])
            numbers.append(self._run({i: a for i, a in enumerate(ones) if a.any()}))
        return Compressed(of_state, np.stack(numbers))

    def immediate(self, ops: Sequence[WeightOp]) -> dict[WeightOp, Compressed]:
        """F of each of some operations, none of whose states is entered by more than `MOST` outputs of it.

        Outputs that enter different states are run together, also those of several operations.
        """
        sizes, first = [op.size for op in ops], len(self.analysis.hidden.parts)
        entered = sp.hstack([self.analysis.immediate[op.number] for op in ops], format="csr")
        run = colours_of(sp.csr_array(entered.T), np.repeat(np.arange(len(ops)), sizes))
        runs = dict(zip(ops, np.split(run, np.cumsum(sizes)[:-1]), strict=True))
        units = (1, 1j) if any(is_complex(op.delta) for op in ops) else (1,)
        by_run: list[Numbers] = []
        for n in range(run.max(initial=0) + 1):
            by_unit = [
                {
                    first + op.number: (unit if is_complex(op.delta) else 1) * (run == n)
                    for op, run in runs.items()
                    if (run == n).any()
                }
                for unit in units
            ]
            by_run.append(self.numbering.scalars("complex", list(map(self._run, by_unit))))
        of_all = np.stack(by_run)
        return {op: Compressed(run, of_all) for op, run in runs.items()}

    def _run(self, seeds: dict[int, np.ndarray]) -> Numbers:
        """The numbers of the tangents of all states, [S], for seeds given by their places; other seeds are zero.

        Those of parts without any of the states are those of no entry.
        """
        env = self._runs.run(seeds)
        numbers = np.full(self.analysis.hidden.size, self.none)
        for n, v in self._outputs.items():
            numbers[self._bounds[n] : self._bounds[n + 1]] = env[v].reshape(-1)
        return numbers
