"""A stack of Equinox layers with dropout, computed in bfloat16, that learns online.

Each sequence shows one of four cues in noise for three steps, and the network says after it, at every step, which
one it was. Encoder, layer norm, dropout and head are those of Equinox; between them are two recurrent layers. The
script goes the way of somebody who brings such a code base:

1. compile, and read what is exact: the last recurrent layer and all behind it. What comes before enters it through
   a matrix, which full windows (`backprop="full"`) follow inside a window;
2. check the gradients in the dtype of the run, dropout and all;
3. train with a checkpoint, evaluate without dropout, and read the weights back.

    python examples/equinox_stack.py                    # about half a minute on 2 cores
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

import etpc
from etpc import nn

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"
CUES, INPUTS, WIDTH, T, B = 4, 12, 48, 40, 32
BLOCKS = 30 if FAST else 200


class State(NamedTuple):
    lower: Array
    upper: Array
    key: PRNGKeyArray


class Stack(eqx.Module):
    """Parameters are float32; a step computes in bfloat16, and the cast passes the gradient on."""

    encoder: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    lower: nn.MinGRU
    upper: nn.MinGRU
    head: eqx.nn.MLP

    def __init__(self, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.encoder = eqx.nn.Linear(INPUTS, WIDTH, key=keys[0])
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.dropout = eqx.nn.Dropout(0.1)
        self.lower = nn.MinGRU(WIDTH, WIDTH, key=keys[1])
        self.upper = nn.MinGRU(WIDTH, WIDTH, key=keys[2])
        self.head = eqx.nn.MLP(WIDTH, CUES, WIDTH, 1, key=keys[3])

    def init_state(self) -> State:
        zeros = jnp.zeros(WIDTH, jnp.bfloat16)
        return State(zeros, zeros, jax.random.key(0))

    def __call__(self, x: Array, state: State) -> tuple[Array, State]:
        low = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, self)
        key, first, second = jax.random.split(state.key, 3)
        h = jax.nn.gelu(low.norm(low.encoder(x.astype(jnp.bfloat16))))
        a, lower = low.lower(low.dropout(h, key=first), state.lower)
        b, upper = low.upper(low.dropout(a, key=second), state.upper)
        return low.head(a + b).astype(jnp.float32), State(lower, upper, key)


def cross_entropy(y: Array, cue: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(y, cue)


def block(number: int) -> dict[str, Array]:
    """Sequences of one batch; the loss counts from the end of the cue."""
    keys = jax.random.split(jax.random.key(number), 3)
    cues = jax.random.randint(keys[0], (B,), 0, CUES)
    begins = jax.random.randint(keys[1], (B,), 0, 6)
    steps = jnp.arange(T)[:, None]
    shown = (steps >= begins) & (steps < begins + 3)  # T, B
    pattern = jax.random.normal(jax.random.key(7), (CUES, INPUTS))
    xs = jax.random.normal(keys[2], (T, B, INPUTS)) + 2 * shown[..., None] * pattern[cues]
    after = (steps >= begins + 3).astype(jnp.float32)
    return dict(xs=xs, targets=jnp.broadcast_to(cues, (T, B)), mask=after)


def accuracy(program: etpc.Program, model: Stack) -> float:
    data = block(10_000)
    ys, _ = program.predict(eqx.nn.inference_mode(model), data["xs"], program.init(B))
    return float((ys[-1].argmax(-1) == data["targets"][-1]).mean())


def blocks() -> Iterator[dict[str, Any]]:
    return map(block, range(BLOCKS))


def main() -> int:
    model = Stack(jax.random.key(1))
    rule = etpc.D_RTRL(window=10, backprop="full")
    program = etpc.compile(model, rule, inputs=jnp.zeros(INPUTS))
    exact = [path for path, claim in program.claims.items() if claim.holds_exactly]
    print(f"{program}\n\nexact: {', '.join(exact)}\n")

    data = block(0)
    measured = (model, data["xs"], data["targets"], cross_entropy, rule)
    report = etpc.verify(*measured, mask=data["mask"], batch_size=B)
    print(f"{report}\n")

    learner = etpc.online(program, cross_entropy, optax.adam(3e-3), every=10)
    before = accuracy(program, model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.etpc"
        settings: dict[str, Any] = dict(batch_size=B, independent=True, checkpoint=file)
        run = etpc.fit(learner, model, blocks(), **settings)
        trained = etpc.load_weights(file, like=model)
    same = eqx.tree_equal(trained, run.model)
    after = accuracy(program, trained)
    print(
        f"{before:.0%} of the cues are named at the end of a sequence, and {after:.0%} after training"
    )
    return 0 if report.ok and same and after > (0.5 if FAST else 0.9) else 1


if __name__ == "__main__":
    sys.exit(main())
