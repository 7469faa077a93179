"""The transitions inside blocks, found by state or by pair, against all that there are."""

import numpy as np
import pytest
import scipy.sparse as sp

from etpc.ir import _pairs


def found(used: _pairs.Uses) -> list[tuple[int, ...]]:
    parts = used.output, used.after, used.before, used.new, used.old
    return sorted(zip(*(part.tolist() for part in parts), strict=True))


@pytest.mark.parametrize("seed", range(50))
def test_uses(seed):
    rng = np.random.default_rng(seed)
    size, outputs = int(rng.integers(2, 12)), int(rng.integers(1, 8))
    m = int(rng.integers(1, size + 1))
    step = rng.random((size, size)) < rng.random()
    step[0, 0] = True
    rows = np.full((m, outputs), -1)
    for o in range(outputs):
        count = int(rng.integers(0, m + 1))
        rows[:count, o] = np.sort(rng.choice(size, count, replace=False))
    every = [
        (o, a, b, int(rows[a, o]), int(rows[b, o]))
        for o in range(outputs)
        for a in range(m)
        for b in range(m)
        if rows[a, o] >= 0 and rows[b, o] >= 0 and step[rows[a, o], rows[b, o]]
    ]
    transition = sp.csr_array(step)
    assert found(_pairs.uses(rows, transition)) == every
    assert found(_pairs._uses_by_pair(rows, transition)) == every
