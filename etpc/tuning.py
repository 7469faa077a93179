"""Settings that decide speed alone, and depend on the machine that programs are compiled for."""

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar

import jax


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Sizes by which code is laid out. No result depends on them but for rounding."""

    piece: int | None
    """Bytes of a piece of a pass over a trace, about; `None`: the whole of it at once."""
    abreast: int | None
    """How many examples are added up at a time; `None`: all of them, in one reduction."""
    outer_products: int
    """Up to so many steps, and so many numbers of all outputs' blocks, outer products are added up one by one,
    and beyond as a product of matrices."""
    window: int | None
    """Bytes that a window may keep of the steps of one example where the traces are small; `None`: any."""
    by_parts: bool
    """Whether products of complex matrices are computed as products of their real and imaginary parts."""
    stores_sines: bool
    """Whether sines and cosines of parameters are written to memory, and not computed in each loop that reads them."""


CPU = Tuning(
    piece=3 << 20,
    abreast=8,
    outer_products=32,
    window=640 << 10,
    by_parts=True,
    stores_sines=True,
)
"""A piece stays in a cache. XLA reduces a leading axis column by column, twenty times slower than it adds
up rows. Small sums of outer products were two to four times slower as products of matrices. The bytes of a
window were measured on the cells of the benchmarks in batches of 32, with windows of 8 to 50 steps. Products of
complex matrices take two to five times as long as four products of real ones."""

ACCELERATOR = Tuning(
    piece=None,
    abreast=None,
    outer_products=1,
    window=None,
    by_parts=False,
    stores_sines=False,
)
"""Each piece, and each group of examples, would be a launch of some microseconds, in which the memory of
such a device moves more bytes than a piece has: 3 MiB take one microsecond at 3 TB/s. By this count; not
measured."""

_SCHEDULED = ContextVar("scheduled", default=True)


@contextlib.contextmanager
def scheduled(on: bool) -> Iterator[None]:
    """Whether code is laid out for the back end while a function is traced."""
    before = _SCHEDULED.set(on)
    try:
        yield
    finally:
        _SCHEDULED.reset(before)


def tuning() -> Tuning:
    """For the back end that JAX uses by default; each loop in one, where code is not laid out for it."""
    return CPU if _SCHEDULED.get() and jax.default_backend() == "cpu" else ACCELERATOR
