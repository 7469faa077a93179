"""A long stream: memory does not grow, numbers stay finite, and to go on from a checkpoint changes nothing.

A recurrent spiking network follows a target that drifts, and learns all the time. After each checkpoint a second run
goes on from the file; at the next one both must be the same, bit by bit.
"""

import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import etpc
from benchmarks.network import N_IN, N_OUT, Network
from tests.helpers import finite, loss

BATCH, EVERY = 4, 10
GROWTH = 8 * 2**20
"""Bytes by which resident memory may grow after the first blocks: what an allocator keeps back."""
STATISTICS = Path("/proc/self/statm")


def block_of(n, steps):
    """The inputs and targets of a block by its number."""
    key = jax.random.fold_in(jax.random.key(1), n)
    xs = jax.random.bernoulli(key, 0.2, (steps, BATCH, N_IN)).astype(jnp.float32)
    mix = jax.random.normal(jax.random.fold_in(jax.random.key(2), n // 8), (N_IN, N_OUT)) / 4
    return xs, xs @ mix


def run(blocks, steps, checkpoints, path):
    """The figures of each block, and whether the runs from checkpoints were the same."""
    network = Network(32, key=jax.random.key(0))
    network = eqx.tree_at(lambda m: m.readout.weight, network, replace_fn=lambda w: 0.1 * w)
    program = etpc.compile(network, inputs=jnp.zeros(N_IN))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    learner = etpc.online(program, loss, optimizer, EVERY)
    now = start = (network, *learner.init(network, BATCH))
    beside, rows, same, given = start, [], [], jax.jit(block_of, static_argnums=1)
    for n in range(blocks):
        if n % checkpoints == 0:
            same.append(bool(eqx.tree_equal(beside, now)))
            etpc.save(path, now)
            beside = etpc.load(path, start)
        xs, targets = given(n, steps)
        *now, losses = learner.update(*now, xs, targets)
        now, beside = tuple(now), learner.update(*beside, xs, targets)[:3]
        rows.append(
            {
                "resident": int(STATISTICS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
                "loss": float(losses.mean()),
                "loss_of_zero": float((targets**2).sum(-1).mean()),
                "trace": max(float(jnp.abs(a).max()) for a in jax.tree.leaves(now[2].traces)),
                "finite": finite(eqx.filter((now, losses), eqx.is_inexact_array)),
            }
        )
        print(rows[-1])
    return rows, [*same, bool(eqx.tree_equal(beside, now))]


def faults(rows, same):
    """What went wrong, in words."""
    quarter = len(rows) // 4
    growth = max(row["resident"] for row in rows[quarter:]) - rows[quarter]["resident"]
    early = max(row["trace"] for row in rows[quarter : 2 * quarter])
    late = max(row["trace"] for row in rows[-quarter:])
    found = {
        f"resident memory grew by {growth / 2**20:.1f} MiB": growth > GROWTH,
        "a number is not finite": not all(row["finite"] for row in rows),
        "a run from a checkpoint went apart": not all(same),
        f"the traces grew from {early:.3g} to {late:.3g}": late > 10 * early,
    }
    return [words for words, is_so in found.items() if is_so]


@pytest.mark.slow
@pytest.mark.skipif(not STATISTICS.exists(), reason="reads memory from Linux")
@pytest.mark.parametrize(
    ("blocks", "steps"),
    [(8, 500), pytest.param(100, 10_000, marks=pytest.mark.long)],
    ids=["thousands", "a million"],
)
def test_a_stream_goes_on(blocks, steps, tmp_path):
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        rows, same = run(blocks, steps, max(2, blocks // 10), tmp_path / "run.etpc")
    assert not faults(rows, same)
    assert len(same) > 2
    assert all(row["trace"] > 0 for row in rows)
    assert rows[-1]["loss"] < 0.95 * rows[-1]["loss_of_zero"]


def test_what_goes_wrong_is_found():
    good = {"resident": 0, "finite": True, "trace": 1.0}
    rows = [dict(good) for _ in range(8)]
    assert not faults(rows, [True])
    bad = [*rows[:-1], {"resident": 2**30, "finite": False, "trace": 100.0}]
    assert len(faults(bad, [False])) == 4
