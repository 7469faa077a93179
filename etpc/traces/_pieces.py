"""Passes over a large trace, piece by piece, so that nothing of its size is made beside it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Inexact, Int

from ..ops._kind import summed
from ._transitions import times

Given = tuple[Array, int | None]
"""An array [B, ...], and its axis that is cut where the trace's is; `None` where none is."""

PIECE = 3 << 20
"""Bytes of a piece, about: what stays in a cache. Up to three times as much is not cut again."""

UNROLLED = 64
"""Sums over up to this many examples are written out."""


def over_examples(
    trace: Inexact[Array, "B ..."], axis: int | None, signal: Inexact[Array, "B ..."]
) -> Inexact[Array, "..."]:
    """`(signal * trace).sum(0)`. `axis` is the trace's axis that may be cut, if there is one."""
    return _pass(trace, axis, signal, None, ())[1]


def overwrite(
    trace: Inexact[Array, "B ..."],
    axis: int | None,
    update: Callable[..., Array],
    given: Sequence[Given],
) -> Array:
    """`update(trace, *given)`, a piece of each at a time."""
    return _pass(trace, axis, None, update, given)[0]


def read_and_overwrite(
    trace: Inexact[Array, "B ..."],
    axis: int | None,
    signal: Inexact[Array, "B ..."],
    update: Callable[..., Array],
    given: Sequence[Given],
) -> tuple[Array, Array]:
    """`overwrite` and `over_examples` in one pass over the trace."""
    return _pass(trace, axis, signal, update, given)


