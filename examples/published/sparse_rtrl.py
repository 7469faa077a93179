"""Sparse RTRL by random paths, and how well it adapts to a Lorenz system that changes.

RTRL moves the trace of a state by a row of the Jacobian, of as many entries as there are states. Here each state
keeps k of them, drawn once at random, and the others are zero; k = 0 is the gradient of the current step.

A network `h' = tanh(W h + U x + b)` of 64 units with a linear readout sees the first coordinate of the Lorenz system
and predicts it eight samples (0.16 units of time) ahead, in four streams. It learns for 1,500 steps by exact RTRL
(Adam, 1e-3). Then rho goes from 28 to 45, and it learns for 1,500 steps more by each rule, or not at all. The number is
what is regained of the error: `(e_none - e) / (e_none - e_RTRL)`, where e is the mean squared error of the last 1,000
steps, over the seeds.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import etpc
from etpc import algorithms, forms

from .chaotic_series import Network, squares

STREAMS, AHEAD, LEARNED, ADAPTED, MEASURED = 4, 8, 1500, 1500, 1000


@dataclasses.dataclass(frozen=True)
class RandomPaths(forms.Recursion):
    """`eps' = (M * D) eps + F x^T`, where each row of M has `paths` ones at random places."""

    paths: int
    seed: int
    exact = False

    @property
    def verdict(self) -> str:
        return "sparse"

    @property
    def held(self) -> str:
        return "one entry for each use and state"

    @property
    def left_out(self) -> str:
        return f"of the paths into each state, all but {self.paths} that are drawn at random"

    def site_of(self, site: forms.Site) -> forms.Site:
        return site

    def kept(self, pairs: forms.Pairs) -> np.ndarray:
        """Of each pair of states, whether it is one of the paths."""
        order = np.random.default_rng(self.seed).random(len(pairs.after))
        kept = np.zeros(len(order), bool)
        for state in range(pairs.m):
            into = np.flatnonzero(pairs.after == state)
            kept[into[np.argsort(order[into])[: self.paths]]] = True
        return kept

    def step(self, site: forms.Site, factors: forms.Factors) -> tuple[Array, Array]:
        kept = self.kept(site.pairs)[:, None]
        return jnp.where(kept, factors.transition, 0), factors.immediate


@dataclasses.dataclass(frozen=True, repr=False)
class SparseRTRL(algorithms.Algorithm):
    """Real-time recurrent learning along `paths` random paths into each state.

    **Cost:** the trace of RTRL. The Jacobian is multiplied as a dense matrix with zeros, so it takes no less time.

    **Source:** Merin, "Massive redundancy in gradient transport enables sparse online learning", arXiv 2603.15195.
    """

    paths: int = 4
    seed: int = dataclasses.field(default=0, kw_only=True)
    name: ClassVar[str] = "sparse-rtrl"
    cut: ClassVar[bool] = False
    checks: ClassVar[Mapping[str, algorithms.Check]] = {"seed": algorithms.checked_seed}

    def trace_form(self, kind: object) -> RandomPaths:
        return RandomPaths(self.paths, self.seed)


algorithms.register_algorithm(SparseRTRL)

RULES = {
    "RTRL": etpc.RTRL(),
    **{f"sparse RTRL, k = {k}": SparseRTRL(k) for k in (1, 4, 16)},
    "SnAp(1)": etpc.SnAp(1),
    "current step": etpc.TBPTT(1),
}


def series(seed: int, rho: float, steps: int) -> np.ndarray:
    """The first coordinate, every 0.02, in units of 8; [steps, STREAMS]."""
    x, y, z = np.array([[1.0], [1.0], [25.0]]) + np.random.default_rng(seed).normal(
        size=(3, STREAMS)
    )
    seen = []
    for _ in range(10 * (steps + 100)):  # Euler's method
        dx, dy, dz = 10 * (y - x), x * (rho - z) - y, x * y - 8 / 3 * z
        x, y, z = x + 0.002 * dx, y + 0.002 * dy, z + 0.002 * dz
        seen.append(x)
    return np.stack(seen[1000::10]).astype(np.float32) / 8


def learner_of(rule: algorithms.Algorithm, rate: float) -> etpc.Online:
    program = etpc.compile(Network(jax.random.key(0)), rule, inputs=jnp.zeros(1))
    moves = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    return etpc.online(program, squares, moves, every=1)


def errors(seeds: range) -> dict[str, list[float]]:
    """The mean squared errors after the change, by rule and seed."""
    first = learner_of(etpc.RTRL(), 1e-3)
    rules = {"none": (etpc.TBPTT(1), 0.0)} | {name: (rule, 1e-3) for name, rule in RULES.items()}
    begun, found = [], dict[str, list[float]]()
    for seed in seeds:
        model, xs = Network(jax.random.key(seed)), series(seed, 28.0, LEARNED + AHEAD)
        opt_state, carry = first.init(model, STREAMS)
        begun.append(first.update(model, opt_state, carry, xs[:LEARNED, :, None], xs[AHEAD:])[0])
    for name, (rule, rate) in rules.items():
        learner = learner_of(rule, rate)
        for seed, model in zip(seeds, begun, strict=True):
            xs = series(100 + seed, 45.0, ADAPTED + AHEAD)
            opt_state, carry = learner.init(model, STREAMS)
            *_, losses = learner.update(model, opt_state, carry, xs[:ADAPTED, :, None], xs[AHEAD:])
            found.setdefault(name, []).append(float(losses[-MEASURED:].mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Sparse RTRL by random paths, on Lorenz.")
    parser.add_argument("--seeds", type=int, default=5)
    found = errors(range(parser.parse_args().seeds))
    print("| rule | squared error | range | regained |\n|---|---:|---:|---:|")
    means = {name: statistics.fmean(values) for name, values in found.items()}
    whole = means["none"] - means["RTRL"]
    for name, values in found.items():
        regained = f"{100 * (means['none'] - means[name]) / whole:.0f} %"
        ends = f"{min(values):.3f} to {max(values):.3f}"
        print(f"| {name} | {means[name]:.3f} | {ends} | {regained} |")


if __name__ == "__main__":
    main()
