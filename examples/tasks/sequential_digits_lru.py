"""Handwritten digits, read pixel by pixel by a linear recurrent unit (LRU).

The task of `sequential_digits`, with a recurrence that is linear and diagonal, and a nonlinear readout.
No weight reads the state on its way into the next one, so the gradient of D-RTRL is that of BPTT.

Source: as there, and Orvieto et al., "Resurrecting recurrent neural networks for long sequences", ICML
2023, for the cell; one layer in place of six.
"""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from etpc import nn

from .arms import Task, main
from .classify import classification
from .sequential_digits import CLASSES, digits, sequences

STATES, FEATURES = 16, 48


class Network(eqx.Module):
    """An LRU, and a readout of its output behind a nonlinearity."""

    lru: nn.LRU
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        # Memories of 10 to 100 steps.
        self.lru = nn.LRU(1, FEATURES, STATES, r_min=0.9, r_max=0.99, key=k1)
        self.readout = nn.init(eqx.nn.Linear(FEATURES, CLASSES, key=k2), "kaiming_normal", k2)

    def init_state(self) -> Array:
        return self.lru.init_state()

    def __call__(self, x: Float[Array, " 1"], h: Array) -> tuple[Array, Array]:
        features, h = self.lru(x, h)
        return self.readout(jax.nn.gelu(features)), h


def make_task() -> Task:
    train, test = digits()
    return classification(
        "Digits, pixel by pixel, LRU",
        Network,
        sequences(*train),
        sequences(*test),
        updates=600,
        rate=1e-2,
        uncut=False,
        window=16,
    )


if __name__ == "__main__":
    main(make_task())
