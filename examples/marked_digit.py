"""Remember the marked digit: a task that needs memory, learnt online from an endless stream.

A network sees one handwritten digit of scikit-learn at each step. Every 40 steps one of them comes
with a mark. From 10 steps after the mark on, until the next one, the network is asked at every step
which digit was marked. No window of 10 steps has both a mark and a question about it, so whatever
the network learns about the marked step, it learns from errors that come 10 to 39 steps later.

Four rules train the same network on the same stream, each by `etpc.online`:

- the immediate gradient, that of each step alone, with an update every 10 steps;
- backpropagation through time (BPTT) truncated to windows of 10 steps, with an update after each;
- eligibility traces (D-RTRL, which here is exact), with an update every 10 steps;
- BPTT through all 40 steps as the reference, with an update at the end of them.

    python examples/marked_digit.py             # make demo
    python examples/marked_digit.py --seed 1
    python examples/marked_digit.py --tune      # the learning rates
    python examples/marked_digit.py --record    # both, with five seeds: docs/demo.json and .png

Each rule has, of the same five learning rates, the one with the best mean score over three seeds
that are not reported, on images that are in no test. The exit status says whether the traces learn
the task, as BPTT does, and truncated gradients do not.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray
from sklearn.datasets import load_digits
from tqdm import tqdm

import etpc
from etpc import nn

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few updates, to see that it runs
STEPS, DELAY = 40, 10  # from mark to mark, and from a mark to the first question about it
BATCH, CELLS, INPUTS, CLASSES = 32, 32, 64 + 2, 10
BLOCK = 50  # trials, of 40 steps each, between two measurements of the accuracy
BLOCKS = 1 if FAST else 30
SEEDS, TUNING_SEEDS = range(5), range(100, 103)
RATES = 1e-3, 3e-3, 1e-2, 3e-2, 1e-1
LONG = 4000  # steps of a sequence for which the memory of BPTT is shown
DOCS = Path(__file__).parents[1] / "docs"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A learning rule, the number of steps between its updates, and its learning rate."""

    name: str
    algorithm: etpc.algorithms.Algorithm
    every: int
    rate: float


IMMEDIATE, TRUNCATED, TRACES, BPTT = RULES = (
    Rule("immediate gradient", etpc.TBPTT(1), 10, 1e-2),
    Rule("truncated BPTT, 10 steps", etpc.TBPTT(10), 10, 3e-2),
    Rule("traces, online", etpc.D_RTRL(), 10, 3e-3),
    Rule("BPTT, all 40 steps", etpc.TBPTT(STEPS), STEPS, 3e-2),
)


@dataclasses.dataclass
class Run:
    """How the training by a rule went."""

    rule: str
    rate: float
    seed: int
    curve: list[float] = dataclasses.field(default_factory=list)
    """The accuracy after each block."""
    updates: int = 0
    """Those that moved the weights: one in whose steps nothing is asked is skipped."""
    seconds: float = 0.0
    """Without compilation."""

    @property
    def score(self) -> float:
        """The accuracy, averaged over the last measurements, as it goes up and down."""
        return float(np.mean(self.curve[-5:]))

    def steps_to(self, share: float) -> float:
        """Steps of the stream until so many answers are right, in whole blocks."""
        reached = np.flatnonzero(np.array(self.curve) >= share)
        return float(BLOCK * STEPS * (reached[0] + 1)) if reached.size else float("inf")


class Network(eqx.Module):
    """A minGRU, whose gates read the input alone, and a linear readout."""

    cell: nn.MinGRU
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        cell_key, readout_key = jax.random.split(key)
        cell = nn.MinGRU(INPUTS, CELLS, key=cell_key)
        # Time constants from 2 to 55 steps, before training.
        biases = jnp.asarray(cell.bias).at[:CELLS].set(jnp.linspace(0.0, -4.0, CELLS))
        self.cell = eqx.tree_at(lambda cell: cell.bias, cell, biases)
        self.readout = eqx.nn.Linear(CELLS, CLASSES, key=readout_key)

    def init_state(self) -> Float[Array, " H"]:
        return self.cell.init_state()

    def __call__(self, x: Float[Array, " I"], h: Float[Array, " H"]) -> tuple[Array, Array]:
        _, h = self.cell(x, h)
        return self.readout(h), h


