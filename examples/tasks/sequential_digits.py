"""Handwritten digits, read pixel by pixel: what was on top decides what the rest means.

The 8 x 8 digits of scikit-learn come as 64 brightness values, one a step, and the loss counts at the
last step only. A GRU reads them. `sequential_digits_lru` is the same task with a recurrence that is
diagonal.

Source: the pixel-by-pixel MNIST of Le, Jaitly and Hinton, "A simple way to initialize recurrent networks
of rectified linear units", arXiv 1504.00941, with 64 pixels in place of 784 and 1437 training images in
place of 60,000.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from etpc import nn

from .arms import Task, main
from .classify import Examples, classification

STEPS, CLASSES, UNITS = 64, 10, 48

Images = tuple[Float[np.ndarray, "N 8 8"], np.ndarray]


class Network(eqx.Module):
    """A GRU whose update gate is mostly shut at first, so that it remembers, and a linear readout."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        cell = nn.init(eqx.nn.GRUCell(1, UNITS, key=k1), "lecun_normal", k1)
        bias = jnp.repeat(jnp.array([0.0, 2.0, 0.0]), UNITS)  # of the gates r, z, n
        self.cell = eqx.tree_at(lambda c: c.bias, cell, bias)
        self.readout = nn.init(eqx.nn.Linear(UNITS, CLASSES, key=k2), "kaiming_normal", k2)

    def init_state(self) -> Array:
        return jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " 1"], h: Array) -> tuple[Array, Array]:
        h = self.cell(x, h)
        return self.readout(h), h


def digits() -> tuple[Images, Images]:
    """1437 images for training and 360 for the test, with brightness in [0, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.asarray(pixels / 16, np.float32).reshape(-1, 8, 8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=360, stratify=labels, random_state=0
    )
    return (images[train], labels[train]), (images[test], labels[test])


def sequences(images: Float[np.ndarray, "N 8 8"], labels: np.ndarray) -> Examples:
    """The pixels of each image, row by row from the top left, one a step; only the last one counts."""
    xs = images.reshape(len(images), STEPS, 1).swapaxes(0, 1)
    last = np.arange(STEPS)[:, None] == STEPS - 1
    return Examples(xs, labels, np.broadcast_to(last, xs.shape[:2]))


def make_task() -> Task:
    train, test = digits()
    return classification(
        "Digits, pixel by pixel",
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
