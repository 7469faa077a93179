"""An encoder before the memory: which rules give its weights credit for what is asked later.

Six bits are shown, and in the last of 20 steps it is asked whether the first two were equal. Memory and readout are
linear, so the encoder has to learn to compare. Its output enters the memory through a matrix, at which D-RTRL cuts.

    python -m examples.tasks.encoder                         # a table; 3 minutes of CPU time
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import etpc
from etpc import nn

from .arms import FAST, Arm, Batch, Learner, Task, evaluator, fast, fidelity, measured, trained
from .memory_chain import accuracy

BITS, STEPS, BATCH, WIDTH, UNITS, WINDOW = 6, 20, 64, 8, 16, 8


class Network(eqx.Module):
    """An MLP, a linear recurrent unit with memories of 10 to 100 steps, and a linear readout."""

    encoder: eqx.nn.MLP
    cell: nn.LRU
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        self.encoder = eqx.nn.MLP(BITS, WIDTH, WIDTH, 1, jnp.tanh, key=keys[0])
        self.cell = nn.LRU(WIDTH, UNITS, UNITS, r_min=0.9, r_max=0.99, key=keys[1])
        self.readout = eqx.nn.Linear(UNITS, 1, key=keys[2])

    def init_state(self) -> Array:
        return self.cell.init_state()

    def __call__(self, x: Float[Array, " 6"], h: Array) -> tuple[Array, Array]:
        y, h = self.cell(self.encoder(x), h)
        return self.readout(y)[0], h


def batch(key: PRNGKeyArray) -> Batch:
    """Bits as -1 or 1 in the first step, then noise [T, B, 6]; whether the first two are equal; and 1 in the last
    step."""
    bit_key, noise_key = jax.random.split(key)
    bits = jax.random.rademacher(bit_key, (BATCH, BITS), jnp.float32)
    xs = (0.1 * jax.random.normal(noise_key, (STEPS, BATCH, BITS))).at[0].set(bits)
    last = jnp.broadcast_to((jnp.arange(STEPS) == STEPS - 1)[:, None], (STEPS, BATCH))
    equal = (bits[:, 0] == bits[:, 1]).astype(jnp.int32)
    return xs, jnp.broadcast_to(equal, (STEPS, BATCH)), last.astype(jnp.float32)


TASK = Task(
    name="Encoder",
    make_model=Network,
    batch=batch,
    loss_fn=optax.sigmoid_binary_cross_entropy,
    score=accuracy,
    batch_size=BATCH,
    updates=300,
    rate=1e-2,
    window=WINDOW,
    points=1,
)
LEARNING = 2 if FAST else 100
"""After so many batches of BPTT, while it learns, gradients are compared."""
W = WINDOW
RULES = {
    "D-RTRL": etpc.D_RTRL(),
    "ES-D-RTRL, decay 0.99": etpc.ES_D_RTRL(decay=0.99),
    "ES-D-RTRL, rank 4": etpc.ES_D_RTRL(rank=4, window=W),
    "D-RTRL, full windows of 8": etpc.D_RTRL(window=W, backprop="full"),
    "D-RTRL, look-back 16": etpc.D_RTRL(window=W, lookback=2 * W),
    "D-RTRL, look-back 24": etpc.D_RTRL(window=W, lookback=3 * W),
    "TBPTT(8)": etpc.TBPTT(W),
    "TBPTT(24, every=8)": etpc.TBPTT(3 * W, every=W),
    "CreditRTRL, 4 directions": etpc.CreditRTRL(4, 4, window=W),
    "SnAp(1)": etpc.SnAp(1),
    "RTRL": etpc.RTRL(),
}


def cosine(learner: Learner, exact: Learner, weights: Any, seed: int) -> float:
    """Of the gradient of the encoder's weights with that of BPTT."""
    key, (level, _) = jax.random.key(seed), learner.begin
    data = learner.draw(key, level)
    carry = learner.settled(weights, level, key)
    found, wanted = (
        by.gradient(weights, *data, start)[0].encoder
        for by, start in ((learner, carry), (exact, exact.rule.carry))
    )
    return fidelity(found, wanted)[1]


def main() -> None:
    arms = [Arm("BPTT", None), *(Arm(name, rule) for name, rule in RULES.items())]
    task, seeds, arms = (fast(TASK), range(1), arms[:2]) if FAST else (TASK, range(3), arms)
    begin = time.perf_counter()
    exact = Learner(task, arms[0])
    score = measured(exact, evaluator(task))
    learning = [trained(exact, seed, task.rate, score, LEARNING).weights for seed in seeds]
    rows = ["| rule | cosine, encoder | right answers | carry KiB |", "|---|---:|---:|---:|"]
    for arm in arms:
        learner = exact if arm.rule is None else Learner(task, arm)
        cosines = ", ".join(f"{cosine(learner, exact, learning[seed], seed):.2f}" for seed in seeds)
        ends = [trained(learner, seed, task.rate, score, task.updates) for seed in seeds]
        right = ", ".join(f"{end.curve[-1]:.2f}" for end in ends)
        size = learner.carry_bytes / 1024
        rows += [f"| {arm.name} | {cosines} | {right} | {size:.0f} |"]
    print("\n".join(rows))
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
