"""The gradient by the effective weights: terms of the trace program, one by one, and sums over windows."""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._jax import by_parts, is_complex, promoting, result_type
from ..analyse import WeightOp
from ..errors import AlgorithmError
from ..forms import AddsToFirst, Carry, Joined, Rows, Signals, Site, Traces
from ..ir import (
    AtEnd,
    Carried,
    Credit,
    Data,
    Direct,
    Grads,
    Product,
    Steps,
    Through,
    TraceNode,
    TraceProgram,
)
from ._arrays import joined, sum_dtype
from ._move import computed
from ._records import Arrays
from ._returned import checked_gradient, wrong_return


@promoting
def no_gradient(weights: Arrays) -> list[Array]:
    """The gradient of no windows by the effective weights."""
    return [jnp.zeros_like(w, sum_dtype(w)) for w in weights]


@promoting
def sum_of_gradients(grads: Arrays, more: Arrays) -> list[Array]:
    """The sum of the gradients of two windows or more."""
    return [_sum(a, b) for a, b in zip(grads, more, strict=True)]


class Credits(abc.ABC):
    """The credit of a window, as the terms of a trace program ask for it."""

    def __init__(self, program: TraceProgram, traces: Traces):
        self.program, self.traces = program, traces
        pairs = zip(program.traces, traces.carries, strict=True)
        self.carries = {node: computed(program, node, carry)[1] for node, carry in pairs}
        self.starts: dict[TraceNode, Array] = {}
        """The credit of traces at the start of the window, as their forms take it."""
        self.moved: dict[TraceNode, Carry] = {}
        """The traces that were read at the end of the window, there."""
        self._pasts: dict[TraceNode, Sequence[list[Rows] | Array]] = {}

    @abc.abstractmethod
    def start(self, node: TraceNode) -> Array:
        """The credit of a trace at the start of the window; also in `starts` from then on."""

    def data(self, op: WeightOp) -> Array | None:
        """The data of an operation at each step, [W, B, G, I]."""
        raise NotImplementedError

    def direct(self, op: WeightOp) -> Array:
        """The credit of an operation past the new states of each step, [W, B, ...]."""
        raise NotImplementedError

    def through(self, op: WeightOp, node: TraceNode | None) -> Array:
        """The credit of an operation by way of the new states, [W, B, G * O]."""
        raise NotImplementedError

    def at_end(self, node: TraceNode) -> Array:
        """The gradient that is read from a trace at the end of a window of one step."""
        raise NotImplementedError

    def first(self, past: Carried) -> Array:
        """What the past adds to the data of the first step, [B, G, I]."""
        node = past.trace
        assert isinstance(node.form, AddsToFirst)
        added = node.form.first_data(self.program.site(node), self.carries[node])
        return by_op(node, added)[past.slot]

    def past(self, past: Carried) -> list[Rows] | Array:
        """What a trace gives for one of its operations: pairs of data and credit, or the gradient of the weight."""
        node = past.trace
        if node not in self._pasts:
            site = self.program.site(node)
            found = node.form.past(site, self.start(node), self.carries[node])
            self._pasts[node] = _checked_past(node, site, found)
        return self._pasts[node][past.slot]

    def read(self, node: TraceNode, site: Site, signals: Signals, path: Any, shape: Any) -> Any:
        """What a trace is read by: the credit of the output, of that shape, and of the carry at the start."""
        found: Any = node.form.read(site, signals, path, self.carries[node])
        is_pair = isinstance(found, tuple) and len(found) == 2
        if not is_pair or getattr(found[0], "shape", found[0]) != shape:
            first = "`None`" if shape is None else f"the credit of the output, {list(shape)}"
            raise wrong_return(node, "read", found, f"{first}, and that of the carry at the start")
        return found

    def added_to(self, grads: Arrays, terms: Grads) -> list[Array]:
        """Gradients by the effective weights, at least float32, with the terms of each operation."""
        grads, weights = list(grads), self.program.analysis.split.weights
        data = [term.data for of_op in terms.values() for term in of_op]
        at_end = {of.trace for of in data if isinstance(of, AtEnd)}
        ends = {node: self.at_end(node) for node in self.program.traces if node in at_end}
        for op, of_op in terms.items():
            place = weights.index(op.weight)
            summed = jax.named_scope(f"grad {op.path}")(self._of_op)
            for new in summed(op, of_op, ends):
                # JAX's gradient of a real weight that meets complex data is the real part.
                new = new if is_complex(grads[place]) else new.real
                grads[place] = _sum(grads[place], new.astype(grads[place].dtype))
        return grads

    def _of_op(
        self, op: WeightOp, terms: Sequence[Product], ends: Mapping[TraceNode, Array]
    ) -> list[Array]:
        """What the terms of one operation give: gradients of its weight."""
        rows: list[tuple[Array | None, Array] | Rows] = []
        of_trace: list[Array] = []
        credits: dict[Data, list[Credit]] = {}
        for term in terms:
            credits.setdefault(term.data, []).append(term.credit)
        for data, of_data in credits.items():
            match data:
                case Steps(_, past):
                    x, first, *more = self.data(op), *map(self._of_steps, of_data)
                    if past is not None and x is not None:
                        x = jnp.concatenate([x[:1] + self.first(past)[None], x[1:]])
                    rows.append((x, sum((c.reshape(first.shape) for c in more), first)))
                case Carried():
                    given = self.past(data)
                    if isinstance(given, list):
                        rows += given
                    else:
                        of_trace.append(given)
                case AtEnd(trace):
                    of_trace.append(ends[trace])
        return [*of_trace, *([_product(op, rows)] if rows else [])]

    def _of_steps(self, credit: Credit) -> Array:
        """The credit of an operation at each step of a window."""
        match credit:
            case Through(op, trace):
                return self.through(op, trace)
            case _:
                assert isinstance(credit, Direct)
                return self.direct(credit.op)


