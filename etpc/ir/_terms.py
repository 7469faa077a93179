"""The terms that a gradient is the sum of: products of data and credit."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from ..analyse import WeightOp
from ._nodes import TraceNode

CreditFlow = Literal["step", "window"]
P = TypeVar("P", bound="_Part")


class _Part:
    def renamed(self: P, traces: Mapping[TraceNode, TraceNode]) -> P:
        """The same of other traces, in the place of some."""

        def of(value: Any) -> Any:
            if isinstance(value, _Part):
                return value.renamed(traces)
            return traces.get(value, value) if isinstance(value, TraceNode) else value

        return type(self)(*(of(getattr(self, f.name)) for f in dataclasses.fields(self)))  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class Carried(_Part):
    """Data: what a trace holds at the start of a window; `slot` is the place of the operation in its feed."""

    trace: TraceNode
    slot: int = 0


@dataclasses.dataclass(frozen=True)
class Steps(_Part):
    """Data: `x_t`, that of an operation at each step of a window."""

    op: WeightOp
    past: Carried | None = None
    """What a trace holds at the start, if it is added to the data of the first step, as both have one credit."""


@dataclasses.dataclass(frozen=True)
class AtEnd(_Part):
    """Data: what a trace holds at the end of a window of one step."""

    trace: TraceNode


@dataclasses.dataclass(frozen=True)
class Direct(_Part):
    """Credit: `dl_t/d delta`, of the output of an operation past the new states of its step."""

    op: WeightOp


@dataclasses.dataclass(frozen=True)
class Through(_Part):
    """Credit: `F_t^T c_t`, of the output of an operation by way of the new states, with the credit c_t that the form of
    a trace gives; without a trace it is that of the step."""

    op: WeightOp
    trace: TraceNode | None


@dataclasses.dataclass(frozen=True)
class AtStart(_Part):
    """Credit: that of what a trace holds at the start of a window."""

    trace: TraceNode


@dataclasses.dataclass(frozen=True)
class Signal(_Part):
    """Credit: the learning signal of the states that a trace holds."""

    trace: TraceNode


Data = Steps | Carried | AtEnd
Credit = Direct | Through | AtStart | Signal


@dataclasses.dataclass(frozen=True)
class Product(_Part):
    """A term of a gradient, which is the sum of its terms: data times credit, summed over steps and examples. Emission
    adds up the credits of equal data, and multiplies once."""

    data: Data
    credit: Credit


Grads = Mapping[WeightOp, tuple[Product, ...]]
"""For each operation that reaches a state, the terms that the gradient through it is the sum of."""


def past_of(node: TraceNode, slot: int = 0) -> Product:
    """What a trace holds at the start of a window times the credit of that."""
    return Product(Carried(node, slot), AtStart(node))


def end_of(node: TraceNode) -> Product:
    """The whole gradient of the operations of a trace, read at the end of a window of one step."""
    return Product(AtEnd(node), Signal(node))


def terms_of(op: WeightOp, node: TraceNode | None, credit: CreditFlow) -> tuple[Product, ...]:
    """The terms of an operation with this trace, before passes choose others.

    Where credit passes back through the window, the gradient within it is that of reverse mode. The first feed of a
    trace has the past of all feeds.
    """
    first = () if node is None else node.feeds[0].ops
    past = (past_of(node, first.index(op)),) if node is not None and op in first else ()
    x = Steps(op)
    return (
        past
        if credit == "window"
        else (Product(x, Direct(op)), Product(x, Through(op, node)), *past)
    )


def words(part: Any, name: Any = repr) -> str:
    """A term, its data or its credit in words; `name` gives the name of a trace."""
    match part:
        case Product(data, credit):
            return f"{words(data, name)} * {words(credit, name)}"
        case Steps(_, past):
            return "x" if past is None else f"(x + {words(past, name)})"
        case Carried(trace, slot):
            place = f".{slot}" if len(trace.feeds[0].ops) > 1 else ""
            return f"past {name(trace)}{place}"
        case AtEnd(trace):
            return f"end {name(trace)}"
        case Direct():
            return "direct"
        case Through(_, trace):
            return f"through {'the step' if trace is None else name(trace)}"
        case AtStart():
            return "its credit"
        case _:
            return "signal"


def sum_in_words(terms: tuple[Product, ...], name: Any = repr) -> str:
    """A gradient in words: credits of equal data are added up first."""
    credits: dict[Data, list[str]] = {}
    for term in terms:
        credits.setdefault(term.data, []).append(words(term.credit, name))
    summed = lambda of: of[0] if len(of) == 1 else f"({' + '.join(of)})"
    products = [f"{words(data, name)} * {summed(of)}" for data, of in credits.items()]
    return " + ".join(products) or "0"
