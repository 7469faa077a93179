"""Nine speakers, told apart by how they say two vowels in a row.

Each of 640 recordings of Japanese "ae" is a sequence of 7 to 29 frames of 12 LPC cepstra: real speech, of
uneven length. A GRU hears them; the loss counts at every frame that there is, and the answer is the
mean of the outputs over those. 270 recordings are for training and 370 for the test, as published.

Source: Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through regions",
Pattern Recognition Letters 20, 1999; in the UCI archive, and inside the package `aeon` in the format of
the UEA archive. That package is not imported, so that what it depends on is not needed:

    pip install --no-deps aeon
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from etpc import nn

from .arms import Task, main
from .classify import Examples, classification

STEPS, FEATURES, SPEAKERS, UNITS = 30, 12, 9, 32  # no recording is longer than 29 steps


class Network(eqx.Module):
    """A GRU and a linear readout."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        self.cell = nn.init(eqx.nn.GRUCell(FEATURES, UNITS, key=k1), "lecun_normal", k1)
        self.readout = nn.init(eqx.nn.Linear(UNITS, SPEAKERS, key=k2), "kaiming_normal", k2)

    def init_state(self) -> Float[Array, " H"]:
        return jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " 12"], h: Float[Array, " H"]) -> tuple[Array, Array]:
        h = self.cell(x, h)
        return self.readout(h), h


def find(part: str) -> Path | None:
    """The file of a part, "TRAIN" or "TEST"; None where `aeon` is not installed."""
    try:
        installed = files("aeon") or []
    except PackageNotFoundError:
        return None
    name = f"JapaneseVowels_{part}.ts"
    return next((Path(str(file.locate())) for file in installed if file.name == name), None)


def read_ts(lines: Iterable[str]) -> tuple[list[Float[np.ndarray, "T D"]], list[str]]:
    """Series and labels of a text in the `.ts` format.

    After the line `@data` each line is one series: its dimensions, each a list of numbers with commas
    between them, and its label, with colons between all of these. What is before is about the data.

    **Raises** `ValueError` for a series whose dimensions are not equally long.
    """
    rows = iter(line.strip() for line in lines)
    if not any(row.lower() == "@data" for row in rows):
        raise ValueError("There is no line @data, so this is no text in the .ts format.")
    series, labels = [], []
    for row in rows:
        if row:
            *dimensions, label = row.split(":")
            values = [np.array(d.split(","), np.float32) for d in dimensions]
            if len({len(v) for v in values}) != 1:
                raise ValueError(f"The dimensions of series {len(series)} are not equally long.")
            series.append(np.stack(values, axis=1))
            labels.append(label)
    return series, labels


def pad(
    series: list[Float[np.ndarray, "T D"]], steps: int
) -> tuple[Float[np.ndarray, "T N D"], Bool[np.ndarray, "T N"]]:
    """Series with zeros after their end, and which steps are theirs."""
    xs = np.zeros((steps, len(series), series[0].shape[1]), np.float32)
    mask = np.zeros(xs.shape[:2], bool)
    for i, one in enumerate(series):
        xs[: len(one), i] = one
        mask[: len(one), i] = True
    return xs, mask


def recordings() -> tuple[Examples, Examples] | None:
    """The published training and test sets, scaled alike; None where `aeon` is not installed."""
    parts = []
    for part in ("TRAIN", "TEST"):
        if (path := find(part)) is None:
            return None
        series, labels = read_ts(path.read_text().splitlines())
        parts.append((series, np.array(labels, int) - 1))
    frames = np.concatenate(parts[0][0])
    mean, scale = frames.mean(0), frames.std(0)
    train, test = (
        Examples(xs, labels, mask)
        for series, labels in parts
        for xs, mask in [pad([(one - mean) / scale for one in series], STEPS)]
    )
    return train, test


def make_task() -> Task | None:
    """None where `aeon` is not installed."""
    if (data := recordings()) is None:
        return None
    return classification(
        "Japanese vowels",
        Network,
        *data,
        batch_size=30,
        updates=200,
        rate=1e-2,
        window=5,
    )


if __name__ == "__main__":
    if (task := make_task()) is None:
        print("The recordings are not here. They are part of a package: pip install --no-deps aeon")
    else:
        main(task)
