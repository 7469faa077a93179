"""Data that is held constant, and is read in full all the same: new states of other groups, stored or not.

An operation that is cut has the old states in its data constant. But a value that depends on operations of this step
too is a new state of the neurons that compute it, whether the step stores it or not: a spike from a potential that is
reset before it is stored, say. An operation reads it in full, unless an old state in it is of the operation's own
group: of those that its output reaches, in this step or later. What it reads of old states alone stays constant.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .._jax import Variable
from ._pattern import Pattern, columns_of
from ._weights import WeightOp, data_of


class InFull(NamedTuple):
    """What an operation that is cut reads in full."""

    elements: np.ndarray
    """Of its data; boolean, in the shape of that."""
    states: np.ndarray
    """The old states that these depend on; boolean [S]."""


def in_full(
    ops: Sequence[WeightOp],
    patterns: Mapping[Variable, Pattern],
    blocks: Sequence[Pattern],
    bounds: np.ndarray,
) -> dict[int, InFull]:
    """What operations read in full, by number; those that read nothing so are left out.

    `patterns` are those of data, elements x (states, operations), with the bounds of these; `blocks` have the states
    that each output of each operation ever reaches.
    """
    found: dict[int, InFull] = {}
    for op in ops:
        v, own = data_of(op), np.zeros(bounds[0], np.int32)
        if v is None or v not in patterns:
            continue
        own[columns_of(blocks[op.number])] = 1
        old, new = patterns[v][:, : bounds[0]], patterns[v][:, bounds[0] : bounds[-1]]
        mixed = (np.diff(old.indptr) > 0) & (np.diff(new.indptr) > 0)
        elements = mixed & (old @ own == 0)
        if elements.any():
            states = np.zeros(bounds[0], bool)
            states[columns_of(old[elements])] = True
            found[op.number] = InFull(elements.reshape(v.shape), states)
    return found
