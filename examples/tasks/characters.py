"""The next character of a text that ships with Python, learnt from an endless stream.

The text is a part of `pydoc_data.topics`, what `help()` shows: 28 topics, 43,455 characters. Sixteen
readers start at sixteen places and go round; the weights move while they read, and the state and the
traces are never reset. The last tenth of the text is held out and scored in bits per character, beside
the best that the frequencies of characters and of pairs of characters give.

The topics are those that Python 3.11 and 3.13 have word for word; `TEXT_HASH` pins their text. Another
Python may have another text: `check` says so, and its scores are not comparable with those of the docs.

Source: the task of Graves, "Generating sequences with recurrent neural networks", arXiv 1308.0850,
section 3, with a text of 43 thousand characters in place of 100 million.
"""

import hashlib
from pydoc_data import topics

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from etpc import nn

TOPICS = (
    "attribute-references bitwise bltin-code-objects bltin-ellipsis-object bltin-null-object "
    "bltin-type-objects booleans break comparisons continue del dynamic-features exceptions for "
    "id-classes if integers lambda operator-summary pass return slicings truth typesfunctions "
    "typesmodules unary while with"
).split()
TEXT_HASH = "b49227cd7c9e714f3dc936cac2c2ca9b6f80357028740641dfef4cb493ef5630"
HELD_OUT = 0.1
UNITS = 96


class Network(eqx.Module):
    """A GRU that sees one character, of `size`, and scores the next one."""

    cell: nn.GRU
    readout: nn.Linear
    size: int = eqx.field(static=True)

    def __init__(self, size: int, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        self.size = size
        # One input is one of `size` numbers, so a unit variance of the drive needs unit weights.
        self.cell = nn.GRU(size, UNITS, weight_init=nn.normal(0.5), key=k1)
        self.readout = nn.Linear(UNITS, size, key=k2)

    def init_state(self) -> Float[Array, " H"]:
        return self.cell.init_state()

    def __call__(self, x: Int[Array, ""], h: Float[Array, " H"]) -> tuple[Array, Array]:
        out, h = self.cell(jax.nn.one_hot(x, self.size), h)
        return self.readout(out), h


def read(found: dict[str, str] = topics.topics) -> str:
    """The topics, one after the other; those that this Python lacks are left out."""
    return "".join(found[name] for name in TOPICS if name in found)


def known(text: str) -> bool:
    """Whether this is the text that the results of the docs are about."""
    return hashlib.sha256(text.encode()).hexdigest() == TEXT_HASH
