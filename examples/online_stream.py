"""Streaming training: a network follows a system that changes.

Eight streams of two random inputs each pass through a system with memory: a mix of slow and fast
filters. The mix changes again and again, without warning. It sees the inputs, is
told the system's output, and moves its weights every 5 steps, in constant memory. The
error jumps at each change and falls again: with ES-D-RTRL and with D-RTRL.

On the way one stream is reset while the others go on, and the run is saved, loaded and resumed.

    python examples/online_stream.py                    # about 20 seconds on 2 cores

The exit status says whether the error fell after every change, and whether the run that was loaded
continued exactly as the one that was not stopped.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import etpc
from etpc import nn

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few blocks, to see that it runs
BATCH, INPUTS, NEURONS, EVERY = 8, 2, 48, 5
BLOCK = 500  # steps between two lines of output
BLOCKS, CHANGES = (4, 2) if FAST else (8, 4)  # blocks from one change to the next
GOAL = 0.4  # the error before a change, relative to that right after the one before


class Follower(eqx.Module):
    """Rate neurons that are slow or fast, and that read the input and each other."""

    hidden: eqx.nn.Linear
    decay: Float[Array, " K"]  # before a sigmoid; it is learnt too
    readout: eqx.nn.Linear

    def __init__(self, *, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        hidden = eqx.nn.Linear(INPUTS + NEURONS, NEURONS, key=k1)
        self.hidden = nn.init(hidden, "kaiming_normal", k1)
        self.decay = jnp.linspace(-1.0, 3.0, NEURONS)
        readout = eqx.nn.Linear(NEURONS, 1, key=k2)
        self.readout = nn.init(readout, "lecun_normal", k2, gain=0.3)

    def init_state(self) -> Float[Array, " K"]:
        return jnp.zeros(NEURONS)

    def __call__(self, x: Float[Array, " I"], h: Float[Array, " K"]) -> tuple[Array, Array]:
        decay = jax.nn.sigmoid(self.decay)
        h = decay * h + (1 - decay) * jnp.tanh(self.hidden(jnp.concatenate([x, h])))
        return self.readout(h), h


def loss_fn(y: Float[Array, " 1"], target: Float[Array, " 1"]) -> Array:
    return jnp.sum((y - target) ** 2)


# --- the system ---

Filters = Float[Array, "B 3 2"]
KEEPS = jnp.array([0.5, 0.8, 0.95])[:, None]  # of the filters: how much of the past stays


@eqx.filter_jit
def stream(key: PRNGKeyArray, mix: Float[Array, "3 2"], state: Filters) -> Any:
    """A block of inputs [T, B, 2] and outputs [T, B, 1], and the state of the filters."""
    xs = jax.random.normal(key, (BLOCK, BATCH, INPUTS))

    def step(state: Filters, x: Float[Array, "B 2"]) -> tuple[Filters, Array]:
        state = KEEPS * state + jnp.sqrt(1 - KEEPS**2) * x[:, None, :]
        return state, (state * mix).sum((1, 2))[:, None]

    state, targets = jax.lax.scan(step, state, xs)
    return (xs, targets), state


def mixes(key: PRNGKeyArray) -> list[Float[Array, "3 2"]]:
    """One for each time between changes, all of the same strength."""
    drawn = jax.random.normal(key, (CHANGES, 3, INPUTS))
    return list(drawn / jnp.sqrt((drawn**2).sum((1, 2), keepdims=True)))


# --- learning ---


def learner_of(model: Follower, algo: etpc.algorithms.Algorithm) -> etpc.Online:
    program = etpc.compile(model, algo, inputs=jax.ShapeDtypeStruct((INPUTS,), jnp.float32))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    return etpc.online(program, loss_fn, optimizer, EVERY)


def follow(name: str, algo: etpc.algorithms.Algorithm) -> bool:
    start = time.perf_counter()
    model = Follower(key=jax.random.key(0))
    learner = learner_of(model, algo)
    opt_state, carry = learner.init(model, BATCH)
    key, filters = jax.random.key(1), jnp.zeros((BATCH, 3, INPUTS))
    size = learner.program.memory(BATCH).total / 2**10
    print(f"{name}: an update every {EVERY} steps, carry of {size:.0f} KiB")
    print(f"  mean squared error: in the first 50 steps, then in blocks of {BLOCK}")
    good = True
    for n, mix in enumerate(mixes(jax.random.key(2))):
        errors: list[float] = []
        for block in range(BLOCKS):
            key, block_key = jax.random.split(key)
            (xs, targets), filters = stream(block_key, mix, filters)
            model, opt_state, carry, losses = learner.update(model, opt_state, carry, xs, targets)
            if block == 0:
                errors.append(float(losses[: 50 // EVERY].mean()))
            errors.append(float(losses.mean()))
            if (n, block) == (0, 1):  # a sensor was exchanged: this stream begins anew
                carry = learner.program.reset(carry, jnp.arange(BATCH) == 3)
                filters = filters.at[3].set(0.0)
            if (n, block) == (1, 0):
                good &= resumes(learner, algo, (model, opt_state, carry), (xs, targets))
        good &= errors[-1] < GOAL * errors[0]
        first, *rest = (f"{error:.3f}" for error in errors)
        print(f"  mix {n + 1}:  {first} |  {'  '.join(rest)}")
    print(f"  {time.perf_counter() - start:.0f} s\n")
    return good


def resumes(
    learner: etpc.Online, algo: etpc.algorithms.Algorithm, run_state: Any, data: Any
) -> bool:
    """Whether a run that was saved and loaded continues as the one that was not stopped."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.etpc"
        etpc.save(path, run_state)
        # From here on as a new process would: another model, program and optimizer.
        model = Follower(key=jax.random.key(7))
        again = learner_of(model, algo)
        loaded = etpc.load(path, like=(model, *again.init(model, BATCH)))
    went_on = [one.update(*start, *data) for one, start in ((learner, run_state), (again, loaded))]
    same = eqx.tree_equal(*went_on)
    print(f"  saved and loaded: it continues {'identically' if same else 'differently'}")
    return bool(same)


def main() -> int:
    good = [follow("ES-D-RTRL", etpc.ES_D_RTRL(decay=0.95)), follow("D-RTRL", etpc.D_RTRL())]
    if all(good):
        return 0
    print("the error did not fall after every change", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
