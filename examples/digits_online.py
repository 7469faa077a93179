"""Handwritten digits, learnt online by a recurrent spiking network.

The 8 x 8 digits of scikit-learn become spike trains of 50 steps: pixels fire at random, bright ones
often. A recurrent layer of leaky integrate-and-fire neurons reads them, and its weights move every
10 steps, while the digit is still being shown. Eligibility traces carry what is needed of the past,
so nothing is stored of it. For comparison, three rules that move the weights once per sequence:
the same traces, the full traces of D-RTRL, and backpropagation through time (BPTT).

    python examples/digits_online.py                    # about a minute on 2 cores
    python examples/digits_online.py --algo d_rtrl      # another learning rule: one argument
    python examples/digits_online.py --decay 0.9 --every 5 --alone

The exit status says whether the first network gets at least 95 % of the test images right.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import etpc
from etpc import nn

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few updates, to see that it runs
STEPS, BATCH, NEURONS = 50, 64, 128
EPOCHS, BATCHES = (1, 3) if FAST else (40, None)
# Chosen on validation images, like the sizes above and the time constants below.
LEARNING_RATE, RATE = 5e-3, 0.5
GOAL = 0.95


# --- the network: an ordinary Equinox module, one time step of one example ---


class State(NamedTuple):
    V: Float[Array, " K"]  # membrane potentials
    r: Float[Array, " 10"]  # readout


class Network(eqx.Module):
    """LIF neurons that see the input and each other's last spikes, and a leaky readout."""

    hidden: nn.Linear
    lif: nn.LIF
    readout: nn.LeakyRateReadout

    def __init__(self, n_in: int, n_neurons: int, n_out: int, *, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        self.hidden = nn.Linear(
            n_in + n_neurons, n_neurons, weight_init=nn.kaiming_normal(1.0), key=k1
        )
        self.lif = nn.LIF(n_neurons, tau=20.0, R=20.0)
        self.readout = nn.LeakyRateReadout(
            n_neurons, n_out, tau=10.0, weight_init=nn.kaiming_normal(0.02), key=k2
        )

    def init_state(self) -> State:
        return State(self.lif.init_state(), self.readout.init_state())

    def __call__(self, x: Float[Array, " I"], state: State) -> tuple[Array, State]:
        current = self.hidden(jnp.concatenate([x, self.lif.spike(state.V)]))
        spikes, V = self.lif(current, state.V)
        y, r = self.readout(spikes, state.r)
        return y, State(V, r)


def cross_entropy(y: Array, label: Array) -> Array:
    """The loss of one example at one step: the network should know the digit at all times."""
    return optax.softmax_cross_entropy_with_integer_labels(y, label)


# --- the data ---

Split = tuple[np.ndarray, np.ndarray]  # images [N, 64] in [0, 1] and labels [N]


def digits() -> dict[str, Split]:
    """1257 images for training, 180 for validation, 360 for the test."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    order = np.arange(len(images))
    rest, test = train_test_split(order, test_size=360, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
    parts = {"train": train, "validation": validation, "test": test}
    return {name: (images[chosen], labels[chosen]) for name, chosen in parts.items()}


@jax.jit
def encode(key: PRNGKeyArray, images: Float[Array, "B 64"]) -> Float[Array, "T B 64"]:
    """Spike trains: a white pixel fires at every second step on average, a black one never."""
    return jax.random.bernoulli(key, RATE * images, (STEPS, *images.shape)).astype(jnp.float32)


@eqx.filter_jit
def respond(model: Network, xs: Float[Array, "T B 64"]) -> tuple[Array, Array]:
    """Outputs [T, B, 10] and hidden spikes [T, B, K]: the model runs without any traces."""

    def step(state: State, x: Array) -> tuple[State, tuple[Array, Array]]:
        y, state = jax.vmap(model)(x, state)
        return state, (y, model.lif.spike(state.V))

    state = jax.vmap(lambda _: model.init_state())(xs[0])
    return jax.lax.scan(step, state, xs)[1]


def accuracy(model: Network, images: np.ndarray, labels: np.ndarray) -> float:
    """The answer is the digit that is the most probable one on average over the steps."""
    ys, _ = respond(model, encode(jax.random.key(99), images))
    answers = jax.nn.softmax(ys).mean(0).argmax(-1)
    return float((answers == labels).mean())


# --- training ---


@dataclasses.dataclass
class Arm:
    """A learning rule, how often it moves the weights, and how training went."""

    name: str
    algo: etpc.algorithms.Algorithm | None  # None: BPTT
    every: int
    model: Any = None
    memory: int | None = None
    compile_time: float = 0.0
    time: float = 0.0
    updates: int = 0
    curve: list[float] = dataclasses.field(default_factory=list)  # validation accuracy

    @property
    def title(self) -> str:
        when = "once per sequence" if self.every == STEPS else f"every {self.every} steps"
        return f"{self.name}, {when}"


def rule(arm: Arm, model: Network) -> tuple[Callable[..., Any], Any]:
    """The gradient function of an arm, and the carry with which each batch of digits starts."""
    if arm.algo is None:

        def bptt(model: Network, xs: Array, targets: Array, carry: None) -> Any:
            loss, grads = etpc.bptt(model, xs, targets, cross_entropy, batch_size=BATCH)
            return (loss, carry), grads

        return bptt, None
    program = etpc.compile(model, arm.algo, inputs=jax.ShapeDtypeStruct((64,), jnp.float32))
    arm.memory = program.memory(BATCH).total
    return program.value_and_grad(cross_entropy), program.init(BATCH)


def train(arm: Arm, model: Network, data: dict[str, Split]) -> None:
    images, labels = data["train"]
    batches = BATCHES or len(images) // BATCH
    gradient, fresh = rule(arm, model)
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, EPOCHS * batches * STEPS // arm.every)
    optimiser = optax.adam(schedule)
    moments = optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(model: Any, moments: Any, carry: Any, xs: Array, labels: np.ndarray) -> Any:
        targets = jnp.broadcast_to(labels, xs.shape[:2])
        (loss, carry), grads = gradient(model, xs, targets, carry)
        changes, moments = optimiser.update(grads, moments)
        return eqx.apply_updates(model, changes), moments, carry, loss

    def one_batch(model: Any, moments: Any, key: PRNGKeyArray, chosen: np.ndarray) -> Any:
        xs = encode(key, images[chosen]).reshape(-1, arm.every, BATCH, 64)
        carry, losses = fresh, []
        for chunk in xs:  # the stream goes on: the carry does, and the weights have moved
            model, moments, carry, loss = update(model, moments, carry, chunk, labels[chosen])
            losses.append(loss)
        return model, moments, jnp.stack(losses).mean()

    start = time.perf_counter()
    jax.block_until_ready(one_batch(model, moments, jax.random.key(0), np.arange(BATCH)))
    arm.compile_time = time.perf_counter() - start

    loss, rng, key = 0.0, np.random.default_rng(0), jax.random.key(1)
    with tqdm(total=EPOCHS * batches, desc=f"{arm.title:<32}", unit="batch", ncols=110) as bar:
        for _ in range(EPOCHS):
            order = rng.permutation(len(images))[: batches * BATCH].reshape(batches, BATCH)
            start = time.perf_counter()
            for chosen in order:
                key, now = jax.random.split(key)
                model, moments, loss = one_batch(model, moments, now, chosen)
                bar.update()
            jax.block_until_ready(model)
            arm.time += time.perf_counter() - start
            arm.updates += batches * STEPS // arm.every
            arm.curve.append(accuracy(model, *data["validation"]))
            bar.set_postfix(loss=f"{loss:.3f}", validation=f"{arm.curve[-1]:.3f}")
    arm.model = model


# --- what there is to see ---


def table(arms: list[Arm], scores: list[float]) -> str:
    head = f"{'':<32}{'test':>7}{'validation':>12}{'updates':>9}{'training':>10}"
    lines = [head + f"{'per update':>12}{'compile':>9}{'carry':>10}"]
    for arm, score in zip(arms, scores, strict=True):
        carry = f"{STEPS} steps" if arm.memory is None else f"{arm.memory / 2**20:.2f} MiB"
        lines.append(
            f"{arm.title:<32}{score:>7.1%}{arm.curve[-1]:>12.1%}{arm.updates:>9}"
            f"{arm.time:>8.1f} s{1e3 * arm.time / arm.updates:>9.2f} ms{arm.compile_time:>7.1f} s"
            f"{carry:>10}"
        )
    return "\n".join(lines)


def picture(arms: list[Arm], image: np.ndarray, label: int, path: Path) -> None:
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    xs = encode(jax.random.key(7), image[None])
    ys, spikes = respond(arms[0].model, xs)
    probabilities = jax.nn.softmax(ys[:, 0])

    figure, axes = plt.subplot_mosaic(
        [["curves", "input"], ["curves", "hidden"], ["curves", "readout"]],
        figsize=(12, 6.5), layout="constrained", width_ratios=[1, 1.15],
    )  # fmt: skip
    ax = axes["curves"]
    for arm, style in zip(arms, ["-", "--", "-.", ":"], strict=False):
        errors = 100 * (1 - np.array(arm.curve))
        ax.plot(range(1, len(errors) + 1), errors, style, label=arm.title, linewidth=1.8)
    ax.axhline(100 * (1 - GOAL), color="0.6", linewidth=1)
    ax.annotate(f"{GOAL:.0%} right", (1, 100 * (1 - GOAL)), (0, -3), color="0.4",
                textcoords="offset points", va="top")  # fmt: skip
    ax.set(xlabel="epoch", ylabel="validation error (%)", yscale="log",
           title="The same network, learnt by four rules" if len(arms) > 1 else "Learning")  # fmt: skip
    ticks = [2, 3, 5, 10, 20, 50]
    ax.set_yticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.legend(frameon=False)

    for name, raster in (("input", xs[:, 0]), ("hidden", spikes[:, 0])):
        t, unit = np.nonzero(np.asarray(raster))
        axes[name].plot(t, unit, "|", color="black", markersize=3 if name == "input" else 2)
        axes[name].set(ylabel="pixel" if name == "input" else "neuron", xlim=(-0.5, STEPS - 0.5))
        axes[name].tick_params(labelbottom=False)
    axes["input"].set_title(f"A test image, a “{label}”, as spikes")
    axes["hidden"].set_title("Spikes of the hidden neurons")
    inset = axes["input"].inset_axes((1.01, 0.2, 0.14, 0.7))
    inset.imshow(image.reshape(8, 8), cmap="gray_r")
    inset.set_xticks([])
    inset.set_yticks([])
    ax = axes["readout"]
    for digit in range(10):
        ax.plot(probabilities[:, digit], color=f"C{digit}", linewidth=2.5 if digit == label else 1)
        if digit == label or probabilities[:, digit].max() > 0.2:
            t = int(probabilities[:, digit].argmax())
            ax.annotate(str(digit), (t, float(probabilities[t, digit])), color=f"C{digit}",
                        xytext=(0, 2), textcoords="offset points", weight="bold")  # fmt: skip
    ax.set(xlabel="time step (ms)", ylabel="probability", ylim=(0, 1.12),
           xlim=(-0.5, STEPS - 0.5), title="Readout")  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn handwritten digits online.")
    parser.add_argument("--algo", default="es_d_rtrl", choices=["es_d_rtrl", "d_rtrl", "bptt"])
    parser.add_argument("--decay", type=float, default=0.99, help="of es_d_rtrl, in (0, 1]")
    parser.add_argument("--every", type=int, default=10, help="steps between weight updates")
    parser.add_argument("--alone", action="store_true", help="without the rules to compare with")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    default = Path(__file__).parent / "out" / "digits_online.png"
    parser.add_argument("--out", type=Path, default=default, help="path of the picture")
    args = parser.parse_args()
    if STEPS % args.every:
        parser.error(f"--every must divide {STEPS}")
    if args.algo == "bptt":  # needs the whole sequence
        args.every = STEPS
    return args


def main() -> int:
    args, start = arguments(), time.perf_counter()
    rules = {"es_d_rtrl": etpc.ES_D_RTRL(args.decay), "d_rtrl": etpc.D_RTRL(), "bptt": None}
    names = {"es_d_rtrl": "ES-D-RTRL", "d_rtrl": "D-RTRL", "bptt": "BPTT"}
    arms = [Arm(names[args.algo], rules[args.algo], args.every)]
    if not args.alone:
        arms += [Arm(names[name], rules[name], STEPS) for name in rules]
        arms = list({arm.title: arm for arm in arms}.values())

    data = digits()
    model = Network(64, NEURONS, 10, key=jax.random.key(args.seed))

    images, labels = (part[:8] for part in data["train"])
    xs, targets = encode(jax.random.key(0), images), jnp.broadcast_to(labels, (STEPS, 8))
    if (algo := rules[args.algo]) is not None:
        print(etpc.compile(model, algo, inputs=jax.ShapeDtypeStruct((64,), jnp.float32)), "\n")
        print(etpc.verify(model, xs, targets, cross_entropy, algo, batch_size=8), "\n")

    print(
        f"{len(data['train'][0])} images to train, {len(data['validation'][0])} to validate, "
        f"{len(data['test'][0])} to test once at the end; {EPOCHS} epochs, batch size {BATCH}"
    )
    for arm in arms:
        train(arm, model, data)
    scores = [accuracy(arm.model, *data["test"]) for arm in arms]
    print(f"\n{table(arms, scores)}\n")

    test_images, test_labels = data["test"]
    picture(arms, test_images[0], int(test_labels[0]), args.out)
    print(f"picture: {args.out}\ntime in all: {time.perf_counter() - start:.0f} s")
    if FAST or scores[0] >= GOAL:
        return 0
    print(f"{scores[0]:.1%} of the test images are right, less than {GOAL:.0%}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
