"""The next character of a text that ships with Python, learnt from a stream that never ends.

The text is a part of `pydoc_data.topics`, what `help()` shows: 28 topics, 43,455 characters. Sixteen
readers start at different places and go round and round. The weights move every 32 characters, and
neither the state nor the traces are ever reset: the traces reach back behind the last update, where
BPTT does not. The last tenth of the text is held out and scored in bits per character (lower is
better). "Chance" is the score of the frequencies of pairs, which needs no memory.

The topics are those that Python 3.11.7 and 3.13.5 have word for word, and `TEXT_HASH` pins their text.
Where a Python has another text, the script says so: its scores are then not those of the documentation.

Source: Graves, "Generating sequences with recurrent neural networks", arXiv 1308.0850, section 3, with a
text of 43 thousand characters in place of 100 million, and 64 units in place of thousands.
"""

import hashlib
from collections.abc import Mapping
from pydoc_data import topics

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from etpc import nn

from .arms import Batch, Task, main

TOPICS = [
    "attribute-references", "bitwise", "bltin-code-objects", "bltin-ellipsis-object",
    "bltin-null-object", "bltin-type-objects", "booleans", "break", "comparisons", "continue",
    "del", "dynamic-features", "exceptions", "for", "id-classes", "if", "integers", "lambda",
    "operator-summary", "pass", "return", "slicings", "truth", "typesfunctions", "typesmodules",
    "unary", "while", "with",
]  # fmt: skip
TEXT_HASH = "b49227cd7c9e714f3dc936cac2c2ca9b6f80357028740641dfef4cb493ef5630"  # SHA-256
HELD_OUT, TEST_READERS = 0.1, 8
STEPS, READERS, UNITS = 32, 16, 64


class Network(eqx.Module):
    """A GRU that sees one character, of `size`, and scores the next one."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear
    size: int = eqx.field(static=True)

    def __init__(self, size: int, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        self.size = size
        # A character picks one column of the matrix, so its entries are the drives themselves.
        cell = nn.init(eqx.nn.GRUCell(size, UNITS, key=k1), "lecun_normal", k1)
        drives = 0.5 * jax.random.normal(k1, cell.weight_ih.shape)
        self.cell = eqx.tree_at(lambda c: c.weight_ih, cell, drives)
        self.readout = nn.init(eqx.nn.Linear(UNITS, size, key=k2), "kaiming_normal", k2)

    def init_state(self) -> Array:
        return jnp.zeros(UNITS)

    def __call__(self, x: Int[Array, ""], h: Array) -> tuple[Array, Array]:
        h = self.cell(jax.nn.one_hot(x, self.size), h)
        return self.readout(h), h


def read(found: Mapping[str, str] = topics.topics) -> str:
    """The topics, one after the other; those that this Python lacks are left out."""
    return "".join(found[name] for name in TOPICS if name in found)


def is_pinned(text: str) -> bool:
    """Whether this is the text of the results in the documentation."""
    return hashlib.sha256(text.encode()).hexdigest() == TEXT_HASH


def encode(text: str) -> tuple[Int[np.ndarray, " N"], int]:
    """Each character as its number in the sorted alphabet of the text, and the alphabet's size."""
    alphabet, codes = np.unique(list(text), return_inverse=True)
    return codes.astype(np.int32), len(alphabet)


def split(codes: Int[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
    """For training, and the last tenth for the test."""
    at = round(len(codes) * (1 - HELD_OUT))
    return codes[:at], codes[at:]


def frequencies(train: np.ndarray, test: np.ndarray, size: int) -> tuple[float, float]:
    """Bits per character of `test` with the frequencies of characters in `train`, and of pairs.

    One count is added to all characters together, evenly, and one to the pairs that begin alike,
    spread as single characters are. The first character is not scored.
    """
    single = (np.bincount(train, minlength=size) + 1 / size) / (len(train) + 1)
    pairs = np.zeros((size, size))
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    following = (pairs + single) / (pairs.sum(1, keepdims=True) + 1)
    before, current = test[:-1], test[1:]
    scores = -np.log2(single[current]), -np.log2(following[before, current])
    return float(scores[0].mean()), float(scores[1].mean())


def stream(codes: Int[Array, " N"], number: Int[Array, ""]) -> Batch:
    """Batch `number` of the stream: characters [T, B] and those that follow them.

    Readers start evenly spread over the text, and at its end they go on at its beginning.
    """
    starts = jnp.arange(READERS)[None] * (len(codes) // READERS)
    at = starts + (number * STEPS + jnp.arange(STEPS))[:, None]
    return codes[at % len(codes)], codes[(at + 1) % len(codes)], None


def bits(y: Float[Array, " V"], target: Int[Array, ""]) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(y, target) / jnp.log(2.0)


def bits_per_character(ys: Array, targets: Array, mask: Array) -> Array:
    return (jax.vmap(jax.vmap(bits))(ys, targets) * mask).sum() / mask.sum()


def make_task(text: str) -> Task:
    codes, size = encode(text)
    train, test = split(codes)
    length = (len(test) - 1) // TEST_READERS
    inputs, targets = (
        jnp.asarray(part[: length * TEST_READERS].reshape(TEST_READERS, length).T)
        for part in (test[:-1], test[1:])
    )
    moving = jnp.asarray(train)
    return Task(
        name="Next character",
        make_model=lambda key: Network(size, key),
        batch=lambda key, number: stream(moving, number),
        fixed=lambda: [
            stream(moving, jnp.asarray(n)) for n in range(len(train) // READERS // STEPS)
        ],
        loss_fn=bits,
        score=bits_per_character,
        chance=frequencies(train, test, size)[1],
        unit="bits per character",
        batch_size=READERS,
        updates=800,
        rate=5e-3,
        uncut=False,
        window=8,
        stream=True,
        test=(inputs, targets, None),
    )


if __name__ == "__main__":
    text = read()
    if not is_pinned(text):
        print("This Python has another text than the documentation's results are about.")
    codes, size = encode(text)
    single, pairs = frequencies(*split(codes), size)
    print(f"bits per character by frequencies: {single:.3f} of characters, {pairs:.3f} of pairs")
    main(make_task(text))
