"""A spiking network of the size of a fruit fly's brain learns online, on two cores.

139,255 leaky integrate-and-fire neurons and 15 million connections, as many as the connectome of an
adult fly has (Dorkenwald et al., Nature 634, 2024), drawn at random with heavy-tailed in- and
out-degrees; each neuron excites or inhibits all that it reaches (Dale's law), also after learning.
Two input patterns come in turns, and a leaky readout says which one it is. All weights learn while
the network runs: the connections, the input's weights and the readout's.

The weights are a `jax.experimental.sparse.BCOO`. ES-D-RTRL then carries two numbers for each
neuron, and D-RTRL one for each connection.

    python examples/connectome.py                       # 2 minutes on 2 cores, 1.7 GiB
    python examples/connectome.py --algo d_rtrl
    python examples/connectome.py --small               # 1/50 of the neurons, in seconds
    python examples/connectome.py --connections-only    # the input's and the readout's stay as drawn

The exit status says whether the loss fell below that of not knowing, with the network alive.
"""

import argparse
import math
import os
import resource
import sys
import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import sparse
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

import etpc
from etpc import nn

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"
NEURONS, CONNECTIONS = 139_255, 15_000_000
CHANNELS = 50  # of the input
STEPS = 16  # of 1 ms, between weight updates; also those that the program handles at once
TURN = 8  # updates until the patterns change places
# An update moves each array of weights by this share of its length: of the large, the small one.
LEARNING_RATE = 1e-3, 3e-3
# Chosen so that the neurons fire some ten times a second, irregularly:
COUPLING, INHIBITION, DRIVE, SENSES = 0.4, 3.0, (0.02, 0.055), 1.0


# --- the network: an ordinary Equinox module, one time step of one example ---


class State(NamedTuple):
    V: Float[Array, " N"]  # membrane potentials
    r: Float[Array, " 2"]  # readout


class Brain(eqx.Module):
    """Neurons with sparse connections; the first of them see the input, the readout sees all."""

    connections: sparse.BCOO  # [N, N], from column to row
    senses: Float[Array, "S I"]
    readout: nn.LeakyRateReadout
    lif: nn.LIF
    scale: Float[Array, " N"]  # of all that enters a neuron, by how much that is; does not learn
    drive: Float[Array, " N"]  # constant, so that a neuron without input is near its threshold

    def init_state(self) -> State:
        return State(jnp.zeros(self.scale.shape), self.readout.init_state())

    def __call__(self, x: Float[Array, " I"], state: State) -> tuple[Array, State]:
        scale, drive = jax.lax.stop_gradient((self.scale, self.drive))
        weights = etpc.mark(self.connections.data), self.connections.indices
        matrix = sparse.BCOO(
            weights, shape=self.connections.shape, indices_sorted=True, unique_indices=True
        )
        current = drive + scale * (matrix @ self.lif.spike(state.V))
        current = current.at[: self.senses.shape[0]].add(etpc.mark(self.senses) @ x)
        spikes, V = self.lif(current, state.V)
        y, r = self.readout(spikes, state.r)
        return y, State(V, r)


def pairs(
    rng: np.random.Generator, neurons: int, connections: int
) -> tuple[Int[np.ndarray, " U"], Int[np.ndarray, " U"]]:
    """Rows (to) and columns (from) of connections, in order, with lognormal degrees."""
    shares = rng.lognormal(0.0, 1.0, (2, neurons))
    shares /= shares.sum(1, keepdims=True)
    numbers = np.zeros(0, np.int64)
    while numbers.size < connections:
        count = int(1.02 * (connections - numbers.size)) + 16
        row, column = (np.repeat(np.arange(neurons), rng.multinomial(count, p)) for p in shares)
        rng.shuffle(column)
        new = (row * neurons + column)[row != column]
        numbers = np.sort(np.concatenate([numbers, new]))
        numbers = numbers[np.diff(numbers, prepend=-1) > 0]  # `np.unique` takes 20 times as long
    surplus = rng.choice(numbers.size, numbers.size - connections, replace=False, shuffle=False)
    numbers = np.delete(numbers, surplus)
    row, column = np.divmod(numbers, neurons)
    return row.astype(np.int32), column.astype(np.int32)


