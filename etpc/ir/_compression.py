"""How a step's Jacobians are read: the colouring by which few products do, and the index tables of blocks."""

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp

from ..analyse import Analysis, Pattern, WeightOp, colours_of, values_at
from ..forms import Pairs
from ._pairs import check_table, pairs_of, uses

Aligned = tuple[list[int], dict[tuple[int, int], int]]
"""Parts of the states, by number; and the row of the compressed `D` that has the transition to one from another."""


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Where the entries of an array lie in a flat vector."""

    at: np.ndarray
    """The place of each entry; any number where the entry does not exist."""
    mask: np.ndarray | None
    """Which entries exist; `None` where all do."""

    @classmethod
    def of(cls, at: np.ndarray, present: np.ndarray) -> "Index":
        return cls(at.astype(np.int32), None if present.all() else present)

    def rows(self) -> "list[Index]":
        """An index for each row, along the first axis."""
        masks = [None] * len(self.at) if self.mask is None else self.mask
        return [Index(at, mask) for at, mask in zip(self.at, masks, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """Columns of an operation's `F` in C colours: columns of one colour share no row.

    The sum of the columns of a colour is one Jacobian-vector product.
    """

    colour: np.ndarray
    """The colour of each output; int [outputs]."""
    count: int
    """C."""
    entries: Index
    """Where the entries of each output lie in the compressed `F` [C, S]; [outputs, most states]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Colouring:
    """Rows of the step's Jacobian in C colours: rows of one colour share no column.

    The sum of the rows of a colour is one vector-Jacobian product, and holds each of their entries
    in a place of its own.
    """

    colour: np.ndarray
    """The colour of each new state; int [S]. A state that depends on no old state and no operation has -1 and is in
    no product."""
    count: int
    """C."""
    transition: Index
    """The row that each entry of the compressed `D` [C, S] belongs to."""
    immediate: tuple[Index, ...]
    """The row that each entry of the compressed `F` [C, outputs] belongs to, for each operation."""
    columns: dict[int, Columns]
    """The operations whose `F` is read by columns instead, by number. A parameter that many states share
    is a single column, but takes a row for each of them."""

    def aligned(self, sizes: Sequence[int]) -> list[Aligned] | None:
        """The parts of the states, of these sizes, that depend on each other, if each state depends on states at its
        own place in their parts alone; else `None`.

        Two states of each neuron, v' = a v + b u and u' = c u, give `[([0, 1], {(0, 0): 0, (0, 1): 0, (1, 1): 1})]`.
        """
        bounds, rows = np.cumsum([0, *sizes]), dict[tuple[int, int], int]()
        for before, (start, end) in enumerate(itertools.pairwise(bounds)):
            for row, index in enumerate(self.transition.rows()):
                at, mask = index.at[start:end], index.mask
                if start == end or (mask is not None and not mask[start:end].any()):
                    continue
                after = int(np.searchsorted(bounds, at[0], side="right")) - 1
                is_whole = mask is None or mask[start:end].all()
                if not is_whole or not np.array_equal(at, np.arange(*bounds[after : after + 2])):
                    return None
                rows[after, before] = row
        graph = nx.Graph([*rows])
        graph.add_nodes_from(range(len(sizes)))
        found = [sorted(parts) for parts in nx.connected_components(graph)]
        return [(p, {pair: row for pair, row in rows.items() if pair[1] in p}) for p in found]

    def __str__(self) -> str:
        columns = sum(columns.count for columns in self.columns.values())
        more = f" and {columns} Jacobian-vector products" if columns else ""
        return f"{self.count} vector-Jacobian products{more}"


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The blocks of the outputs of some operations: `rows[a, o]` is a state, or -1."""

    rows: np.ndarray
    states: Index
    """`rows` as places in the vector of states; [m, O]."""
    pairs: Pairs
    """The transitions among the places of a block."""
    transition: Index
    """Where the entries of `D` for each pair and output lie in the compressed `D`; [P, o], where o is 1 if all outputs
    have one block."""


class Compression:
    """How D and each F are read: by rows, few products for all, and the F of some operations by columns.

    What it works out is kept: programs that a pass rewrites share it, and traces with equal blocks share a layout.
    """

    def __init__(self, analysis: Analysis, by_columns: Collection[int] = ()):
        self.analysis, self.by_columns = analysis, frozenset(by_columns)
        self._layouts: dict[tuple[Any, ...], Layout] = {}

    @cached_property
    def colours(self) -> Colouring:
        """The new states, coloured for the transition and for each F that is read by rows."""
        a = self.analysis
        ops = [op.number for op in a.ops if a.immediate[op.number].nnz]
        columns = {k: _columns(a.immediate[k]) for k in ops if k in self.by_columns}
        by_rows = [k for k in ops if k not in columns]
        patterns = [a.transition, *(a.immediate[k] for k in by_rows)]
        stacked: Pattern = sp.csr_array(sp.hstack(patterns, format="csr"))
        colour = colours_of(stacked, a.hidden.leaf_of(np.arange(stacked.shape[0])))
        colour[np.diff(stacked.indptr) == 0] = -1
        count = int(colour.max(initial=0)) + 1
        transition, *owners = (_owners(pattern, colour, count) for pattern in patterns)
        immediate = dict(zip(by_rows, owners, strict=True))
        no_entries = Index(np.zeros((count, 0), np.int32), None)
        by_op = tuple(immediate.get(k, no_entries) for k in range(len(a.ops)))
        return Colouring(colour, count, transition, by_op, columns)

    def layout(self, blocks: Pattern) -> Layout:
        """Where the states of blocks, and the transitions among them, lie in what is read."""
        key = (blocks.shape, blocks.indptr.tobytes(), blocks.indices.tobytes())
        if key not in self._layouts:
            self._layouts[key] = self._layout(block_rows(blocks))
        return self._layouts[key]

    def _layout(self, rows: np.ndarray) -> Layout:
        m, transition = rows.shape[0], self.analysis.transition
        table = rows[:, :1] if (rows == rows[:, :1]).all() else rows
        used = uses(table, transition)
        pairs = pairs_of(used, m)
        check_table(pairs, table.shape[1])
        number = np.searchsorted(pairs.after * m + pairs.before, used.after * m + used.before)
        present = np.zeros((pairs.after.size, table.shape[1]), bool)
        present[number, used.output] = True
        after, before = table[pairs.after], table[pairs.before]
        at = self.colours.colour[np.maximum(after, 0)] * transition.shape[0] + np.maximum(before, 0)
        return Layout(rows, Index.of(_fill(rows), rows >= 0), pairs, Index.of(at, present))

    def immediate(self, op: WeightOp, blocks: Pattern) -> Index:
        """Where `F[a, o]` of an operation lies in what is read of it, for the states of blocks; [m, O]."""
        rows, pattern = self.layout(blocks).rows, self.analysis.immediate[op.number]
        columns, (states, outputs) = self.colours.columns.get(op.number), pattern.shape
        if columns is None:
            at = self.colours.colour[np.maximum(rows, 0)] * outputs + np.arange(outputs)
        else:
            at = columns.colour * states + np.maximum(rows, 0)
        return Index.of(at, entered(rows, pattern))

    def __str__(self) -> str:
        paths = ", ".join(self.analysis.ops[k].path for k in self.colours.columns)
        return f"{self.colours} for {paths}" if paths else str(self.colours)


def block_rows(block: Pattern) -> np.ndarray:
    """The states of each output's block, sorted, as a table [m, O] padded with -1."""
    counts = np.diff(block.indptr)
    m = int(counts.max(initial=0))
    rows = np.full((m, block.shape[0]), -1, np.int64)
    column = np.repeat(np.arange(block.shape[0]), counts)
    slot = np.arange(block.nnz) - np.repeat(block.indptr[:-1], counts)
    rows[slot, column] = block.indices
    return rows


