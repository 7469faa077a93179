"""The trace program: what is carried, what each gradient is the sum of, and how the Jacobians of a step are read.

The plan makes a program without optimisations; passes rewrite it; emission reads nothing else. `print(program.ir)`
shows it:

    t0 = Decay(decay=0.9) float32[512 x 2]  feeds (.weight_ih | .weight_hh)  # join_products
    t1 = Full float32[512 x 1]              feeds (.bias)  # drop_unlasting
    grad .weight_ih = direct + through t0 joined with past t0.0
    grad .weight_hh = direct + through t0 joined with past t0.1
    grad .bias = direct + through t1 + past t1
    in windows of one step
      grad .bias = after t1
    read D and F by 1 vector-Jacobian products
    window of 16 steps, credit of each step

A trace is one recursion that is carried, `eps' = D eps + F_1 x_1 + F_2 x_2 + ...`, with a summand for each feed.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import jax.numpy as jnp
import numpy as np

from .._jax import result_type
from ..algorithms import Algorithm
from ..analyse import Analysis, Pattern, WeightOp
from ..forms import Extension, Joined, Site, Trace, bytes_of
from ..ops import Kind
from ._reads import Reads


@runtime_checkable
class Facts(Protocol):
    """What is proved of the whole traces of a program, for all values of its parameters."""

    def block(self, op: WeightOp) -> Pattern:
        """The states in the whole trace of an operation that are read at the start of a window."""
        ...

    def ends(self, op: WeightOp) -> bool:
        """Whether no later step reads what an operation does to the states, but as data that is held constant."""
        ...

    def look(self, op: WeightOp, block: Pattern) -> Any:
        """What was found of an operation whose outputs might have equal traces; `None` if nothing was looked for."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """What enters a trace at each step: the data of one operation, or of several side by side, by one F."""

    ops: tuple[WeightOp, ...]
    """Operations that are added up before anything reads them; F is that of the first."""

    @property
    def kind(self) -> Kind:
        """The operation, with the data of all."""
        kinds = tuple(op.kind for op in self.ops)
        return kinds[0] if len(kinds) == 1 else cast(Kind, Joined(kinds))


@dataclasses.dataclass(frozen=True, eq=False)
class TraceNode:
    """One recursion that is carried."""

    form: Trace
    """What says what is carried of it, how that moves, and what it gives to the gradient."""
    blocks: Pattern
    """Outputs x states: the states that the trace of each output holds."""
    feeds: tuple[Feed, ...]
    """What enters it: one feed, or several of uses of one weight, whose traces are added up."""
    dtype: Any
    """What it is carried in: at least float32, and complex where the operations are. A pass may choose another one; it
    is computed in that of the operations at least."""
    virtual: int = 0
    """How many rows of an extension each output has after those of its block."""

    @property
    def ops(self) -> tuple[WeightOp, ...]:
        """The operations that the trace is for, feed by feed."""
        return tuple(op for feed in self.feeds for op in feed.ops)

    @property
    def op(self) -> WeightOp:
        """The first of them, by whose path the trace is known."""
        return self.feeds[0].ops[0]

    @property
    def left_out(self) -> str:
        """What the trace leaves out, by its form or as it is rounded, in words; empty where it is whole."""
        exact = result_type(self.op.delta.dtype, np.float32)
        is_rounded = jnp.finfo(self.dtype).bits < jnp.finfo(exact).bits
        rounded = f"carried in {jnp.dtype(self.dtype).name}, and so rounded after each window"
        reasons = ((not self.form.exact, self.form.left_out), (is_rounded, rounded))
        return "; ".join(text for applies, text in reasons if applies)

    @cached_property
    def block(self) -> int:
        """m, the most states that one output has."""
        return int(np.diff(self.blocks.indptr).max(initial=0))

    @cached_property
    def site(self) -> Site:
        """What the form knows of the operation, but for the transitions of the step."""
        return Site(self.feeds[0].kind, self.block + self.virtual, self.dtype)

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the arrays that hold the trace of one example."""
        return self.form.shapes(self.site)

    @cached_property
    def bytes(self) -> int:
        """Bytes that are carried for one example."""
        return bytes_of(self.form, self.site)

    def __repr__(self) -> str:
        return f"TraceNode({form_text(self.form)}, {', '.join(op.path for op in self.ops)})"