def brain(neurons: int, connections: int, *, seed: int) -> tuple[Brain, Bool[np.ndarray, " N"]]:
    """The network, and which neurons excite."""
    rng = np.random.default_rng(seed)
    row, column = pairs(rng, neurons, connections)
    excites = rng.random(neurons) < 0.7
    values = rng.lognormal(0.0, 0.5, connections).astype(np.float32)
    values *= np.where(excites, 1.0, -INHIBITION).astype(np.float32)[column]
    power = np.bincount(row, values**2, neurons)
    keys = jax.random.split(jax.random.key(seed), 2)
    weights = jnp.asarray(values), jnp.asarray(np.stack([row, column], 1))
    readout = nn.LeakyRateReadout(neurons, 2, tau=10.0, key=keys[1])
    model = Brain(
        connections=sparse.BCOO(weights, shape=(neurons, neurons)),
        senses=jax.random.normal(keys[0], (neurons // 20, CHANNELS)) * SENSES / math.sqrt(CHANNELS),
        readout=nn.init(readout, "lecun_normal", keys[1], gain=math.sqrt(0.1)),
        lif=nn.LIF(neurons, tau=20.0, R=20.0),
        scale=jnp.asarray(COUPLING / np.sqrt(np.maximum(power, 1.0)), jnp.float32),
        drive=jnp.asarray(rng.uniform(*DRIVE, neurons), jnp.float32),
    )
    return model, excites


# --- the task: which of two patterns is shown ---


def cross_entropy(y: Float[Array, " 2"], label: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(y, label)


@jax.jit
def show(key: PRNGKeyArray, patterns: Bool[Array, "2 I"], shown: Int[Array, " B"]) -> Array:
    """Spikes [T, B, I]: the channels of the pattern fire at 400 Hz."""
    rates = 0.4 * patterns[shown]
    return jax.random.bernoulli(key, rates, (STEPS, *rates.shape)).astype(jnp.float32)


# --- learning ---


def train(model: Brain, excites: Bool[np.ndarray, " N"], args: argparse.Namespace) -> bool:
    rules = {
        "es_d_rtrl": etpc.ES_D_RTRL(decay=0.95, window=STEPS),
        "d_rtrl": etpc.D_RTRL(window=STEPS),
    }
    watch = Stopwatch()
    inputs = jax.ShapeDtypeStruct((CHANNELS,), jnp.float32)
    program = etpc.compile(model, rules[args.algo], inputs=inputs, batch_size=args.batch)
    print(f"\n{program}\n\n{program.memory(args.batch)}\n")
    watch.lap("etpc.compile")
    gradient = program.value_and_grad(cross_entropy)

    # Outside of a `jit`, the program sees that the connections are those that it was compiled for.
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    drawn = np.asarray(weights.connections.data)
    signs = jnp.where(excites, 1, -1).astype(jnp.int8)[model.connections.indices[:, 1]]
    del model
    optimiser = optax.lamb(LEARNING_RATE[args.small])
    opt_state = optimiser.init(weights)

    @eqx.filter_jit(donate="all-except-first")
    def learn(signs: Array, weights: Any, opt_state: Any, grads: Any) -> Any:
        if args.connections_only:
            others = lambda g: (g.senses, g.readout.weight)
            grads = eqx.tree_at(others, grads, replace_fn=jnp.zeros_like)
        changes, opt_state = optimiser.update(grads, opt_state, weights)
        weights = eqx.apply_updates(weights, changes)
        dale = lambda w: jnp.where(w * signs > 0, w, 0)
        return eqx.tree_at(lambda w: w.connections.data, weights, replace_fn=dale), opt_state

    @jax.jit
    def firing(V: Array) -> Array:
        return 1000 * rest.lif.spike(V).mean()  # of 1 ms

    patterns = jax.random.bernoulli(jax.random.key(1), 0.5, (2, CHANNELS))
    carry, losses, rates = program.init(args.batch), [], []
    for n in range(args.updates):
        shown = (jnp.arange(args.batch) + n // TURN) % 2
        xs = show(jax.random.key(2 + n), patterns, shown)
        targets = jnp.broadcast_to(shown, xs.shape[:2])
        (loss, carry), grads = gradient(eqx.combine(weights, rest), xs, targets, carry)
        weights, opt_state = learn(signs, weights, opt_state, grads)
        losses.append(float(loss))
        rates.append(float(firing(carry.state.V)))
        if n == 0:
            watch.lap("first update, with XLA's compilation")
        if (n + 1) % TURN == 0:
            progress = f"loss {np.mean(losses[-TURN:]):.4f}   {np.mean(rates[-TURN:]):5.1f} Hz"
            print(f"update {n + 1:4d}   {progress}   {peak():.2f} GiB", flush=True)
    each = watch.lap(f"{args.updates - 1} updates") / (args.updates - 1)
    moved = np.mean(np.asarray(weights.connections.data) != drawn)
    print(f"{each:.2f} s for an update, {each / STEPS:.3f} s for a step of {args.batch} example(s)")
    print(f"{moved:.1%} of the connections have another weight than in the beginning")
    print(f"peak resident memory: {peak():.2f} GiB")
    tail = slice(-2 * TURN, None)
    print(f"loss {np.mean(losses[tail]):.4f}; that of not knowing is {math.log(2):.4f}")
    return bool(np.mean(losses[tail]) < 0.8 * math.log(2) and 1 < np.mean(rates[tail]) < 100)


class Stopwatch:
    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self, what: str) -> float:
        """Print and return the seconds since the lap before."""
        now = time.perf_counter()
        lap, self.start = now - self.start, now
        print(f"{what}: {lap:.1f} s, peak {peak():.2f} GiB", flush=True)
        return lap


def peak() -> float:
    """The most memory that this process had at any time, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A network of a fly's size learns online.")
    parser.add_argument("--algo", default="es_d_rtrl", choices=["es_d_rtrl", "d_rtrl"])
    parser.add_argument("--batch", type=int, default=2, help="examples at once")
    parser.add_argument("--updates", type=int, default=8 if FAST else 48)
    parser.add_argument("--small", action="store_true", default=FAST, help="1/50 of the neurons")
    parser.add_argument("--connections-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the network")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    watch = Stopwatch()
    share = 50 if args.small else 1
    model, excites = brain(NEURONS // share, CONNECTIONS // share, seed=args.seed)
    rows = np.bincount(model.connections.indices[:, 0], minlength=NEURONS // share)
    columns = np.bincount(model.connections.indices[:, 1], minlength=NEURONS // share)
    print(f"{NEURONS // share:,} neurons, {CONNECTIONS // share:,} connections")
    for name, degrees in ("in", rows), ("out", columns):
        quantiles = np.percentile(degrees, [1, 50, 99, 100]).astype(int)
        print(f"  {name}-degrees at 1, 50, 99, 100 %: " + ", ".join(f"{q:,}" for q in quantiles))
    watch.lap("network")
    learnt = train(model, excites, args)
    return 0 if FAST or learnt else 1


if __name__ == "__main__":
    sys.exit(main())
