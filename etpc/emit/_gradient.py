"""The gradient by the effective weights, from the credit of operations and traces, and its sums over windows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._jax import by_parts, is_complex, promoting, result_type
from ..analyse import WeightOp
from ..plan import Plan, TracePlan
from ..traces import Joined, Rows
from ._arrays import joined, replaced, zero_sums
from ._records import Arrays, Bars
from ._returned import wrong_return

FOLD_BELOW_BYTES = 1 << 18
"""What a trace gives entry by entry is summed over windows in its own order of axes, and brought into that of the
weight once. Where it has no more bytes than this it is folded into the gradient of the weight window by window:
a sum of its own would have XLA compile more kernels, for no gain in time."""
LONG_WINDOW_STEPS = 8
"""Windows shorter than this are so many that folding costs time whatever the size."""


class Sums(NamedTuple):
    """A gradient, summed over windows."""

    weights: list[Array]
    """By the effective weights, at least float32."""
    entries: list[Array | None]
    """What each carried trace gives besides, entry by entry; `None` where that is folded into `weights`."""


class Gradients:
    """Puts the gradient by the effective weights together."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def of_window(self, bars: Bars, entries: Sequence[Array | None]) -> list[Array]:
        """The gradient of a window; `entries` are what traces give entry by entry, one for each of `bars.ops`."""
        grads = bars.weights
        for credit, of_trace in zip(bars.ops, entries, strict=True):
            if credit.past is not None and of_trace is not None:
                grads = self._with_entries(grads, credit.past.trace, of_trace)
            if credit.terms:
                grads = self._with(grads, credit.op, _product(credit.op, credit.terms))
        return grads

    @promoting
    def no_sums(self, weights: Arrays, steps: int) -> Sums:
        """Sums of windows of so many steps, before any is added."""
        entries: list[Array | None] = []
        for trace in self.plan.carried:
            folded = FOLD_BELOW_BYTES if steps >= LONG_WINDOW_STEPS else -1
            like = None if trace.bytes <= folded else _shape_of_entries(trace)
            if like is not None and like.size * like.dtype.itemsize <= folded:
                like = None
            entries.append(None if like is None else jnp.zeros(like.shape, like.dtype))
        return Sums(zero_sums(weights), entries)

    @promoting
    def added(self, sums: Sums, more: Sums) -> Sums:
        """The sums with those of one more window."""
        pairs = list(zip(sums.entries, more.entries, strict=True))
        folded = [new if old is None else None for old, new in pairs]
        apart = [None if old is None or new is None else old + new for old, new in pairs]
        grads = self.total(Sums(more.weights, folded))
        return Sums([_sum(a, b) for a, b in zip(sums.weights, grads, strict=True)], apart)

    @promoting
    def total(self, sums: Sums) -> list[Array]:
        """The whole gradient, at least in float32."""
        grads = sums.weights
        for trace, entries in zip(self.plan.carried, sums.entries, strict=True):
            if entries is not None:
                grads = self._with_entries(grads, trace, entries)
        return self.whole(grads)

    def whole(self, grads: Arrays) -> list[Array]:
        """The gradient, where each weight whose trace is equal to that of another one has the gradient of that."""
        weights, equal = self.plan.analysis.split.weights, self.plan.equal
        pairs = {
            weights.index(op.weight): weights.index(other.weight) for op, other in equal.items()
        }
        return replaced(grads, list(pairs), [grads[place] for place in pairs.values()])

    def _with_entries(self, grads: Arrays, trace: TracePlan, entries: Array) -> list[Array]:
        return self._with(grads, trace.op, trace.form.gathered(trace.site, entries))

    def _with(self, grads: Arrays, op: WeightOp, added: Array) -> list[Array]:
        """Gradients by the effective weights, with what one operation adds to that of its weight."""
        place = self.plan.analysis.split.weights.index(op.weight)
        old = grads[place]
        added = added if is_complex(old) else added.real
        return replaced(grads, [place], [_sum(old, added.astype(old.dtype))])


def data_by_op(trace: TracePlan, x: Array) -> list[Array]:
    """The data of each operation whose data a trace holds, that of the trace first, from the data of all."""
    kind = trace.site.kind
    return kind.split(x) if isinstance(kind, Joined) else [x]


def rows_by_op(trace: TracePlan, rows: list[Rows]) -> list[list[Rows]]:
    """The rows of a trace for each operation whose data it holds, that of the trace first."""
    kind = trace.site.kind
    sizes = kind.groups * kind.inputs, trace.site.count
    is_right = isinstance(rows, list) and all(
        [(*a.shape[:2], math.prod(a.shape[2:])) for a in pair]
        == [(*pair[0].shape[:2], size) for size in sizes]
        for pair in rows
    )
    if not is_right:
        wanted = f"a list of pairs of data, [n, B, {kind.groups}, {kind.inputs}], and credit, [n, B, {sizes[1]}]"
        raise wrong_return(trace, "rows", rows, wanted)
    count = len(kind.parts) if isinstance(kind, Joined) else 1
    parts = [(data_by_op(trace, x), credit) for x, credit in rows]
    return [[(xs[n], credit) for xs, credit in parts] for n in range(count)]


def _product(op: WeightOp, terms: Sequence[tuple[Array | None, Array] | Rows]) -> Array:
    """The gradient of a weight from data and credit, [n, B, ...] each, as one product."""
    kind = op.kind
    credit = joined([c.reshape(*c.shape[:2], kind.groups, kind.outputs) for _, c in terms])
    data = [x.reshape(*x.shape[:2], kind.groups, kind.inputs) for x, _ in terms if x is not None]
    if not data:
        return kind.contract(None, credit)
    x = joined(data)
    return by_parts(lambda x, c: kind.contract(x, c.astype(result_type(x, c))), x, credit)


def _sum(a: Array, b: Array) -> Array:
    """`a + b`, of complex numbers part by part: where one part is read alone, XLA computes no other."""
    if not is_complex(a):
        return a + b
    return lax.complex(a.real + b.real, a.imag + b.imag)


def _shape_of_entries(trace: TracePlan) -> jax.ShapeDtypeStruct | None:
    """The shape of what a trace gives entry by entry; `None` if it gives nothing so."""

    def entries() -> Array | None:
        credit = jnp.zeros((1, trace.site.block, trace.site.count), trace.dtype)
        carry = trace.form.init(trace.site, 1)
        return trace.form.entries(trace.site, trace.form.start(trace.site, credit, carry), carry)

    return jax.eval_shape(entries)
