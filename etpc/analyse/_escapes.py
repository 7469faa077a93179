"""Paths along which influence leaves a trace: through data that is held constant."""

import dataclasses
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np

from ._hidden import HiddenStates
from ._pattern import Pattern, columns_of
from ._weights import WeightOp


@dataclasses.dataclass(frozen=True)
class Escape:
    """A path along which influence leaves a trace."""

    source: str
    """`hidden v`, or `the output of .weight`."""
    through: tuple[str, ...]
    """The paths of the weights at which the path is cut, in order; empty where nothing is cut."""
    target: str
    steps: int | None = None
    """After how many steps influence leaves a trace that follows it for a number of steps."""

    def __str__(self) -> str:
        late = "" if self.steps is None else f", after {self.steps} steps"
        return " -> ".join((self.source, *self.through, self.target)) + late


@dataclasses.dataclass(frozen=True, eq=False)
class Dependence:
    """What a value depends on within the cut step."""

    states: np.ndarray
    """Boolean over the S states."""
    ops: np.ndarray
    """Boolean over the operations: whether it may read their outputs."""

    @property
    def anything(self) -> bool:
        """Whether it depends on any state or operation."""
        return bool(self.states.any() or self.ops.any())


@dataclasses.dataclass(frozen=True, eq=False)
class Influence:
    """How influence passes on within a step through the operations whose data is held constant."""

    ops: Sequence[WeightOp]
    cut: Collection[int]
    hidden: HiddenStates
    immediate: Sequence[Pattern]
    """`F` of each operation."""
    data: Sequence[Dependence]
    """What the data of each operation depends on."""

    @cached_property
    def into(self) -> np.ndarray:
        """`into[j, k]`: whether the output of operation k enters the data of j, which is cut."""
        count = len(self.ops)
        read = np.array([reads.ops for reads in self.data], bool).reshape(count, count)
        is_cut = [op.number in self.cut for op in self.ops]
        return read & np.array(is_cut, bool)[:, None]

    @cached_property
    def to_state(self) -> np.ndarray:
        """Boolean over the operations: whether they reach a state, directly or through others."""
        return self.upstream(np.array([bool(pattern.nnz) for pattern in self.immediate], bool))

    def upstream(self, start: np.ndarray) -> np.ndarray:
        """Operations in `start`, and all whose output enters one of them."""
        reached = start
        for _ in start:
            reached = reached | self.into[reached].any(0)
        return reached

    def escapes(self, op: WeightOp, block: Pattern) -> tuple[Escape, ...]:
        """Paths from an operation's block or output, through a cut, to a state."""
        members = columns_of(block)
        paths: list[Escape] = []
        for j, (path, target) in self._cuts.items():
            shared = members[self.data[j].states[members]]
            if shared.size:
                sources = [f"hidden {name}" for name in self.hidden.names(shared)]
            else:
                sources = [f"the output of {op.path}"] if self.into[j, op.number] else []
            paths += [Escape(source, path, target) for source in sources]
        return tuple(dict.fromkeys(paths))

    @cached_property
    def _cuts(self) -> dict[int, tuple[tuple[str, ...], str]]:
        """By the number of each operation at which a path to a state is cut: the paths of the weights from there
        on, and the state."""
        cuts: dict[int, tuple[tuple[str, ...], str]] = {}
        for j, op in enumerate(self.ops):
            if op.number in self.cut and self.to_state[j]:
                via, target = self._target(j)
                cuts[j] = (op.path, *via), target
        return cuts

    def _target(self, j: int) -> tuple[list[str], str]:
        """The first state that operation j reaches, and the operations in between."""
        via: list[str] = []
        visited: set[int] = set()
        while not self.immediate[j].nnz:
            visited.add(j)
            readers = [k for k in np.flatnonzero(self.into[:, j]) if self.to_state[k]]
            j = next(int(k) for k in readers if k not in visited)
            via.append(self.ops[j].path)
        rows = np.flatnonzero(np.diff(self.immediate[j].indptr))
        return via, f"hidden {self.hidden.names(rows)[0]}"
