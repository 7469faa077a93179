"""A machine's vibration changes after the sensor was installed: a frozen network fails, an exported learner adapts.

A network of 24 minGRU neurons is trained beforehand, on machines that turn at 0.04 to 0.06 of a revolution for each
sample, to predict the vibration 6 samples ahead. The targets are later samples, so a device has them without labels.
On the device, at step 1500, the machine begins to turn 1.7 times as fast, and the harmonics change their sizes.

Four things that a device might do with one stream: nothing (frozen); D-RTRL, with an update after each sample; the
gradient of the current step alone, in the same way; truncated BPTT through blocks of 10 steps. The learning rate of
each is the best of three on two other streams. Then the learner is exported, and the file, loaded without the
network's code, learns from the first stream.

    python -m examples.on_device.drift                  # a table and examples/out/drift.svg; a minute on 2 cores
    python -m examples.on_device.drift --export build/  # also build/learner/, learner.h, learner.c and stream.txt
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, PRNGKeyArray

import etpc
from etpc import nn

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few steps, to see that it runs
AHEAD, NEURONS = 6, 24
STEPS, DRIFT, LAST = (600, 300, 100) if FAST else (9000, 1500, 1000)
BEFOREHAND, STREAMS = (200, 2) if FAST else (8000, 5)
RATES = (3e-3,) if FAST else (1e-3, 3e-3, 1e-2)
OUT = Path(__file__).parent.parent / "out"
RULES = {
    "D-RTRL": (etpc.D_RTRL(), 1),
    "the current step alone": (etpc.TBPTT(1), 1),
    "BPTT through 10 steps": (etpc.TBPTT(10), 10),
}
"""The rules, and the steps between two updates."""


class Network(eqx.Module):
    cell: nn.MinGRU
    readout: eqx.nn.Linear

    def __init__(self, *, key: PRNGKeyArray):
        one, two = jax.random.split(key)
        self.cell = nn.MinGRU(1, NEURONS, key=one)
        self.readout = eqx.nn.Linear(NEURONS, 1, key=two)

    def init_state(self) -> Float[Array, " K"]:
        return self.cell.init_state()

    def __call__(self, x: Float[Array, "1"], h: Float[Array, " K"]) -> tuple[Array, Array]:
        y, h = self.cell(x, h)
        return self.readout(y), h


def squared(y: Array, target: Array) -> Array:
    return jnp.mean((y - target) ** 2)


def vibration(
    key: PRNGKeyArray, turns: Array, steps: int, drift: int | None = None
) -> tuple[Float[Array, "T 1"], Float[Array, "T 1"]]:
    """Samples, and the samples `AHEAD` later; `turns` is the part of a revolution in one step."""
    speed_key, phase_key, noise_key = jax.random.split(key, 3)
    t = jnp.arange(steps + AHEAD)
    after = t >= (steps + AHEAD if drift is None else drift)
    wander = 1 + 0.002 * jnp.cumsum(jax.random.normal(speed_key, t.shape))
    speed = jnp.where(after, 1.7 * turns, turns) * wander
    phase = 2 * jnp.pi * (jnp.cumsum(speed) + jax.random.uniform(phase_key))
    first, second = jnp.where(after, 0.5, 1.0), jnp.where(after, 0.9, 0.3)
    samples = first * jnp.sin(phase) + second * jnp.sin(2 * phase + 1)
    samples = (samples + 0.05 * jax.random.normal(noise_key, t.shape))[:, None]
    return samples[:-AHEAD], samples[AHEAD:]


def streams(seed: int, count: int, steps: int, drift: int | None) -> tuple[Array, Array]:
    """Several streams [T, N, 1]."""
    keys, turns = jax.random.split(jax.random.key(seed), count), jnp.linspace(0.042, 0.058, count)
    return jax.vmap(lambda key, f: vibration(key, f, steps, drift), out_axes=1)(keys, turns)


def trained_beforehand() -> Network:
    model = Network(key=jax.random.key(0))
    learner = etpc.online(
        etpc.compile(model, inputs=jnp.zeros(1)), squared, optax.adam(3e-3), every=10
    )
    xs, targets = streams(1, 16, BEFOREHAND, None)
    return learner.update(model, *learner.init(model, batch_size=16), xs, targets)[0]


def errors(model: Network, rule: str, rates: Sequence[float], seed: int, count: int) -> np.ndarray:
    """The mean error of each step or block, for each rate and stream: [rates, streams, updates]."""
    algorithm, every = RULES[rule]
    program = etpc.compile(model, algorithm, inputs=jnp.zeros(1))
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    learner = etpc.online(program, squared, adam, every=every)
    xs, targets = streams(seed, count, STEPS, DRIFT)
    found = []
    for rate in rates:
        for n in range(count):
            opt_state, carry = learner.init(model)
            opt_state.hyperparams["learning_rate"] = jnp.float32(rate)
            found.append(learner.update(model, opt_state, carry, xs[:, n], targets[:, n])[3])
    return np.asarray(found).reshape(len(rates), count, -1)


def exported(model: Network, rate: float) -> etpc.Exported:
    """The learner with D-RTRL, for one sample at a time, checked against the learner itself."""
    program = etpc.compile(model, RULES["D-RTRL"][0], inputs=jnp.zeros(1))
    learner = etpc.online(program, squared, optax.adam(rate))
    start, sample = learner.init(model), jax.ShapeDtypeStruct((1, 1), jnp.float32)
    file = learner.export(model, *start, sample, sample)
    xs, targets = streams(2, STREAMS, 200, 100)
    *_, wanted = learner.update(model, *start, xs[:, 0], targets[:, 0])
    state, losses = file.state, []
    for x, target in zip(xs[:, 0], targets[:, 0], strict=True):
        state, loss = file.update(state, x[None], target[None])
        losses.append(loss[0])
    difference = float(jnp.max(jnp.abs(jnp.stack(losses) - wanted)))
    assert difference < 1e-4, difference
    return file


def plotted(axes: Any, name: str, error: np.ndarray) -> None:
    """The mean over the streams, and over 100 steps: of the error of each update, [streams, updates]."""
    each = 100 // (STEPS // error.shape[1])
    smooth = error.mean(0)[: error.shape[1] // each * each].reshape(-1, each).mean(1)
    axes.semilogy(100 * np.arange(len(smooth)), smooth, label=name)


def finished(fig: Any, axes: Any, file: str) -> None:
    axes.axvline(DRIFT, color="grey", linestyle=":")
    axes.set(xlabel="step", ylabel="mean square error")
    fig.legend(frameon=False, loc="outside upper left", ncols=2, fontsize=9)
    OUT.mkdir(exist_ok=True)
    fig.savefig(OUT / file)


def main() -> None:
    parser = argparse.ArgumentParser(description="A learner on a stream that changes.")
    parser.add_argument("--export", type=Path, metavar="FOLDER")
    folder = parser.parse_args().export
    model = trained_beforehand()
    results: dict[str, np.ndarray] = {}
    chosen: dict[str, float] = {}
    results["frozen"] = errors(model, "D-RTRL", [0.0], 2, STREAMS)[0]
    for rule, (_, every) in RULES.items():
        tuning = errors(model, rule, RATES, 100, 2)[:, :, DRIFT // every :]
        chosen[rule] = RATES[int(np.nanargmin(tuning.mean((1, 2))))]
        results[rule] = errors(model, rule, [chosen[rule]], 2, STREAMS)[0]
    print(
        f"{'mean square error of':<24} {'before':>8} {'500 steps after':>16} {'last':>6}  each stream, last"
    )
    fig, axes = plt.subplots(figsize=(4.4, 3.6), layout="constrained")
    for name, error in results.items():
        each = STEPS // error.shape[1]
        before, begun = (
            error[:, DRIFT // each // 2 : DRIFT // each],
            error[:, DRIFT // each :][:, : 500 // each],
        )
        last = error[:, -LAST // each :].mean(1)
        rate = f"rate {chosen[name]:g}" if name in chosen else ""
        streams_text = " ".join(f"{e:.2f}" for e in last)
        print(
            f"{name:<24} {before.mean():8.3f} {begun.mean():16.3f} {last.mean():6.3f}  {streams_text}  {rate}"
        )
        plotted(axes, name, error)
    finished(fig, axes, "drift.svg")
    file = exported(model, chosen["D-RTRL"])
    print(f"\nexported: {sum(map(len, file.modules.values())):,} bytes of StableHLO, ", end="")
    print(f"{sum(a.nbytes for a in file.state.values()):,} bytes of state")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file.save(folder / "learner")
        sizes = file.to_c(folder)
        print(f"in C: {sizes['state']:,} bytes of state, {sizes['work']:,} bytes to work in")
        xs, targets = streams(2, STREAMS, STEPS, DRIFT)
        np.savetxt(folder / "stream.txt", np.concatenate([xs[:, 0], targets[:, 0]], 1), fmt="%.9g")


if __name__ == "__main__":
    main()
