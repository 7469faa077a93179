"""Passes over a large trace on a CPU: its sum with a signal, and its update in place, piece by piece.

Their time is decided by whether XLA vectorises its loops, and it does not where an array is read at an offset that is
known only at run time, or through a reshape. So a sum is written out over the whole trace, and a trace keeps its own
shape. An update is done a few examples at a time, each with its whole matrix: a product of matrices is the faster, the
larger they are.

A TPU's compiler estimates 1.4 to 1.8 times the cycles for updates at each step that are laid out so (`docs/passes.md`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Inexact, Int

from ..ops import summed
from ._schedule import Operand, Product, Schedule

ABREAST = 8
"""How many examples are added up at a time. XLA reduces a leading axis column by column, twenty times slower than it
adds up rows."""
EXAMPLES = 16
"""A sum over no more examples than this is written out, so that it becomes part of the loop that reads it: in windows
of one step, and where the trace is not small."""
COMPARED = 8
"""Up to so many examples, a comparison for each entry takes no longer than a conditional that saves it."""
LARGE = 2
"""An example is large if it has more bytes than so many pieces."""
SMALL = 1 << 20
"""Up to so many bytes of a trace, its sum over examples is written out by halves. XLA compiles less: a sixth of the
operations for 16 examples, and two kernels, not seven, for more than these. With more it takes longer to run."""
OUTER_PRODUCTS = 32
"""Up to so many steps, and so many numbers of all outputs' blocks, outer products are added up one by one: small sums
of these were two to four times slower as products of matrices."""


@dataclasses.dataclass(frozen=True)
class Pieces(Schedule):
    """Loops in pieces that stay in a cache.

    - `piece`: bytes of a piece, about.
    """

    piece: int = 3 << 20

    def sum_over_examples(
        self,
        product: Product,
        signal: Inexact[Array, "B ..."],
        trace: tuple[Array, ...],
        finite: Product | None = None,
    ) -> Inexact[Array, "..."]:
        devices, is_small = self._spread(trace[0]), sum(a.nbytes for a in trace) <= SMALL
        batch = len(signal)
        if devices == 1 and batch <= EXAMPLES and (finite is not None or not is_small):

            def written_out(product: Product) -> Array:
                terms = [product(signal[n], *(a[n] for a in trace)) for n in range(batch)]
                return sum(terms[1:], terms[0])

            if finite is None or finite is product or batch <= COMPARED:
                return written_out(product)
            # Where all credit is finite, zero times it is zero: an update without a comparison for each entry of the
            # trace takes up to a tenth less time.
            is_finite = jnp.isfinite(signal).all()
            return lax.cond(is_finite, lambda: written_out(finite), lambda: written_out(product))
        if devices == 1 and is_small:
            return _sum_by_halves(product(signal, *trace))
        runs = math.gcd(batch, devices)
        lead = (runs,) if runs > 1 else ()
        of_run, count = len(lead), batch // runs
        arrays = [a.reshape(*lead, count, *a.shape[1:]) for a in (signal, *trace)]
        rows = min(ABREAST, count)
        rounds = count // rows
        one = lambda a, n: lax.index_in_dim(a, n, of_run, keepdims=False)

        def add(n: Array, sums: Array) -> Array:
            def one_of(a: Array, row: int) -> Array:
                a = lax.slice_in_dim(a, row * rounds, (row + 1) * rounds, axis=of_run)
                # An index that is known not to be negative needs no select.
                return lax.dynamic_index_in_dim(
                    a, n, of_run, keepdims=False, allow_negative_indices=False
                )

            terms = [product(*(one_of(a, row) for a in arrays)) for row in range(rows)]
            return sums + sum(terms[1:], terms[0])

        sums = jnp.zeros_like(product(*(one(a, 0) for a in arrays)))
        for n in range(rows * rounds, count):
            sums = sums + product(*(one(a, n) for a in arrays))
        # XLA must not know the length of the loop, or it would dissolve a short one and compute twice a sum that is
        # read in two places. With several runs the product below prevents that.
        end = rounds if lead else rounds + zero_after(signal)
        sums = lax.fori_loop(0, end, add, sums)
        return _sum_of_rows(sums) if lead else sums

    def overwrite(
        self,
        trace: tuple[Array, ...],
        axis: int,
        update: Callable[..., tuple[Array, ...]],
        operands: Sequence[Operand],
        zero: Int[Array, ""] | None = None,
        at_once: bool = False,
    ) -> tuple[Array, ...]:
        """As of [`Schedule`][etpc.schedule.Schedule], one piece after the other.

        A piece is some examples; where examples are large or spread over devices it is a part of each along `axis`.
        """
        shape, nbytes = trace[0].shape, sum(a.nbytes for a in trace)
        devices = math.gcd(shape[0], self._spread(trace[0]))
        if devices == 1 and nbytes <= LARGE * self.piece * shape[0]:
            # Some examples at a time, each with its whole matrix: 1.3x to 1.5x faster where the trace is large.
            axis, operands = 0, [(a, 0) for a, _ in operands]
        size = places = shape[axis]
        if nbytes and not at_once:
            size = math.ceil(places / math.ceil(nbytes / devices / self.piece))
        if size == places:
            return update(trace, *_all_after(zero, [a for a, _ in operands]))

        def updated(trace: tuple[Array, ...], place: Array | int, size: int) -> tuple[Array, ...]:
            cut: Callable[[Array, int | None], Array] = lambda a, along: (
                a if along is None else lax.dynamic_slice_in_dim(a, place, size, along)
            )
            pieces = [
                cut(a, along if along is not None and a.shape[along] > 1 else None)
                for a, along in operands
            ]
            new = update(tuple(cut(a, axis) for a in trace), *pieces)
            # The write waits for what `zero` is computed from.
            start = place if zero is None else place + zero
            write = lambda a, b: lax.dynamic_update_slice_in_dim(a, b, start, axis)
            return tuple(map(write, trace, new))

        full_pieces, remainder = divmod(places, size)
        starts = jnp.arange(full_pieces, dtype=jnp.int32) * size
        trace = lax.scan(lambda trace, place: (updated(trace, place, size), None), trace, starts)[0]
        return updated(trace, full_pieces * size, remainder) if remainder else trace

    def adds_products(self, steps: int, outputs: int) -> bool:
        return steps == 1 or max(steps, outputs) <= OUTER_PRODUCTS

    def after(self, *arrays: Array) -> Int[Array, ""]:
        return zero_after(*arrays)

    def varying(self, immediate: Array, like: Array) -> Array:
        # If what is added to a trace does not vary, as that of LIF neurons, XLA computes the trace a second time in the
        # loop that reads it, and copies the old one for that. The zero is computed from the credit of each example.
        # Of one example it would be a number, which XLA multiplies with the data first: there each output has its own.
        like = like if like.shape[1] == 1 else like[..., :1]
        zero = jnp.minimum(jnp.isnan(like).astype(jnp.int32), 0)
        return immediate + zero.astype(immediate.dtype)

    def stored(self, a: Array) -> Array:
        # XLA fuses a sine into each loop that reads it, and a loop over a batch of blocks then computes a sine for
        # each entry. It does not fuse a sum over an axis; an `optimization_barrier` is gone by the time it fuses.
        return jnp.stack([a, jnp.zeros_like(a)]).sum(0)

    def _spread(self, trace: Array) -> int:
        """Over how many devices a batch may be spread; its mesh says so where the mesh has explicit axes."""
        sharding = jax.typeof(trace).sharding
        names = sharding.spec[0] if sharding.spec else None
        if names is None:
            return self.devices
        names = names if isinstance(names, tuple) else (names,)
        return math.prod(sharding.mesh.shape[name] for name in names)

    def __str__(self) -> str:
        return f"loops over traces in pieces of {self.piece:,} bytes"


def zero_after(*arrays: Array) -> Int[Array, ""]:
    """Zero, computed from arrays in a way that XLA does not see through."""
    # XLA overwrites an array in place only where every read of it is known to come before, and it knows that from data
    # alone: with `lax.optimization_barrier`, which is gone when it decides, and with none, it copies the trace.
    firsts = [a[(0,) * a.ndim] for a in arrays if a.size and jnp.issubdtype(a.dtype, jnp.inexact)]
    if not firsts:
        return jnp.zeros((), jnp.int32)
    # A sum is computed once. XLA would make anything else part of the loops that read it, once for each entry; also a
    # sum of one term.
    is_nan = jnp.stack([jnp.isnan(first) for first in (*firsts, firsts[0])])
    # XLA does not know that a count is never negative; it would fold `0 * count`.
    return jnp.minimum(is_nan.sum(dtype=jnp.int32), 0)


def _all_after(zero: Int[Array, ""] | None, arrays: list[Array]) -> list[Array]:
    """The same arrays, where the smallest one is known only after `zero` is."""
    sizes = {n: array.size for n, array in enumerate(arrays) if array.size}
    if zero is None or not sizes:
        return arrays
    # The update waits for all that it reads, and an addition to the smallest array costs least.
    smallest = min(sizes, key=lambda n: sizes[n])
    return [a + zero.astype(a.dtype) if n == smallest else a for n, a in enumerate(arrays)]


def _sum_by_halves(a: Inexact[Array, "n ..."]) -> Inexact[Array, "..."]:
    """`a.sum(0)`, where one half of the rows is added to the other while that is possible."""
    # XLA's CPU backend fuses this with what computes the rows, and compiles it once for all arrays of one shape, where
    # it compiles each product with ones. The last rows are a sum for XLA, which it does not compute twice.
    while len(a) > 2 and len(a) % 2 == 0:
        half = len(a) // 2
        a = lax.slice_in_dim(a, 0, half) + lax.slice_in_dim(a, half, 2 * half)
    return a.sum(0) if len(a) <= 3 else _sum_of_rows(a)


def _sum_of_rows(a: Inexact[Array, "n ..."]) -> Inexact[Array, "..."]:
    """`a.sum(0)`, of several rows as a product with ones: a sum over the leading axis takes XLA on CPUs much longer."""
    if len(a) == 1:
        return a[0]
    ones = jnp.ones(len(a), a.dtype)
    total = summed("a,ab->b", ones, a.reshape(len(a), -1))
    return total.reshape(a.shape[1:])


__all__ = ["Pieces", "zero_after"]
