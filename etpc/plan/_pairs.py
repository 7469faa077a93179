"""Which transitions there are among the states of a block, by their places in it."""

import dataclasses
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from .._errors import MemoryLimitError
from ..analyse._pattern import Pattern
from ..analyse._reach import closure

DENSE_UP_TO = 8
"""Blocks up to this size have all transitions: code without gaps is faster."""
MAX_TABLE = 1 << 28
"""Entries of an index table."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """P transitions from a place `before` to a place `after` of a block of m states.

    Closed under composition, and with each place's transition to itself, so that products of
    transitions have the same places. Ordered by `after`, then by `before`.
    """

    m: int
    after: np.ndarray
    before: np.ndarray

    @property
    def dense(self) -> bool:
        """Whether all m x m transitions are there."""
        return self.after.size == self.m * self.m

    @cached_property
    def into(self) -> tuple[np.ndarray, np.ndarray]:
        """For each place, the transitions that end there: [m, k], and which of them exist."""
        return _grouped(self.after, np.arange(self.after.size), self.m)

    @cached_property
    def out_of(self) -> tuple[np.ndarray, np.ndarray]:
        """For each place, the transitions that begin there."""
        return _grouped(self.before, np.arange(self.before.size), self.m)

    @cached_property
    def products(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each transition, the pairs of transitions (later, earlier) that make it up: [P, k]."""
        number = sp.csr_array(
            (np.arange(1, self.after.size + 1), (self.after, self.before)), shape=(self.m, self.m)
        )
        counts = np.bincount(self.after, minlength=self.m)[self.before]
        later = np.repeat(np.arange(self.after.size), counts)
        starts = np.searchsorted(self.after, np.arange(self.m))
        offset = np.arange(later.size) - np.repeat(np.cumsum(counts) - counts, counts)
        earlier = starts[self.before[later]] + offset
        product = np.asarray(number[self.after[later], self.before[earlier]]).reshape(-1) - 1
        index, exists = _grouped(product, np.arange(later.size), self.after.size)
        return later[index], earlier[index], exists


def _grouped(group: np.ndarray, member: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The members of each group as a table [count, k], padded with 0, and which entries exist."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=count)
    column = np.arange(group.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    table = np.zeros((count, int(sizes.max(initial=0))), np.int64)
    exists = np.zeros(table.shape, bool)
    table[group[order], column] = member[order]
    exists[group[order], column] = True
    return table, exists


def every_pair(m: int) -> Pairs:
    """All transitions of a block."""
    after, before = np.divmod(np.arange(m * m), max(m, 1))
    return Pairs(m, after, before)


def with_virtual(pairs: Pairs, count: int) -> Pairs:
    """Those of a block and so many virtual states after it, which all of the block and all of them
    enter."""
    m = pairs.m + count
    if m <= DENSE_UP_TO:
        return every_pair(m)
    after = np.concatenate([pairs.after, np.repeat(np.arange(pairs.m, m), m)])
    before = np.concatenate([pairs.before, np.tile(np.arange(m), count)])
    return Pairs(m, after, before)


@dataclasses.dataclass(frozen=True, eq=False)
class Uses:
    """Where the transitions of the step are in the blocks: one entry for each, five arrays."""

    output: np.ndarray
    after: np.ndarray
    """Place in the block of the output."""
    before: np.ndarray
    new: np.ndarray
    """The states that the places are."""
    old: np.ndarray


def uses(rows: np.ndarray, transition: Pattern) -> Uses:
    """The transitions of the step inside each output's block `rows` [m, O] (-1 where there is none)."""
    m, outputs = rows.shape
    size = transition.shape[0]
    place, output = np.nonzero(rows >= 0)
    state = rows[place, output]
    counts = np.diff(transition.indptr)[state]
    if counts.sum() > min(m * m * outputs, MAX_TABLE):  # a state that reads many has few in a block
        return _uses_by_pair(rows, transition)
    entry = np.repeat(np.arange(state.size), counts)
    offset = np.arange(entry.size) - np.repeat(np.cumsum(counts) - counts, counts)
    old = transition.indices[transition.indptr[state[entry]] + offset].astype(np.int64)
    # where the old state is in the block of the same output, if it is there
    keys = output * size + state
    order = np.argsort(keys)
    wanted_keys = output[entry] * size + old
    position = np.minimum(np.searchsorted(keys[order], wanted_keys), max(keys.size - 1, 0))
    inside = keys[order][position] == wanted_keys if keys.size else np.zeros(0, bool)
    entry, old, position = entry[inside], old[inside], position[inside]
    return Uses(output[entry], place[entry], place[order][position], state[entry], old)


def _uses_by_pair(rows: np.ndarray, transition: Pattern) -> Uses:
    """Likewise, by asking of each pair of states in a block whether the step has the transition."""
    m, outputs = rows.shape
    if m * m * outputs > MAX_TABLE:
        raise _too_many(m, outputs)
    size = transition.shape[0]
    new_states = np.repeat(np.arange(size, dtype=np.int64), np.diff(transition.indptr))
    keys = np.sort(new_states * size + transition.indices)
    after, before, output = np.indices((m, m, outputs)).reshape(3, -1)
    new, old = rows[after, output], rows[before, output]
    wanted_keys = np.where((new >= 0) & (old >= 0), new * size + old, -1)
    position = np.minimum(np.searchsorted(keys, wanted_keys), keys.size - 1)
    inside = keys[position] == wanted_keys
    return Uses(output[inside], after[inside], before[inside], new[inside], old[inside])


def pairs_of(used: Uses, m: int) -> Pairs:
    """The transitions of a block, closed under composition."""
    if m <= DENSE_UP_TO:
        return every_pair(m)
    ones = np.ones(used.after.size, bool)
    direct: Pattern = sp.csr_array((ones, (used.after, used.before)), shape=(m, m), dtype=bool)
    identity: Pattern = sp.csr_array(sp.eye_array(m, dtype=bool, format="csr"))
    closed = sp.coo_array(closure(identity, sp.csr_array(direct.T + identity)))
    if closed.nnz > m * m // 2:
        return every_pair(m)
    order = np.lexsort((closed.col, closed.row))
    return Pairs(m, closed.row[order].astype(np.int64), closed.col[order].astype(np.int64))


def check_table(pairs: Pairs, outputs: int) -> None:
    """Raise where the tables of a layout would be too large."""
    if pairs.after.size * outputs > MAX_TABLE:
        raise _too_many(pairs.m, outputs)


def _too_many(m: int, outputs: int) -> MemoryLimitError:
    return MemoryLimitError(
        f"The transitions among {m:,} states for each of {outputs:,} outputs are more than "
        f'{MAX_TABLE:,} numbers. Use D_RTRL or ES_D_RTRL, SnAp with fewer steps, or algo="auto" '
        "with memory=."
    )


__all__ = ["Pairs", "Uses", "check_table", "every_pair", "pairs_of", "uses"]