class Past(NamedTuple):
    """What the trace at the start of a window gives; `slot` is the place of the operation in its feed."""

    trace: TraceNode
    slot: int = 0


class Direct(NamedTuple):
    """`x_t dl_t/d delta`: what the output of a step takes of the operation past the new states of that step."""

    op: WeightOp


class Through(NamedTuple):
    """`x_t (F_t^T c_t)`, with the credit c_t that the form of a trace gives; without a trace it is that of the step."""

    op: WeightOp
    trace: TraceNode | None
    past: Past | None = None
    """The past of the trace, if it is added to the data of the first step, as both have one credit."""


class After(NamedTuple):
    """The trace at the end of a window of one step times the learning signal: the whole gradient of its operations."""

    trace: TraceNode


Term = Direct | Through | Past | After
Grads = Mapping[WeightOp, tuple[Term, ...]]
"""For each operation that reaches a state, the terms that the gradient through it is the sum of."""
CreditFlow = Literal["step", "window"]


def terms_of(op: WeightOp, node: TraceNode | None, credit: CreditFlow) -> tuple[Term, ...]:
    """The terms of an operation with this trace, before passes choose others.

    Where credit passes back through the window, the gradient within it is that of reverse mode. The first feed of a
    trace has the past of all.
    """
    first = () if node is None else node.feeds[0].ops
    past = (Past(node, first.index(op)),) if node is not None and op in first else ()
    return past if credit == "window" else (Direct(op), Through(op, node), *past)


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """How many steps are processed at once, and how credit flows inside of them."""

    steps: int
    credit: CreditFlow
    """Whether credit is that of each step, cut as the traces are, or passes back through the window uncut."""
    behind: int = 0
    """How many steps before the window its credit goes back through."""
    matters: bool = False
    """Whether another number of steps would give another gradient: nothing is cut inside a window, or a form reduces
    its trace after each."""
    free: bool = False
    """Whether the number of steps is open, and no gradient depends on it."""
    divides: bool = False
    """Whether a number of steps near this one is taken that divides the length of a sequence, where one does."""
    step_by_step: bool = False
    """Whether windows have one step whatever is asked for. Credit that leaves a block that is not closed may come back
    to it, while influence that leaves it is lost; so each output would need credit of its own."""
    why: str = ""
    """Why the number of steps was chosen; empty where it is the least."""

    def for_sequence(self, steps: int) -> int:
        """The window for a sequence of so many steps, the last of which may be shorter."""
        window = self.steps
        if self.divides:
            divisors = [w for w in range(window // 2, 2 * window + 1) if steps % w == 0]
            window = min(divisors, key=lambda w: abs(math.log(w / window)), default=window)
        return min(window, steps)


class Change(NamedTuple):
    """What a pass did to one weight operation, or to the whole program."""

    by: str
    """The name of the pass."""
    path: str
    """Of the parameter; empty for the whole program."""
    text: str
    bytes: int = 0
    """By how many bytes the traces of one example are smaller."""


@dataclasses.dataclass(frozen=True, eq=False)
class TraceProgram:
    """What is carried, and what each gradient is the sum of: the artefact between plan and emission."""

    analysis: Analysis
    """The step with its weight operations, as the rule sees it."""
    algorithm: Algorithm
    """The rule."""
    traces: tuple[TraceNode, ...]
    grads: Grads
    """For each operation that reaches a state, in order, the terms of its gradient in windows of any length."""
    step_grads: Grads
    """`grads` in windows of one step."""
    reads: Reads
    """How D and each F are read."""
    window: WindowSpec
    """How many steps are processed at once, and how credit flows inside."""
    credited: frozenset[int]
    """The hidden states at which the credit of a step is taken, by the numbers of their leaves. Credit of the others
    is passed on to the states that they are computed from."""
    proofs: Facts
    """What is proved of the whole traces, found when a pass asks for it."""
    extension: Extension | None = None
    """What the rule has carried besides traces; where no trace has rows of it, nothing is."""
    pieces: bool = False
    """Whether loops over traces are cut into pieces that stay in a cache, on back ends that have one."""
    changes: tuple[Change, ...] = ()
    """What passes changed, in order."""

    @cached_property
    def extends(self) -> Extension | None:
        """The extension, if a trace has rows of it."""
        return self.extension if any(node.virtual for node in self.traces) else None

    def site(self, node: TraceNode, feed: Feed | None = None) -> Site:
        """What the form of a trace knows of the operations of a feed, the first by default."""
        key = node, feed or node.feeds[0]
        if key not in self._sites:
            pairs = self.reads.layout(node.blocks).pairs
            pairs = pairs.with_virtual(node.virtual) if node.virtual else pairs
            self._sites[key] = dataclasses.replace(node.site, kind=key[1].kind, transitions=pairs)
        return self._sites[key]

    @cached_property
    def _sites(self) -> dict[tuple[TraceNode, Feed], Site]:
        return {}

    def closed(self, node: TraceNode) -> bool:
        """Whether each block contains all that it reaches, so that nothing leaves the trace that way."""
        return all(self.analysis.reach[op.number].closed for op in node.ops)

    def has_credited(self, node: TraceNode) -> bool:
        """Whether the trace has all states at which credit is taken, of those that its operations reach."""
        a, sizes = self.analysis, np.diff(self.analysis.hidden.offsets)
        at = np.repeat([n in self.credited for n in range(len(sizes))], sizes)[None]
        return not any((a.reach[op.number].block.multiply(at) > node.blocks).nnz for op in node.ops)

    def of_op(self, op: WeightOp) -> TraceNode | None:
        """The trace of an operation, if it has one."""
        return next((node for node in self.traces if op in node.ops), None)

    # --- what passes do ---

    def regrouped(self, traces: Mapping[TraceNode, tuple[TraceNode, ...]]) -> "TraceProgram":
        """The program with other traces in the place of some, for any of their operations; these have the terms of
        `terms_of`."""
        program = dataclasses.replace(self, traces=self._with(traces))
        ops = [op for node in traces for op in node.ops]
        terms = {op: terms_of(op, program.of_op(op), self.window.credit) for op in ops}
        grads, step_grads = {**self.grads, **terms}, {**self.step_grads, **terms}
        return dataclasses.replace(program, grads=grads, step_grads=step_grads)

    def rewritten(
        self,
        traces: Mapping[TraceNode, tuple[TraceNode, ...]],
        term: Callable[[WeightOp, Term], Term | None],
    ) -> "TraceProgram":
        """The program with other traces in the place of some, and other terms; a term that becomes `None` goes."""
        each = lambda op, terms: tuple(new for t in terms if (new := term(op, t)) is not None)
        grads, step_grads = (
            {op: each(op, terms) for op, terms in of.items()}
            for of in (self.grads, self.step_grads)
        )
        return dataclasses.replace(
            self, traces=self._with(traces), grads=grads, step_grads=step_grads
        )

    def replaced(self, traces: Mapping[TraceNode, TraceNode]) -> "TraceProgram":
        """The program with other traces for the same operations in the place of some."""

        def renamed(_: WeightOp, term: Term) -> Term:
            match term:
                case Through(op, trace, past) if trace is not None and trace in traces:
                    return Through(op, traces[trace], past and past._replace(trace=traces[trace]))
                case Past(trace) | After(trace) if trace in traces:
                    return term._replace(trace=traces[trace])
                case _:
                    return term

        return self.rewritten({old: (new,) for old, new in traces.items()}, renamed)

    def _with(self, traces: Mapping[TraceNode, tuple[TraceNode, ...]]) -> tuple[TraceNode, ...]:
        return tuple(new for node in self.traces for new in traces.get(node, (node,)))

    def noted(self, *changes: Change) -> "TraceProgram":
        """The program with what a pass changed."""
        return dataclasses.replace(self, changes=(*self.changes, *changes))

    # --- what it says ---

    def as_dict(self) -> dict[str, Any]:
        """The program, ready for JSON: traces, the terms of each gradient as texts, and the window."""
        names, name = self.names(), self._place.__getitem__
        traces = [
            {
                "form": form_text(node.form),
                "dtype": np.dtype(node.dtype).name,
                "outputs": node.op.size,
                "block": node.block,
                "feeds": [[names[op] for op in feed.ops] for feed in node.feeds],
                "bytes": node.bytes,
            }
            for node in self.traces
        ]
        of = lambda grads: {names[op]: [words(t, name) for t in ts] for op, ts in grads.items()}
        window = dataclasses.asdict(self.window)
        return dict(
            traces=traces, grads=of(self.grads), step_grads=of(self.step_grads), window=window
        )

    @property
    def _place(self) -> dict[TraceNode, str]:
        return {node: f"t{n}" for n, node in enumerate(self.traces)}

    def __str__(self) -> str:
        return program_text(self)

    __repr__ = __str__

    def names(self) -> dict[WeightOp, str]:
        """Names of all operations: their paths, numbered where several have one."""
        total, seen = Counter(op.path for op in self.analysis.ops), Counter[str]()
        names: dict[WeightOp, str] = {}
        for op in self.analysis.ops:
            seen[op.path] += 1
            several = f" ({seen[op.path]} of {total[op.path]})" if total[op.path] > 1 else ""
            names[op] = op.path + several
        return names


def program_text(program: TraceProgram) -> str:
    """The program as lines: traces with their feeds, gradients as sums of terms, reads and window."""
    names, window, place = program.names(), program.window, program._place
    heads = [
        f"{name} = {form_text(node.form)} {np.dtype(node.dtype).name}[{node.op.size} x {node.block}]"
        for node, name in place.items()
    ]
    width = max(map(len, heads), default=0)
    lines: list[str] = []
    for node, head in zip(program.traces, heads, strict=True):
        feeds = " + ".join(f"({' | '.join(names[op] for op in feed.ops)})" for feed in node.feeds)
        paths = {op.path for op in node.ops}
        by = dict.fromkeys(c.by for c in program.changes if c.path in paths)
        lines.append(f"{head:<{width}}  feeds {feeds}" + (f"  # {', '.join(by)}" if by else ""))
    lines += [f"grad {names[op]} = {_sum(terms, place)}" for op, terms in program.grads.items()]
    alone = [op for op, terms in program.step_grads.items() if terms != program.grads[op]]
    lines += ["in windows of one step"] if alone else []
    lines += [f"  grad {names[op]} = {_sum(program.step_grads[op], place)}" for op in alone]
    behind = f" with {window.behind} behind it" if window.behind else ""
    credit = {"step": "of each step", "window": "through the window, uncut"}[window.credit]
    count = f"{window.steps} step{'s' if window.steps > 1 else ''}"
    lines += [f"read D and F by {program.reads}", f"window of {count}{behind}, credit {credit}"]
    lines += [] if program.extends is None else [f"extension {form_text(program.extends)}"]
    return "\n".join(lines)


def form_text(form: Any) -> str:
    """A form, with the settings that differ from their defaults."""
    fields = dataclasses.fields(form) if dataclasses.is_dataclass(form) else ()
    shown = [
        f"{f.name}={value!r}"
        for f in fields
        if (value := getattr(form, f.name)) != f.default and f.repr
    ]
    text = f"{type(form).__name__}({', '.join(shown)})" if shown else type(form).__name__
    return text if len(text) <= 40 else f"{type(form).__name__}(...)"


def _sum(terms: Iterable[Term], place: Mapping[TraceNode, str]) -> str:
    return " + ".join(words(term, place.__getitem__) for term in terms) or "in that of another use"


def words(term: Term, name: Callable[[TraceNode], str] = str) -> str:
    """A term in words."""
    match term:
        case Direct():
            return "direct"
        case Through(_, trace, past):
            through = "the step" if trace is None else name(trace)
            return f"through {through}" + (f" joined with {words(past, name)}" if past else "")
        case Past(trace, slot):
            return f"past {name(trace)}" + (f".{slot}" if len(trace.feeds[0].ops) > 1 else "")
        case After(trace):
            return f"after {name(trace)}"
