"""Sparsity patterns in few numbers, and what the graph of a program looks like."""

from typing import Any

import numpy as np
import scipy.sparse as sp

from ..analyse import Analysis
from ..plan import Plan

MOST = 4000
"""How many strips a pattern may have. One that has more is shown in coarser cells."""


def strips(pattern: Any) -> dict[str, Any]:
    """A pattern as strips `[row, column, width, height, shift]`: row `row + i` has the columns from
    `column + i * shift` on, `width` of them, for each i below `height`.

    A diagonal is one strip of width and shift one, a block one of shift zero. Where there are too many strips, each
    cell stands for `scale` x `scale` entries, one of which at least is in the pattern.
    """
    rows, columns = pattern.shape
    scale, found = 1, _strips(sp.csr_array(pattern))
    while len(found) > MOST:
        scale *= 2
        coo = pattern.tocoo()
        cells = np.unique(np.stack([coo.row // scale, coo.col // scale]), axis=1)
        shape = (-(-rows // scale), -(-columns // scale))
        coarse = sp.csr_array((np.ones(cells.shape[1], bool), (cells[0], cells[1])), shape=shape)
        found = _strips(coarse)
    return {
        "rows": rows,
        "columns": columns,
        "entries": int(pattern.nnz),
        "scale": scale,
        "strips": found.tolist(),
    }


def _strips(pattern: Any) -> np.ndarray:
    """The strips of a pattern: intervals of rows, joined where they follow each other."""
    pattern.sort_indices()
    row = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
    column = pattern.indices.astype(np.int64)
    starts = np.ones(row.size, bool)
    starts[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1] + 1)
    at = np.flatnonzero(starts)
    width = np.diff(np.append(at, row.size))
    intervals = np.stack([row[at], column[at], width], 1)
    done = []
    for shift in (0, 1, -1):  # blocks, then diagonals, then what is reversed
        found, height = _joined(intervals, shift)
        alone = height == 1 if shift != -1 else np.zeros(len(intervals), bool)
        done.append(found if shift == -1 else found[found[:, 3] > 1])
        intervals = intervals[alone]
    return np.concatenate(done)


def _joined(intervals: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of one width in rows that follow each other, where each begins `shift` after the last one, as strips;
    and how high the strip of each interval is."""
    row, column, width = intervals.T
    origin = column - shift * row
    order = np.lexsort((row, origin, width))
    row, column, width, origin = (a[order] for a in (row, column, width, origin))
    new = np.ones(row.size, bool)
    new[1:] = (row[1:] != row[:-1] + 1) | (origin[1:] != origin[:-1]) | (width[1:] != width[:-1])
    at = np.flatnonzero(new)
    height = np.diff(np.append(at, row.size))
    of_each = np.empty(row.size, np.int64)
    of_each[order] = np.repeat(height, height)
    return np.stack([row[at], column[at], width[at], height, np.full(at.size, shift)], 1), of_each


def pattern_record(plan: Plan) -> dict[str, Any]:
    """D, and F of each operation that reaches a state, for JSON."""
    a: Analysis = plan.analysis
    ops = [op for op in a.ops if a.reach[op.number].role == "state"]
    immediate = [{"op": op.number, **strips(a.immediate[op.number])} for op in ops]
    return {"transition": strips(a.transition), "immediate": immediate}
