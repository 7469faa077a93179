"""Remember the marked digit: a task that needs memory, learnt online from an endless stream.

A network sees one handwritten digit of scikit-learn at each step. Every 40 steps one of them comes
with a mark, and 35 steps later, after 34 other digits, the network is asked which one was marked.
Whatever it learns about the marked step, it has to learn from an error that comes 35 steps later.

Four rules train the same network on the same stream:

- the immediate gradient, that of each step alone;
- backpropagation through time (BPTT), truncated to windows of 10 steps;
- eligibility traces (D-RTRL, which here is exact), with an update every 10 steps by `etpc.online`;
- BPTT through all 40 steps as the reference, with an update at the end of them.

    python examples/marked_digit.py             # make demo
    python examples/marked_digit.py --seed 1

The exit status says whether the traces learn the task and the truncated gradients do not.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
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
STEPS, ASKED = 40, 5  # of a trial, and the steps at its end at which the answer is asked for
BATCH, CELLS, INPUTS, CLASSES = 32, 32, 64 + 2, 10
EVERY = 10  # steps between updates
BLOCK = 50  # trials between two measurements of the accuracy
BLOCKS = 1 if FAST else 30
# Both were tried for all rules, with one seed. BPTT has a fourth of the updates and takes the larger one;
# truncated gradients stay at chance with either.
LEARNING_RATE, LARGER_RATE = 3e-3, 1e-2
LONG = 4000  # steps of a sequence for which the memory of BPTT is shown


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


def digits() -> tuple[Digits, Digits]:
    """1437 images for training and 360 for the test."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    images = np.asarray(images / 16, np.float32)
    first, second = (
        (jnp.asarray(images[part]), jnp.asarray(labels[part])) for part in (train, test)
    )
    return first, second


def stream(key: PRNGKeyArray, data: Digits, trials: int) -> Stream:
    """Trial after trial: the first digit of each is marked."""
    images, labels = data
    shape = trials, STEPS, BATCH
    drawn = jax.random.randint(key, shape, 0, len(images))
    step = jnp.arange(STEPS)[:, None]
    marked, asked = (jnp.broadcast_to(at, shape) for at in (step == 0, step >= STEPS - ASKED))
    flags = jnp.stack([marked, asked], -1).astype(jnp.float32)
    xs = jnp.concatenate([images[drawn], flags], -1)
    targets = jnp.broadcast_to(labels[drawn[:, :1]], shape)
    mask = asked.astype(jnp.float32)
    xs, targets, mask = (a.reshape(trials * STEPS, *a.shape[2:]) for a in (xs, targets, mask))
    return xs, targets, mask


@eqx.filter_jit
def respond(model: Network, xs: Float[Array, "T B I"]) -> tuple[Array, Array]:
    """Outputs [T, B, 10] and hidden states [T, B, H]: the model runs without any traces."""

    def step(h: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
        y, h = jax.vmap(model)(x, h)
        return h, (y, h)

    return jax.lax.scan(step, jnp.zeros((xs.shape[1], CELLS)), xs)[1]


def accuracy(model: Network, test: Stream) -> float:
    """The share of right answers, of those that are asked for."""
    xs, targets, mask = test
    right = respond(model, xs)[0].argmax(-1) == targets
    return float((right * mask).sum() / mask.sum())


# --- four rules ---


@dataclasses.dataclass
class Arm:
    """A rule, the number of steps between its updates, and how training went."""

    name: str
    every: int
    window: int | None  # of backpropagation; None: eligibility traces
    rate: float = LEARNING_RATE
    curve: list[float] = dataclasses.field(default_factory=list)
    time: float = 0.0
    memory: int = 0
    model: Any = None

    @property
    def score(self) -> float:
        """The accuracy, averaged over the last measurements, as it goes up and down."""
        return float(np.mean(self.curve[-5:]))


def backpropagation(
    optimizer: optax.GradientTransformation, window: int, every: int
) -> Callable[..., Any]:
    """As `update` of `etpc.online`, by BPTT through `window` steps, from the state before them."""

    def loss(model: Network, h: Array, xs: Array, targets: Array, mask: Array) -> Any:
        def step(h: Array, step_data: Any) -> tuple[Array, Array]:
            x, target, weight = step_data
            y, h = jax.vmap(model)(x, jax.lax.stop_gradient(h) if window == 1 else h)
            return h, weight * jax.vmap(cross_entropy)(y, target)

        h, losses = jax.lax.scan(step, h, (xs, targets, mask))
        return losses.sum() / jnp.maximum(mask.sum(), 1), h

    def update(model: Network, opt_state: Any, h: Array, *data: Array) -> Any:
        weights, static = eqx.partition(model, eqx.is_inexact_array)

        def one_update(state: Any, data: Any) -> tuple[Any, Array]:
            weights, opt_state, h = state
            model = eqx.combine(weights, static)
            (value, h), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model, h, *data)
            changes, opt_state = optimizer.update(grads, opt_state)
            return (eqx.apply_updates(weights, changes), opt_state, h), value

        pieces = tuple(a.reshape(-1, every, *a.shape[1:]) for a in data)
        state, losses = jax.lax.scan(one_update, (weights, opt_state, h), pieces)
        weights, opt_state, h = state
        return eqx.combine(weights, static), opt_state, h, losses

    return update


