"""Operations on sparsity patterns, which are boolean sparse matrices."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp

Pattern = Any
"""Which seeds the elements of an array depend on: a boolean `scipy.sparse.csr_array`.

It has a row for each element, in the order of `x.reshape(-1)`, and a column for each seed: the elements of
whatever is perturbed. `None` stands for one without entries, also as an operand and a result of the functions here.
"""


MAX_ENTRIES = 100_000_000
"""Patterns of more entries than this are not formed: about half a gigabyte each."""


class TooDense(Exception):
    """A pattern would have more than `MAX_ENTRIES` entries."""

    def __init__(self, entries: int):
        super().__init__(entries)
        self.entries = entries


def afford(entries: int | np.integer) -> None:
    """Raise `TooDense` before a pattern with so many entries is formed."""
    if entries > MAX_ENTRIES:
        raise TooDense(int(entries))


def empty(rows: int, seeds: int) -> Pattern:
    """A pattern without entries."""
    return sp.csr_array((rows, seeds), dtype=bool)


def union(patterns: Sequence[Pattern]) -> Pattern:
    """The pattern that has the entries of all these patterns, of one shape."""
    present = [pattern for pattern in patterns if pattern is not None]
    return functools.reduce(operator.add, present) if present else None


def everything(patterns: Sequence[Pattern]) -> Pattern:
    """A row with all that any element of some arrays depends on."""
    return union([joined(p, p.shape[:1], (0,)) for p in patterns if p is not None])


def stacked(patterns: Sequence[Pattern], sizes: Sequence[int], seeds: int) -> Pattern:
    """The pattern of some arrays of these sizes, one after the other."""
    blocks = [empty(n, seeds) if p is None else p for p, n in zip(patterns, sizes, strict=True)]
    return blocks[0] if len(blocks) == 1 else sp.csr_array(sp.vstack(blocks, format="csr"))


def columns_of(pattern: Pattern) -> np.ndarray:
    """The seeds that any element depends on, in order."""
    # A mask: `np.unique` is slow on as many entries as a large network has.
    present = np.zeros(pattern.shape[1], bool)
    present[pattern.indices] = True
    return np.flatnonzero(present)


def entries_of(pattern: Pattern) -> tuple[Any, ...]:
    """The shape and the entries of a pattern, by which equal ones are found."""
    return pattern.shape, pattern.indptr.tobytes(), pattern.indices.tobytes()


def values_at(matrix: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The values of a sparse matrix at some places, [n]: zero, or False, where it has no entry."""
    values = np.zeros(rows.shape, matrix.dtype)
    if rows.size:
        values[:] = matrix[rows, columns]
    return values


def pick(pattern: Pattern, index: np.ndarray) -> Pattern:
    """Rows of a pattern by number, flattened; -1 for an empty row."""
    if pattern is None:
        return None
    index = np.asarray(index).reshape(-1)
    if index.size == pattern.shape[0] and np.array_equal(index, np.arange(index.size)):
        return pattern
    inside = index >= 0
    if inside.all():
        afford(np.diff(pattern.indptr)[index].sum())
        return pattern[index]
    return select(np.flatnonzero(inside), index[inside], index.size, pattern)


def select(rows: np.ndarray, columns: np.ndarray, size: int, pattern: Pattern) -> Pattern:
    """Row `rows[i]` of the result joins row `columns[i]` of `pattern`, for all i."""
    if pattern is None:
        return None
    afford(np.diff(pattern.indptr)[columns].sum())
    ones = np.ones(rows.size, bool)
    selector = sp.csr_array((ones, (rows, columns)), shape=(size, pattern.shape[0]))
    return sp.csr_array(selector @ pattern)


def numbering(shape: Sequence[int]) -> np.ndarray:
    """The numbers of the elements of an array, which are the rows of its pattern."""
    return np.arange(math.prod(shape), dtype=np.int64).reshape(tuple(shape))


Axes = Sequence[int | np.integer]
"""`vmap` leaves NumPy integers."""


def joined(pattern: Pattern, shape: Sequence[int], axes: Axes) -> Pattern:
    """Join over axes; the result is that of an array without them."""
    if pattern is None or not axes:
        return pattern
    reduced = [1 if a in axes else n for a, n in enumerate(shape)]
    target = np.broadcast_to(numbering(reduced), tuple(shape)).reshape(-1)
    return select(target, np.arange(target.size), math.prod(reduced), pattern)


def spread(
    pattern: Pattern, shape: Sequence[int], axes: Axes, out: Sequence[int] | None = None
) -> Pattern:
    """Dense over some axes and separate over the other axes: each position along `axes` depends on all of them.

    The result has the shape `out`, which differs from `shape` along `axes` alone.
    """
    reduced = [1 if a in axes else n for a, n in enumerate(shape)]
    places = np.broadcast_to(numbering(reduced), tuple(shape if out is None else out))
    return pick(joined(pattern, shape, axes), places)


def colours_of(pattern: Pattern, leaf: np.ndarray) -> np.ndarray:
    """A colour for each row, so that rows of one colour share no column.

    One colour for all and one for all rows of a leaf are tried first; `leaf` is the leaf of each row.
    """
    rows = pattern.shape[0]
    if _valid(pattern, np.zeros(rows, np.int64)):
        return np.zeros(rows, np.int64)
    if _valid(pattern, leaf.astype(np.int64)):
        members: Pattern = sp.csr_array((np.ones(rows, bool), (leaf, np.arange(rows))))
        return _coloured(members @ pattern, lambda leaves, _: leaves)[leaf]
    if np.bincount(pattern.indices, minlength=1).max() == rows:
        return np.arange(rows)
    return _coloured(pattern, "largest_first")


def _coloured(pattern: Pattern, strategy: Any) -> np.ndarray:
    """A colour for each row, row by row: the first that no row has which it shares a column with."""
    pattern = pattern.astype(np.int32)
    conflicts = nx.from_scipy_sparse_array(sp.csr_array(pattern @ pattern.T))
    conflicts.remove_edges_from(nx.selfloop_edges(conflicts))
    chosen = nx.greedy_color(conflicts, strategy)
    return np.array([chosen[row] for row in range(pattern.shape[0])], np.int64)


def _valid(pattern: Pattern, colour: np.ndarray) -> bool:
    """Whether no two rows of one colour have an entry in the same column."""
    row_colour = np.repeat(colour, np.diff(pattern.indptr))
    keys = np.sort(row_colour * pattern.shape[1] + pattern.indices)  # far faster than `np.unique`
    return bool((keys[1:] != keys[:-1]).all())
