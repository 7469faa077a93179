"""Which transitions of the step are in which places of the blocks."""

import dataclasses

import numpy as np
import scipy.sparse as sp

from ..analyse import Pattern, closure, values_at
from ..errors import MemoryLimitError
from ..forms import DENSE_UP_TO, Pairs, every_pair

MAX_TABLE = 1 << 28
"""An index table has at most so many entries."""


@dataclasses.dataclass(frozen=True, eq=False)
class Uses:
    """Where the transitions of the step are in the blocks: five arrays with an entry for each."""

    output: np.ndarray
    """The output whose block it is."""
    after: np.ndarray
    """The place of the new state in that block."""
    before: np.ndarray
    """The place of the old state."""
    new: np.ndarray
    """The number of the new state."""
    old: np.ndarray
    """The number of the old state."""


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
    # where the old state is in the block of the same output, counted from 1
    places = sp.csr_array((place + 1, (output, state)), (outputs, size))
    before = values_at(places, output[entry], old) - 1
    inside = before >= 0
    entry, old = entry[inside], old[inside]
    return Uses(output[entry], place[entry], before[inside], state[entry], old)


def _uses_by_pair(rows: np.ndarray, transition: Pattern) -> Uses:
    """The same as `uses`, by asking of each pair of states in a block whether the step has the transition."""
    m, outputs = rows.shape
    if m * m * outputs > MAX_TABLE:
        raise _too_many(m, outputs)
    after, before, output = np.indices((m, m, outputs)).reshape(3, -1)
    new, old = rows[after, output], rows[before, output]
    inside = (new >= 0) & (old >= 0)
    inside[inside] = values_at(transition, new[inside], old[inside])
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
        f"{MAX_TABLE:,} numbers. Use D_RTRL or ES_D_RTRL, or SnAp with fewer steps; `etpc.suggest` "
        "measures them."
    )
