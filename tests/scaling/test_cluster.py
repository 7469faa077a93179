"""The model of a cluster, `benchmarks/cluster.py`, beside what is played through and what is known by hand."""

import dataclasses

import numpy as np
import pytest

from benchmarks import cluster
from benchmarks.cluster import V5E, Load

CASES = [(10.0, 30.0, 3600.0), (60.0, 300.0, 7200.0), (5.0, 60.0, 600.0)]
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def played(work, save, restart, between, in_background=0.0, failures=4000):
    rng = np.random.default_rng([int(work), int(between)])
    intervals = int(failures * between / work)
    return cluster.simulated_failures(work, save, restart, between, intervals, rng, in_background)


@pytest.mark.parametrize(("save", "restart", "between"), CASES)
def test_what_failures_cost(save, restart, between):
    """The time lost is that of 4,000 failures played through, to 5 %, and least near Young's and Daly's interval."""
    best = cluster.best_interval(save, between)
    lost = {factor: played(factor * best, save, restart, between) - 1 for factor in FACTORS}
    for factor, found in lost.items():
        said = cluster.slower(factor * best, save, restart, between) - 1
        assert abs(found / said - 1) < 0.05, (factor, found, said)
    assert min(lost, key=lambda factor: lost[factor]) == 1.0
    assert lost[0.25] > 1.1 * lost[1.0] < lost[4.0] / 1.1  # and it matters
    finely = best * np.linspace(0.8, 1.25, 46)
    least = min(finely, key=lambda work: cluster.slower(work, save, restart, between))
    assert abs(least / best - 1) < 0.05


def test_checkpoints_in_the_background():
    """Work waits less, and a failure takes back more."""
    for work in (60.0, 120.0, 240.0):
        found = played(work, 0.1, 30.0, 3600.0, in_background=20.0) - 1
        said = cluster.slower(work, 0.1, 30.0, 3600.0, 20.0) - 1
        assert abs(found / said - 1) < 0.05
        assert said > 1.1 * (cluster.slower(work, 0.1, 30.0, 3600.0) - 1)


@pytest.mark.parametrize("hosts", [8, 64, 512])
def test_stragglers(hosts):
    rng = np.random.default_rng(hosts)
    spread = lambda pause: cluster.simulated_stragglers(hosts, 0.02, 1e-3, pause, 1e-3, 20_000, rng)
    only, pauses = cluster.slowest(hosts, 1e-3), cluster.paused(hosts, 0.02, 0.1, 1e-3)
    assert abs((spread(0.0) - 0.02) / only - 1) < 0.05
    assert abs((spread(0.1) - 0.02) / (only + pauses) - 1) < 0.1


def test_a_ring_by_hand():
    """Three gigabytes over 4 chips in one square, and over two pods."""
    quiet = dataclasses.replace(V5E, hop=0.0, start=0.0, away=0.0)
    of = lambda chips: cluster.all_reduce(quiet, chips, 3e9)
    assert of(1) == 0
    assert of(4) == pytest.approx(2 * 3 / 4 * 3e9 / (2 * 50e9))
    inside = 2 * 255 / 256 * 3e9 / (4 * 50e9)
    assert of(256) == pytest.approx(inside)
    assert of(512) == pytest.approx(inside + 2 * 1 / 2 * 3e9 / 32 / 25e9)


def test_what_limits_an_update():
    limit = lambda chips, **load: cluster.times(V5E, chips, Load(**load)).limit
    small = dict(cycles=1.5e6, reads=1e6, saves=1e8)
    assert limit(256, **small | {"cycles": 1e9}) == "chip"
    assert limit(256, **small | {"reads": 1e8}) == "host's network"
    assert limit(256, **small | {"gathers": (1000, 1e6)}) == "exchange"
    assert limit(256, **small | {"passes": (1000, 1e6)}) == "exchange"
    assert limit(100_000, **small) == "pauses of hosts"