def by_op(node: TraceNode, x: Array) -> list[Array]:
    """The data of each operation of a trace's first feed, from the data of all operations, [..., I]."""
    kind = node.feeds[0].kind
    return kind.split(x) if isinstance(kind, Joined) else [x]


@dataclasses.dataclass(frozen=True, eq=False)
class StartSignals:
    """Credit that passed back through a window uncut, as one trace sees it: an `etpc.forms.Signals`."""

    node: TraceNode
    at_start: Array

    def through(self) -> tuple[None, Array]:
        return None, self.at_start

    def new(self) -> Array:
        raise AlgorithmError(
            f"{type(self.node.form).__name__}.read asks for the learning signals of steps, for the trace of "
            f'{self.node.op.path}. There are none with backprop="full", where nothing is cut inside a window. Where '
            "`signals.at_start` is not `None`, return `None`, and the credit of the carry from `signals.at_start`."
        )

    old = new


def _checked_past(node: TraceNode, site: Site, found: Any) -> Sequence[list[Rows] | Array]:
    """What the past of a trace gives for each operation of its first feed."""
    ops, kind = node.feeds[0].ops, site.kind
    sizes = kind.groups * kind.inputs, site.count
    wanted = f"a list of pairs of data, [n, B, {kind.groups}, {kind.inputs}], and credit, [n, B, {sizes[1]}]"
    if not isinstance(found, list) and len(ops) == 1:
        return [checked_gradient(node, "past", found, f"{wanted}, or ")]
    is_right = isinstance(found, list) and all(
        [(*a.shape[:2], math.prod(a.shape[2:])) for a in pair]
        == [(*pair[0].shape[:2], size) for size in sizes]
        for pair in found
    )
    if not is_right:
        raise wrong_return(node, "past", found, wanted)
    parts = [(by_op(node, x), credit) for x, credit in found]
    return [[(xs[n], credit) for xs, credit in parts] for n in range(len(ops))]


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
    """`a + b`, of complex numbers part by part."""
    if not is_complex(a):
        return a + b
    # Where one part is read alone, XLA computes no other: two products of matrices, and not the four of `a + b`.
    return lax.complex(a.real + b.real, a.imag + b.imag)
