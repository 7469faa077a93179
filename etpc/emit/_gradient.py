"""The gradient by the effective weights, from the credit of operations and traces, and its sums over windows."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from .._jax import by_parts, is_complex, promoting, result_type
from ..analyse import WeightOp
from ..plan import Plan, TracePlan
from ..traces import Joined, Rows
from ._arrays import joined, replaced, sum_dtype
from ._records import Arrays, Bars
from ._returned import wrong_return


class Gradients:
    """Puts the gradient by the effective weights together."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def of_window(self, bars: Bars) -> list[Array]:
        """The gradient of a window by the effective weights, at least float32."""
        grads = bars.weights
        for credit in bars.ops:
            past = credit.past
            entries = None if past is None else past.entries()
            if past is not None and entries is not None:
                gathered = past.trace.form.gathered(past.trace.site, entries)
                grads = self._with(grads, past.trace.op, gathered)
            if credit.terms:
                grads = self._with(grads, credit.op, _product(credit.op, credit.terms))
        return grads

    @promoting
    def zeros(self, weights: Arrays) -> list[Array]:
        """The sum of no windows."""
        return [jnp.zeros_like(w, sum_dtype(w)) for w in weights]

    @promoting
    def added(self, sums: Arrays, more: Arrays) -> list[Array]:
        """The sum of the windows so far, with one more."""
        return [_sum(a, b) for a, b in zip(sums, more, strict=True)]

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