def zero_after(array: Array) -> Int[Array, " n"]:
    """Zeros along the first axis, computed from an array in a way that XLA does not see through.

    XLA overwrites an array in place only where all that reads it is known to come before, and it
    knows that from data alone: `lax.optimization_barrier` is gone when it decides.
    """
    if array.size == 0:
        return jnp.zeros(array.shape[0], jnp.int32)
    first = array[(slice(None), *[0] * (array.ndim - 1))]
    return jnp.minimum(jnp.isnan(first).astype(jnp.int32), 0)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How a trace is cut: into examples, and where one of them is large, along an axis of it too.

    A batch may be spread over devices, each of which has a run of it. A piece has as many examples
    of each run, so that no device needs what another one has. With one run there is no axis for
    it: a trace of another shape may get another layout in the loop, and be copied for it.
    """

    runs: int
    count: int
    """Examples of each run."""
    examples: int
    """Those of a piece."""
    size: int
    """Places of the axis in a piece."""

    @classmethod
    def of(cls, trace: Array, axis: int | None) -> "_Cut":
        batch = trace.shape[0]
        places = 1 if axis is None else trace.shape[axis]
        runs = math.gcd(batch, _devices(trace))
        count = batch // runs
        if trace.nbytes <= PIECE:
            return cls(runs, count, count, places)
        one = trace.nbytes / batch
        examples = _examples(count, PIECE / one)
        parts = math.ceil(examples * one / (3 * PIECE))  # of what one device has of a piece
        return cls(runs, count, examples, math.ceil(places / min(places, parts)))

    def apart(self, array: Array) -> Array:
        """With an axis of runs, if there are several."""
        if self.runs == 1:
            return array
        return array.reshape(self.runs, array.shape[0] // self.runs, *array.shape[1:])

    def together(self, array: Array) -> Array:
        """Without an axis of runs."""
        return array if self.runs == 1 else array.reshape(-1, *array.shape[2:])

    def start(self, array: Array, axis: int | None, first, place) -> list:
        """Where a piece of an array begins."""
        extra = self.runs > 1
        at = [0] * array.ndim
        at[extra] = first
        if axis is not None and array.shape[axis + extra] > 1:
            at[axis + extra] = place
        return at

    def piece(
        self, array: Array, axis: int | None, first, examples: int, place, size: int
    ) -> Array:
        """Without an axis of runs."""
        extra = self.runs > 1
        shape = list(array.shape)
        shape[extra] = examples
        if axis is not None and array.shape[axis + extra] > 1:
            shape[axis + extra] = size
        return self.together(lax.dynamic_slice(array, self.start(array, axis, first, place), shape))

    def by_run(self, piece: Array) -> Array:
        """With axes of runs and of their examples."""
        return piece.reshape(self.runs, piece.shape[0] // self.runs, *piece.shape[1:])

    def all_after(self, zeros: Int[Array, " runs"], pieces: list[Array]) -> list[Array]:
        """Pieces, the smallest of which is known only when the zeros of each run are."""
        sizes = {n: piece.size for n, piece in enumerate(pieces) if piece.size}
        if not sizes:
            return pieces
        smallest = min(sizes, key=lambda n: sizes[n])
        piece = self.by_run(pieces[smallest])
        piece = piece + zeros.astype(piece.dtype).reshape(-1, *[1] * (piece.ndim - 1))
        return [*pieces[:smallest], piece.reshape(pieces[smallest].shape), *pieces[smallest + 1 :]]


def _pass(trace: Array, axis: int | None, signal: Any, update: Any, given: Any) -> tuple[Any, Any]:
    """The new trace, and the sum over examples of a signal with the old one."""
    cut = _Cut.of(trace, axis)
    places = 1 if axis is None else trace.shape[axis]
    if (cut.examples, cut.size) == (cut.count, places):
        read, arrays = None, [a for a, _ in given]
        if signal is not None:
            sums = _sums(cut.by_run(signal), cut.by_run(trace))
            read, arrays = _over_runs(sums), cut.all_after(zero_after(sums), arrays)
        return None if update is None else update(trace, *arrays), read
    arrays = [(cut.apart(a), of) for a, of in given]
    trace = cut.apart(trace)
    signal = None if signal is None else cut.apart(signal)

    def one(now, first, examples, place, size):
        (trace, read), zeros = now, None
        if signal is not None:
            both = (cut.piece(a, axis, first, examples, place, size) for a in (signal, trace))
            read, zeros = _added(read, *map(cut.by_run, both))
        if update is not None:
            here = cut.piece(trace, axis, first, examples, place, size)
            pieces = [cut.piece(a, of, first, examples, place, size) for a, of in arrays]
            if zeros is not None:
                pieces = cut.all_after(zeros, pieces)
            new = cut.apart(update(here, *pieces))
            trace = lax.dynamic_update_slice(trace, new, cut.start(trace, axis, first, place))
        return trace, read

    def part(trace, place, size):
        """All examples, for some places of the axis."""
        read: Any = None
        if signal is not None:
            first = (cut.piece(a, axis, 0, 1, 0, size) for a in (signal, trace))
            read = jnp.zeros_like(_sums(*map(cut.by_run, first)))
        rounds, rest = divmod(cut.count, cut.examples)
        starts = jnp.arange(rounds) * cut.examples
        now = lax.scan(
            lambda now, first: (one(now, first, cut.examples, place, size), None),
            (trace, read),
            starts,
        )[0]
        return one(now, cut.count - rest, rest, place, size) if rest else now

    whole = places // cut.size
    if whole == 1:
        trace, read = part(trace, 0, cut.size)
    else:
        trace, read = lax.scan(
            lambda trace, n: part(trace, n * cut.size, cut.size), trace, jnp.arange(whole)
        )
        if read is not None:
            assert axis is not None
            read = _joined(read, axis)
    if whole * cut.size < places:
        trace, last = part(trace, whole * cut.size, places - whole * cut.size)
        if read is not None:
            read = jnp.concatenate([read, last], axis)
    return cut.together(trace), None if read is None else _over_runs(read)


def _devices(trace: Array) -> int:
    """Over how many devices a batch may be spread: as its mesh says, where the axes of that are explicit."""
    sharding = jax.typeof(trace).sharding
    names = sharding.spec[0] if sharding.spec else None
    if names is None:
        return jax.device_count()
    names = names if isinstance(names, tuple) else (names,)
    return math.prod(sharding.mesh.shape[name] for name in names)


def _examples(count: int, wanted: float) -> int:
    """How many of some examples make a piece: about so many, and several if there are.

    A number that leaves no rest, if one is near.
    """
    wanted = max(wanted, 2)
    near = [n for n in range(2, count + 1) if count % n == 0 and wanted / 2 <= n <= 2 * wanted]
    return min(near, key=lambda n: abs(math.log(n / wanted)), default=min(count, round(wanted)))


def _sums(signal: Inexact[Array, "n q ..."], trace: Inexact[Array, "n q ..."]) -> Array:
    """Products, summed over examples.

    Written out, or a product with ones: XLA's CPU backend reduces such an axis column by column,
    which was twenty times slower, and copies the trace for an einsum.
    """
    count = trace.shape[1]
    if count > UNROLLED:
        return _ones("a,nab->nb", times(signal, trace), 1)
    terms = [times(signal[:, n], trace[:, n]) for n in range(count)]
    return sum(terms[1:], terms[0])


def _added(
    sums: Inexact[Array, "n ..."],
    signal: Inexact[Array, "n q ..."],
    trace: Inexact[Array, "n q ..."],
) -> tuple[Array, Int[Array, " n"]]:
    """Sums over examples with more of them; and zeros, when that is known.

    A product with ones, because XLA computes what is element-wise again for who reads a part of it,
    and that would be known before.
    """
    products = times(signal, trace)
    if products.shape[1] == 1:
        sums = _ones("a,nab->nb", jnp.concatenate([products, sums[:, None]], 1), 1)
        return sums, zero_after(sums)
    more = _ones("a,nab->nb", products, 1)
    return sums + more, zero_after(more)


def _over_runs(totals: Inexact[Array, "n ..."]) -> Array:
    if totals.shape[0] == 1:
        return totals[0]
    return _ones("a,ab->b", totals, 0)


def _ones(subscripts: str, array: Array, axis: int) -> Array:
    """The sum over an axis as a product."""
    flat = array.reshape(*array.shape[: axis + 1], -1)
    ones = jnp.ones(array.shape[axis], array.dtype)
    out = summed(subscripts, ones, flat, precision=lax.Precision.HIGHEST)
    return out.reshape(*array.shape[:axis], *array.shape[axis + 1 :])


def _joined(pieces: Inexact[Array, "k n ..."], axis: int) -> Array:
    """Pieces side by side along an axis of what each is."""
    whole = jnp.moveaxis(pieces, 0, axis)
    return whole.reshape(*whole.shape[:axis], -1, *whole.shape[axis + 2 :])


__all__ = ["over_examples", "overwrite", "read_and_overwrite", "zero_after"]
