"""A stream that goes on for as long as is asked, and what it does to the process and the numbers.

    python -m tests.endurance --steps 1000000

A recurrent spiking network follows a random target and learns all the time. Every block is printed:
resident memory, the error, the largest number in the traces. After each checkpoint a second run goes on from
the file; at the next one both must be the same, bit by bit. Exit status 1 where memory
grew, a number was not finite, or the two went apart.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import etpc
from etpc import nn
from tests.helpers import loss

INPUTS, NEURONS, BATCH, EVERY = 16, 32, 4, 10
GROWTH = 8 * 2**20
"""Bytes by which resident memory may grow after the first blocks: what an allocator keeps back."""


class State(NamedTuple):
    V: jax.Array
    r: jax.Array


class Network(eqx.Module):
    """Leaky integrate-and-fire neurons that read the input and each other's last spikes."""

    hidden: eqx.nn.Linear
    lif: nn.LIF
    readout: nn.LeakyRateReadout

    def __init__(self, key):
        k1, k2 = jax.random.split(key)
        hidden = eqx.nn.Linear(INPUTS + NEURONS, NEURONS, key=k1)
        self.hidden = nn.init(hidden, "lecun_normal", k1)
        self.lif = nn.LIF(NEURONS, tau=20.0, R=20.0)
        readout = nn.LeakyRateReadout(NEURONS, 2, tau=10.0, key=k2)
        self.readout = nn.init(readout, "kaiming_normal", k2, gain=0.1)

    def init_state(self):
        return State(self.lif.init_state(), self.readout.init_state())

    def __call__(self, x, state):
        current = self.hidden(jnp.concatenate([x, self.lif.spike(state.V)]))
        spikes, V = self.lif(current, state.V)
        y, r = self.readout(spikes, state.r)
        return y, State(V, r)


def learner_of(algo):
    network = Network(jax.random.key(0))
    program = etpc.compile(network, algo, inputs=jax.ShapeDtypeStruct((INPUTS,), jnp.float32))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    learner = etpc.online(program, loss, optimizer, EVERY)
    return learner, (network, *learner.init(network, BATCH))


def block_of(steps):
    """A function of a block's number: its inputs and targets, which drift."""

    @jax.jit
    def given(n):
        key = jax.random.fold_in(jax.random.key(1), n)
        xs = jax.random.bernoulli(key, 0.2, (steps, BATCH, INPUTS)).astype(jnp.float32)
        mix = jax.random.normal(jax.random.fold_in(jax.random.key(2), n // 8), (INPUTS, 2)) / 4
        return xs, xs @ mix

    return given


def resident():
    """Bytes of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def largest(tree):
    return max(float(jnp.abs(a).max()) for a in jax.tree.leaves(tree))


def finite(tree):
    return all(
        np.isfinite(a).all() for a in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    )


def run(algo, blocks, steps, checkpoints, say=lambda line: None):
    """The figures of each block, and whether the runs from checkpoints were the same."""
    given = block_of(steps)
    learner, start = learner_of(algo)
    now, beside, rows, same = start, None, [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.etpc"
        for n in range(blocks):
            if n % checkpoints == 0:
                if beside is not None:
                    same.append(bool(eqx.tree_equal(beside, now)))
                etpc.save(path, now)
                beside = etpc.load(path, start)
            xs, targets = given(n)
            begin = time.perf_counter()
            *now, losses = learner.update(*now, xs, targets)
            now = jax.block_until_ready(tuple(now))
            seconds = time.perf_counter() - begin
            *beside, _ = learner.update(*beside, xs, targets)
            beside = tuple(beside)
            rows.append(
                {
                    "steps": (n + 1) * steps,
                    "resident": resident(),
                    "loss": float(losses.mean()),
                    "loss_of_zero": float((targets**2).sum(-1).mean()),
                    "trace": largest(now[2].traces),
                    "finite": finite(now) and bool(np.isfinite(losses).all()),
                    "us_per_step": 1e6 * seconds / steps,
                }
            )
            say(json.dumps(rows[-1]))
        same.append(bool(eqx.tree_equal(beside, now)))
    return rows, same


def verdict(rows, same):
    """What went wrong, in words."""
    settled = rows[len(rows) // 4]["resident"]
    growth = max(row["resident"] for row in rows[len(rows) // 4 :]) - settled
    found = []
    if growth > GROWTH:
        found.append(f"resident memory grew by {growth / 2**20:.1f} MiB")
    if not all(row["finite"] for row in rows):
        found.append("a number is not finite")
    if not all(same):
        found.append("a run from a checkpoint went apart")
    quarter = max(1, len(rows) // 4)
    early = max(row["trace"] for row in rows[quarter : 2 * quarter])
    late = max(row["trace"] for row in rows[-quarter:])
    if late > 10 * early:
        found.append(f"the traces grew from {early:.3g} to {late:.3g}")
    return found, growth


def main(steps, block, algo, every):
    rows, same = run(algo, steps // block, block, every, lambda line: print(line, flush=True))
    found, growth = verdict(rows, same)
    losses = [row["loss"] for row in rows]
    print(
        f"{rows[-1]['steps']:,} steps, {rows[-1]['steps'] // EVERY:,} updates, {algo}: resident "
        f"memory grew by {growth / 2**20:.2f} MiB after the first quarter, "
        f"{np.median([row['us_per_step'] for row in rows]):.0f} us a step, loss "
        f"{np.mean(losses[: len(losses) // 10 or 1]):.3f} at first and "
        f"{np.mean(losses[-(len(losses) // 10 or 1) :]):.3f} at last, "
        f"{len(same)} runs from checkpoints, {sum(same)} the same"
    )
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--block", type=int, default=10_000, help="steps in one call")
    parser.add_argument("--algo", default="d_rtrl", choices=["d_rtrl", "es_d_rtrl"])
    parser.add_argument("--every", type=int, default=10, help="blocks between checkpoints")
    sys.exit(main(**vars(parser.parse_args())))