def _columns(immediate: Pattern) -> Columns:
    transposed: Pattern = sp.csr_array(immediate.T)
    colour = colours_of(transposed, np.zeros(transposed.shape[0], np.int64))
    count = int(colour.max(initial=0)) + 1
    states = block_rows(transposed).T
    at = colour[:, None] * transposed.shape[1] + _fill(states)
    return Columns(colour, count, Index.of(at, states >= 0))


def _owners(pattern: Pattern, colour: np.ndarray, count: int) -> Index:
    """The row that each place (colour, column) belongs to."""
    columns = pattern.shape[1]
    owner = np.full((count, columns), -1, np.int64)
    rows = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
    owner[colour[rows], pattern.indices] = rows
    return Index.of(_fill(owner), owner >= 0)


def _fill(owner: np.ndarray) -> np.ndarray:
    """Give absent entries (-1) numbers that continue those of their neighbours, where possible.

    The values read there are masked; but a table without gaps is read as one slice, which is faster. In a row
    [-1, 4, 5, -1], the first entry that is present is 4 at place 1, so the row becomes [3, 4, 5, 6] (or
    [3, 4, 5, 5], if no number of the table is larger than 5).
    """
    filled = owner.copy()
    for row in filled.reshape(-1, filled.shape[-1]):
        present = np.flatnonzero(row >= 0)
        if present.size == 0:
            row[:] = 0
            continue
        shift = row[present[0]] - present[0]
        guess = np.clip(np.arange(row.size) + shift, 0, filled.max(initial=0))
        row[row < 0] = guess[row < 0]
    return filled


def entered(rows: np.ndarray, immediate: Pattern) -> np.ndarray:
    """Which places of the blocks `rows` an operation enters: whether its `F[a, o]` has an entry; [m, O]."""
    present = rows >= 0
    place, output = np.nonzero(present)
    present[place, output] = values_at(immediate, rows[place, output], output)
    return present
