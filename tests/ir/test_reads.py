"""Index tables of blocks against dense arrays."""

from unittest.mock import Mock

import numpy as np
import pytest
import scipy.sparse as sp

from etpc.analyse import Analysis, WeightOp
from etpc.analyse._pattern import _valid, columns_of
from etpc.ir._compression import Compression, block_rows


def random_pattern(rows, columns, density, seed):
    rng = np.random.default_rng(seed)
    return sp.csr_array(rng.random((rows, columns)) < density)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_where_immediate_jacobians_lie(seed, density):
    """Some states of a block are not reached in the step itself, and blocks differ in size."""
    states, outputs = 13, 9
    immediate = random_pattern(states, outputs, density, seed)
    block = random_pattern(outputs, states, 0.3, seed + 100)
    rows, op = block_rows(block), Mock(WeightOp, number=0)
    alone = sp.csr_array(sp.eye_array(states, dtype=bool))
    analysis = Mock(Analysis, ops=[op], immediate=[immediate], transition=alone)
    analysis.hidden = Mock(leaf_of=np.zeros_like)
    reads = Compression(analysis)
    found, colour, dense = reads.immediate(op, block), reads.colours.colour, immediate.toarray()
    for slot, output in np.ndindex(rows.shape):
        state = rows[slot, output]
        present = state >= 0 and dense[state, output]
        assert (found.mask is None or found.mask[slot, output]) == present
        if present:
            assert found.at[slot, output] == colour[state] * outputs + output


@pytest.mark.parametrize("density", [0.0, 0.1, 0.9])
def test_columns_of_a_pattern(density):
    pattern = random_pattern(6, 20, density, seed=0)
    np.testing.assert_array_equal(columns_of(pattern), np.unique(pattern.indices))


@pytest.mark.parametrize("seed", range(20))
def test_whether_colours_keep_rows_apart(seed):
    pattern = random_pattern(6, 20, 0.08, seed)
    colour = np.random.default_rng(seed).integers(0, 3, 6)
    dense = pattern.toarray()
    apart = all(dense[colour == c].sum(0).max(initial=0) <= 1 for c in range(3))
    assert _valid(pattern, colour) == apart