def learner_of(arm: Arm, model: Network) -> tuple[Callable[..., Any], Any, Any]:
    """`update(model, opt_state, carry, xs, targets, mask)`, and what it begins with."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(arm.rate))
    if arm.window is not None:
        opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
        update = backpropagation(optimizer, arm.window, arm.every)
        return update, opt_state, jnp.zeros((BATCH, CELLS))
    program = etpc.compile(model, "d_rtrl", inputs=jnp.zeros(INPUTS))
    print(program, "\n")
    learner = etpc.online(program, cross_entropy, optimizer, every=arm.every)

    def update(model: Network, opt_state: Any, carry: Any, xs: Any, targets: Any, mask: Any) -> Any:
        return learner.update(model, opt_state, carry, xs, targets, mask=mask)

    return update, *learner.init(model, batch_size=BATCH)


def temporary(lowered: Any) -> int:
    """Bytes that XLA needs beside arguments and results."""
    return lowered.compile().compiled.memory_analysis().temp_size_in_bytes


def train(arm: Arm, model: Network, train_data: Digits, test: Stream, seed: int) -> None:
    start = time.perf_counter()
    uncompiled, opt_state, carry = learner_of(arm, model)
    draw = jax.jit(lambda key: stream(key, train_data, BLOCK))
    update: Any = eqx.filter_jit(uncompiled)
    trial = stream(jax.random.key(0), train_data, 1)
    arm.memory = sum(a.nbytes for a in jax.tree.leaves(carry))
    arm.memory += temporary(update.lower(model, opt_state, carry, *trial))
    with tqdm(total=BLOCK * BLOCKS, desc=f"{arm.name:<22}", unit="trial", ncols=100) as bar:
        for key in jax.random.split(jax.random.key(seed + 1), BLOCKS):
            # State, traces and weights go on from block to block: the stream never stops.
            model, opt_state, carry, _ = update(model, opt_state, carry, *draw(key))
            arm.curve.append(accuracy(model, test))
            bar.update(BLOCK)
            bar.set_postfix(right=f"{arm.curve[-1]:.0%}")
    arm.time, arm.model = time.perf_counter() - start, model


def long_memory(model: Network) -> int:
    """Bytes that XLA needs for BPTT through `LONG` steps."""
    shapes = (LONG, BATCH, INPUTS), (LONG, BATCH), (LONG, BATCH)
    data = [jnp.zeros(s, d) for s, d in zip(shapes, (float, int, float), strict=True)]
    update, opt_state, h = learner_of(Arm("", LONG, LONG), model)
    compiled: Any = eqx.filter_jit(update)
    return temporary(compiled.lower(model, opt_state, h, *data))


# --- what there is to see ---


def table(arms: list[Arm]) -> str:
    lines = [f"{'':<24}{'right':>7}{'updates':>10}{'steps back':>13}{'memory':>12}{'time':>9}"]
    for arm in arms:
        reach = "all" if arm.window is None else f"{arm.window - 1}"
        updates = BLOCKS * BLOCK * STEPS // arm.every
        lines.append(
            f"{arm.name:<24}{arm.score:>7.1%}{updates:>10,}{reach:>13}"
            f"{arm.memory / 2**10:>8,.0f} KiB{arm.time:>7.1f} s"
        )
    return "\n".join(lines)


def picture(arms: list[Arm], test: Stream, path: Path) -> None:
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figure, axes = plt.subplot_mosaic(
        [["digits", "curves"], ["hidden", "curves"], ["answer", "curves"]],
        figsize=(12, 4.6), layout="constrained", width_ratios=[1.45, 1], height_ratios=[1, 2, 2],
    )  # fmt: skip
    online = next(arm for arm in arms if arm.window is None)
    xs, targets, _ = (a[STEPS : 2 * STEPS, 0] for a in test)
    ys, hidden = (a[STEPS : 2 * STEPS, 0] for a in respond(online.model, test[0]))

    ax = axes["digits"]
    images = np.asarray(xs[:, :64]).reshape(STEPS, 8, 8)
    rows = [np.hstack(list(images[n : n + STEPS // 2])) for n in (0, STEPS // 2)]
    ax.imshow(np.vstack(rows), cmap="gray_r", aspect="equal")
    ax.add_patch(Rectangle((-0.5, -0.5), 8, 8, fill=False, color="C3", linewidth=2.5))
    ax.set(xticks=[], yticks=[], title="One digit a step; the first one is marked")
    ax = axes["hidden"]
    ax.imshow(np.asarray(hidden).T, cmap="RdBu", aspect="auto", vmin=-3, vmax=3)
    ax.set(ylabel="hidden unit", title="What the network keeps, after training online")
    ax = axes["answer"]
    probabilities = np.asarray(jax.nn.softmax(ys))
    ax.imshow(probabilities.T, cmap="Greys", aspect="auto", vmin=0, vmax=1)
    ax.axvline(STEPS - ASKED - 0.5, color="C3", linestyle="--")
    ax.set(xlabel="step", ylabel="answer", yticks=range(0, 10, 3),
           title=f"Its answer, asked for right of the dashed line (it was a {int(targets[0])})")  # fmt: skip
    ax = axes["curves"]
    steps = STEPS * BLOCK * np.arange(1, BLOCKS + 1)
    for arm, style in zip(arms, [":", "--", "-", "-."], strict=True):
        ax.plot(steps, [100 * score for score in arm.curve], style, label=arm.name, linewidth=2)
    ax.axhline(100 / CLASSES, color="0.7", linewidth=1, zorder=0)
    ax.set(xlabel="steps of the stream", ylabel="right answers (%)", ylim=(0, 100),
           title="The same network and stream, four rules")  # fmt: skip
    ax.legend(frameon=False, loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> int:
    parser = argparse.ArgumentParser(description="Remember the marked digit, learnt online.")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the stream")
    default = Path(__file__).parent / "out" / "marked_digit.png"
    parser.add_argument("--out", type=Path, default=default, help="path of the picture")
    args = parser.parse_args()

    start = time.perf_counter()
    immediate, truncated, online, bptt = arms = [
        Arm("immediate gradient", EVERY, 1),
        Arm("BPTT, 10 steps", EVERY, EVERY),
        Arm("traces, online", EVERY, None),
        Arm("BPTT, all 40 steps", STEPS, STEPS, LARGER_RATE),
    ]
    train_data, test_data = digits()
    test = stream(jax.random.key(2**31), test_data, 20)
    model = Network(jax.random.key(args.seed))
    print(f"{BLOCKS * BLOCK:,} trials of {STEPS} steps, {BATCH} streams side by side\n")
    for arm in arms:
        train(arm, model, train_data, test, args.seed)
    print(f"\n{table(arms)}\n")
    picture(arms, test, args.out)
    print(f"picture: {args.out}\ntime in all: {time.perf_counter() - start:.0f} s\n")
    if FAST:
        return 0
    failed = max(immediate.score, truncated.score)
    learnt = online.score > 0.85 and online.score > bptt.score - 0.05
    if not learnt or failed > 0.25:
        print("The traces should learn this and truncated gradients should not.", file=sys.stderr)
        return 1
    print(
        f"What was shown: eligibility traces learn online what happened {STEPS - ASKED} steps ago "
        f"({online.score:.0%} right, BPTT {bptt.score:.0%}), where truncated gradients stay at "
        f"chance ({failed:.0%}); they take {online.memory / 2**20:.1f} MiB for any distance, and BPTT "
        f"{long_memory(model) / 2**20:,.0f} MiB for {LONG:,} steps."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
