"""The transitions among the states of a block, by their places in it."""

import dataclasses
from functools import cached_property

import numpy as np
import scipy.sparse as sp

DENSE_UP_TO = 8
"""Blocks up to this size have all transitions: code without gaps is faster."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """P transitions from a place `before` to a place `after` of a block of m states.

    They are closed under composition and contain the transition of each place to itself, so that products of
    transitions have the same places. They are ordered by `after`, then by `before`. For two states of which
    the second reads the first:

        m = 2, after = [0, 1, 1], before = [0, 0, 1]     stands for   D = [[a, 0], [b, c]]
        into     = [[0, 0], [1, 2]]      place 0 is entered by a alone, and place 1 by b and c
        out_of   = [[0, 1], [2, 0]]      place 0 is left by a and b, and place 1 by c alone
        products = later [[0, 0], [1, 2], [2, 0]], earlier [[0, 0], [0, 1], [2, 0]]
                   a' a,   b' a + c' b,   c' c; the tables say which entries are padding
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
        """The transitions that end at each place, [m, k], and which of these entries exist."""
        return grouped(self.after, np.arange(self.after.size), self.m)

    @cached_property
    def out_of(self) -> tuple[np.ndarray, np.ndarray]:
        """The transitions that begin at each place, [m, k], and which of these entries exist."""
        return grouped(self.before, np.arange(self.before.size), self.m)

    @cached_property
    def products(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs (later, earlier) of transitions that make up each transition, [P, k] each, and which exist."""
        number = sp.csr_array(
            (np.arange(1, self.after.size + 1), (self.after, self.before)), shape=(self.m, self.m)
        )
        counts = np.bincount(self.after, minlength=self.m)[self.before]
        later = np.repeat(np.arange(self.after.size), counts)
        starts = np.searchsorted(self.after, np.arange(self.m))
        offset = np.arange(later.size) - np.repeat(np.cumsum(counts) - counts, counts)
        earlier = starts[self.before[later]] + offset
        product = np.asarray(number[self.after[later], self.before[earlier]]).reshape(-1) - 1
        index, exists = grouped(product, np.arange(later.size), self.after.size)
        return later[index], earlier[index], exists

    def with_virtual(self, count: int) -> "Pairs":
        """These and the transitions of so many virtual states after the block, which every state enters."""
        m = self.m + count
        if m <= DENSE_UP_TO:
            return every_pair(m)
        after = np.concatenate([self.after, np.repeat(np.arange(self.m, m), m)])
        before = np.concatenate([self.before, np.tile(np.arange(m), count)])
        return Pairs(m, after, before)


def every_pair(m: int) -> Pairs:
    """All transitions of a block."""
    after, before = np.divmod(np.arange(m * m), max(m, 1))
    return Pairs(m, after, before)


def grouped(group: np.ndarray, member: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The members of each group as a table [count, k], padded with 0, and which entries exist."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=count)
    column = np.arange(group.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    table = np.zeros((count, int(sizes.max(initial=0))), np.int64)
    exists = np.zeros(table.shape, bool)
    table[group[order], column] = member[order]
    exists[group[order], column] = True
    return table, exists
