"""A long stream: memory does not grow, numbers stay finite, a checkpoint changes nothing."""

from pathlib import Path

import jax
import pytest

import etpc
from tests import endurance


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from Linux")
@pytest.mark.parametrize(
    ("blocks", "steps"),
    [(8, 500), pytest.param(100, 10_000, marks=pytest.mark.long)],
    ids=["thousands", "a million"],
)
def test_a_stream_goes_on(blocks, steps):
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        rows, same = endurance.run(etpc.D_RTRL(), blocks, steps, max(2, blocks // 10))
    found, _ = endurance.verdict(rows, same)
    assert not found
    assert len(same) > 1
    assert all(row["trace"] > 0 for row in rows)
    assert rows[-1]["loss"] < 0.95 * rows[-1]["loss_of_zero"]


def test_what_goes_wrong_is_found():
    good = {"resident": 0, "finite": True, "trace": 1.0}
    rows = [dict(good) for _ in range(8)]
    assert endurance.verdict(rows, [True]) == ([], 0)
    bad = [*rows[:-1], {"resident": 2**30, "finite": False, "trace": 100.0}]
    assert len(endurance.verdict(bad, [False])[0]) == 4