cross_entropy = optax.softmax_cross_entropy_with_integer_labels

# --- the stream ---

Digits = tuple[Float[Array, "N 64"], Int[Array, " N"]]
Stream = tuple[Float[Array, "T B I"], Int[Array, "T B"], Float[Array, "T B"]]
"""Inputs, targets, and a mask of one where the answer is asked for."""


def digits(tuning: bool = False) -> tuple[Digits, Digits]:
    """Images for training, 1437, and for the test, 360; or for tuning, all of which train later."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    first, end = (1077, 1437) if tuning else (1437, None)
    images = np.asarray(images / 16, np.float32)
    parts = order[:first], order[first:end]
    train, test = ((jnp.asarray(images[part]), jnp.asarray(labels[part])) for part in parts)
    return train, test


def stream(key: PRNGKeyArray, data: Digits, trials: int) -> Stream:
    """Trial after trial: the first digit of each is marked."""
    images, labels = data
    shape = trials, STEPS, BATCH
    drawn = jax.random.randint(key, shape, 0, len(images))
    step = jnp.arange(STEPS)[:, None]
    marked, asked = (jnp.broadcast_to(at, shape) for at in (step == 0, step >= DELAY))
    flags = jnp.stack([marked, asked], -1).astype(jnp.float32)
    xs = jnp.concatenate([images[drawn], flags], -1)
    targets = jnp.broadcast_to(labels[drawn[:, :1]], shape)
    mask = asked.astype(jnp.float32)
    xs, targets, mask = (a.reshape(trials * STEPS, *a.shape[2:]) for a in (xs, targets, mask))
    return xs, targets, mask


@eqx.filter_jit
def accuracy(model: Network, test: Stream) -> Array:
    """The share of right answers, of those that are asked for. The model runs without traces."""
    xs, targets, mask = test

    def step(h: Array, x: Array) -> tuple[Array, Array]:
        y, h = jax.vmap(model)(x, h)
        return h, y

    _, ys = jax.lax.scan(step, jnp.zeros((BATCH, CELLS)), xs)
    return ((ys.argmax(-1) == targets) * mask).sum() / mask.sum()


# --- training ---


def learner_of(rule: Rule) -> etpc.Online:
    program = etpc.compile(Network(jax.random.key(0)), rule.algorithm, inputs=jnp.zeros(INPUTS))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rule.rate))
    return etpc.online(program, cross_entropy, optimizer, every=rule.every)


def train(rule: Rule, seeds: Iterable[int], tuning: bool = False) -> list[Run]:
    """One run for each seed."""
    runs = []
    train_data, test_data = digits(tuning)
    test = stream(jax.random.key(2**31), test_data, 20)
    draw = jax.jit(lambda key: stream(key, train_data, BLOCK))
    learner = learner_of(rule)
    for seed in seeds:
        run, model = Run(rule.name, rule.rate, seed), Network(jax.random.key(seed))
        opt_state, carry = learner.init(model, batch_size=BATCH)
        keys = jax.random.split(jax.random.key(seed + 1), BLOCKS)
        xs, targets, mask = draw(keys[0])
        # Compiled before the clock starts.
        learner.update(model, opt_state, carry, xs, targets, mask=mask)
        accuracy(model, test)
        start = time.perf_counter()
        label = f"{rule.name}, rate {rule.rate:g}, seed {seed}"
        with tqdm(total=BLOCK * BLOCKS, desc=f"{label:<46}", unit="trial", ncols=115) as bar:
            for key in keys:
                xs, targets, mask = draw(key)
                # State, traces and weights go on from block to block: the stream never stops.
                model, opt_state, carry, losses = learner.update(
                    model, opt_state, carry, xs, targets, mask=mask
                )
                run.updates += int((losses != 0).sum())  # zero where nothing is asked
                run.curve.append(round(float(accuracy(model, test)), 4))
                bar.update(BLOCK)
                bar.set_postfix(right=f"{run.curve[-1]:.0%}")
        run.seconds = round(time.perf_counter() - start, 2)
        runs.append(run)
    return runs


def tune() -> list[dict[str, Any]]:
    """The scores of each rule at each of `RATES`, for each of `TUNING_SEEDS`."""
    rows = []
    for rule in RULES:
        for rate in RATES:
            runs = train(dataclasses.replace(rule, rate=rate), TUNING_SEEDS, tuning=True)
            scores = [round(run.score, 4) for run in runs]
            rows.append({"rule": rule.name, "rate": rate, "scores": scores})
    return rows


def memory() -> dict[str, int]:
    """Bytes of the traces with what XLA needs for an update, and what it needs for plain BPTT."""
    model, learner = Network(jax.random.key(0)), learner_of(TRACES)
    opt_state, carry = learner.init(model, batch_size=BATCH)
    xs, targets, _ = stream(jax.random.key(0), digits()[0], LONG // STEPS)
    bptt = functools.partial(etpc.bptt, loss_fn=cross_entropy, batch_size=BATCH)

    def temporary(function: Any, steps: int, *state: Any) -> int:
        jitted: Any = eqx.filter_jit(function)
        lowered = jitted.lower(model, *state, xs[:steps], targets[:steps])
        return lowered.compile().compiled.memory_analysis().temp_size_in_bytes

    online = temporary(learner.update, TRACES.every, opt_state, carry)
    through = {f"BPTT, {steps:,} steps": temporary(bptt, steps) for steps in (STEPS, LONG)}
    return {"traces": online + sum(a.nbytes for a in jax.tree.leaves(carry)), **through}


# --- what there is to see ---


def spread(values: Iterable[float], form: str) -> str:
    """As "8 to 10", or one number where both are the same."""
    values = list(values)
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def percent(runs: list[Run], *rules: Rule) -> str:
    """The scores of these rules."""
    names = [rule.name for rule in rules]
    return spread((100 * run.score for run in runs if run.rule in names), ".1f") + " %"


def rows(runs: list[Run]) -> list[list[str]]:
    """Of the table: rule, score, steps to 50 and to 90 % right, updates, seconds."""
    result = []
    for rule in RULES:
        own = [run for run in runs if run.rule == rule.name]
        steps = (spread((run.steps_to(share) for run in own), ",.0f") for share in (0.5, 0.9))
        updates = spread((run.updates for run in own), ",d")
        seconds = spread((run.seconds for run in own), ".1f")
        result.append([rule.name, percent(own, rule), *steps, updates, seconds])
    return [[cell.replace("inf", "never") for cell in row] for row in result]


def as_expected(runs: list[Run]) -> bool:
    """Whether traces learn the task, as BPTT does, and truncated gradients do not, with every seed."""
    scores = [[run.score for run in runs if run.rule == rule.name] for rule in RULES]
    immediate, truncated, traces, bptt = np.array(scores)
    learnt = (traces > 0.9) & (traces > bptt - 0.03)
    return bool((learnt & (immediate < 0.2) & (truncated < 0.2)).all())


def picture(runs: list[Run], path: Path) -> None:
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figure, (above, below) = plt.subplots(
        2, figsize=(6, 5), layout="constrained", height_ratios=[1, 4]
    )
    xs, _, mask = (np.asarray(a[:, 0]) for a in stream(jax.random.key(7), digits()[1], 1))
    images = np.pad(xs[:, :64].reshape(STEPS, 8, 8), ((0, 0), (1, 1), (1, 1)))
    columns = STEPS // 2
    rows = images.reshape(2, columns, 10, 10).swapaxes(1, 2).reshape(2 * 10, columns * 10)
    above.imshow(rows, cmap="gray_r")
    for n, asked in enumerate(mask):
        corner = 10 * (n % columns) - 0.5, 10 * (n // columns) - 0.5
        frame = {"color": "gold", "alpha": 0.3 * asked, "linewidth": 0}
        mark = {"fill": False, "color": "C3", "linewidth": 2.5}
        above.add_patch(Rectangle(corner, 10, 10, **(frame if n else mark)))
    above.set(xticks=[], yticks=[], title="Which digit was marked (red)? Asked at each shaded one")
    thousands = STEPS * BLOCK * np.arange(1, BLOCKS + 1) / 1000
    for rule, style in zip(RULES, ("C0:", "C1--", "C2-", "C3-."), strict=True):
        curves = [[100 * a for a in run.curve] for run in runs if run.rule == rule.name]
        area = np.min(curves, 0), np.max(curves, 0)
        below.fill_between(thousands, *area, color=style[:2], alpha=0.2, linewidth=0)
        below.plot(thousands, np.mean(curves, 0), style, label=rule.name, linewidth=2)
    below.axhline(100 / CLASSES, color="0.7", linewidth=1, zorder=0)
    below.set(xlabel="thousand steps of the stream", ylabel="right answers (%)", ylim=(0, 100))
    below.legend(frameon=False, loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def environment() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    versions = ("etpc", "jax", "jaxlib", "optax", "numpy", "scikit-learn")
    return {
        "cpu": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in versions},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Remember the marked digit, learnt online.")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the stream")
    default = Path(__file__).parent / "out" / "marked_digit.png"
    parser.add_argument("--out", type=Path, default=default, help="path of the picture")
    parser.add_argument("--tune", action="store_true", help="compare learning rates, and stop")
    parser.add_argument("--record", action="store_true", help="tune, run five seeds, save in docs")
    args = parser.parse_args()

    start = time.perf_counter()
    tuning = tune() if args.tune or args.record else []
    for row in tuning:
        scores = "".join(f"{score:8.1%}" for score in row["scores"])
        print(f"{row['rule']:<26}{row['rate']:>7g}{scores}")
    if args.tune:
        return 0
    print(f"{BLOCKS * BLOCK:,} trials of {STEPS} steps, {BATCH} streams side by side\n")
    seeds = SEEDS if args.record else [args.seed]
    runs = [run for rule in RULES for run in train(rule, seeds)]
    out = DOCS / "demo.png" if args.record else args.out
    picture(runs, out)
    print(f"picture: {out}\n")
    for row in [["", "right", "steps to 50 %", "to 90 %", "updates", "seconds"], *rows(runs)]:
        print("{:<26}{:>15}{:>17}{:>18}{:>9}{:>13}".format(*row))
    if FAST:
        return 0
    taken = memory()
    if args.record:
        record = {"environment": environment(), "memory": taken, "tuning": tuning}
        record["runs"] = [dataclasses.asdict(run) for run in runs]
        out.with_suffix(".json").write_text(json.dumps(record, indent=0) + "\n")
    print(f"\ntime in all: {time.perf_counter() - start:.0f} s\n")
    if not as_expected(runs):
        print("The traces should learn this and truncated gradients should not.", file=sys.stderr)
        return 1
    print(
        f"What was shown: eligibility traces learn online what happened {DELAY} to {STEPS - 1} steps ago, "
        f"{percent(runs, TRACES)} right, as BPTT does, {percent(runs, BPTT)}; truncated gradients stay "
        f"at chance, {percent(runs, IMMEDIATE, TRUNCATED)}."
    )
    print("Memory: " + "; ".join(f"{name}: {n / 2**20:.1f} MiB" for name, n in taken.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
