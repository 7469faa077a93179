"""The trace program: what is carried, what each gradient is the sum of, and how the Jacobians of a step are read.

The plan makes a program without optimisations; passes rewrite it; emission reads nothing else. `print(program.ir)`
shows it:

    for cpu, 3,145,728 bytes of cache, products at precision highest
    t0 = Decay(decay=0.9) float32[512 x 2]  feeds (.weight_ih | .weight_hh)  # join_products, join_past
    t1 = Full float32[512 x 1] of [1]       feeds (.bias)  # drop_unlasting
    grad .weight_ih = (x + past t0.0) * through t0
    grad .weight_hh = (x + past t0.1) * through t0
    grad .bias = x * (direct + through t1) + past t1 * its credit
    in windows of one step
      grad .bias = end t1 * signal
    zero: x * direct of .weight_ih, as no path leads to the output past the new states
    credit at all hidden states, D and F by 1 vector-Jacobian products
    window of 16 steps (open), credit of each step
    loops over traces in pieces of 3,145,728 bytes

A trace is one recursion that is carried, `eps' = D eps + F_1 x_1 + F_2 x_2 + ...`, with a summand for each feed.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from ..algorithms import Algorithm
from ..analyse import Analysis, WeightOp
from ..forms import Extension, Site
from ..schedule import Schedule, Target
from ._compression import Compression
from ._nodes import Feed, TraceNode, form_text
from ._paths import OutputPaths
from ._terms import CreditFlow, Grads, Product, end_of, sum_in_words, terms_of, words

Length = Literal["open", "near", "asked", "meant", "step"]
"""Why a window has as many steps as it has:

- `"open"`: the rule leaves it open, and no gradient depends on it, so that a pass may choose it;
- `"near"`: the rule leaves it open, and a form reduces its trace after each window, so that the gradient depends on it;
- `"asked"`: the rule says it, and no gradient depends on it;
- `"meant"`: the gradient depends on it, as nothing is cut inside a window, or a form reduces its trace after each;
- `"step"`: one step, whatever is asked for. Credit that leaves a block that is not closed may come back to it, while
    influence that leaves it is lost; so each output would need credit of its own.
"""


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """How many steps are processed at once, and how credit flows inside of them."""

    steps: int
    credit: CreditFlow
    """Whether credit is that of each step, cut as the traces are, or passes back through the window uncut."""
    behind: int = 0
    """How many steps before the window its credit goes back through."""
    length: Length = "asked"
    """Why it has so many steps."""
    why: str = ""
    """Why a pass chose that number; empty where none did."""

    @property
    def divides(self) -> bool:
        """Whether a number of steps near this one is taken that divides the length of a sequence, where one does."""
        return self.length in ("open", "near")

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
    of_form: bool = False
    """Whether it gave the trace a smaller form, and the text says why that holds all of it."""


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
    compression: Compression
    """How D and each F are read."""
    window: WindowSpec
    """How many steps are processed at once, and how credit flows inside."""
    paths: OutputPaths
    """The hidden states at which the credit of a step is taken, `paths.credited`, and what reaches the output past
    them. Credit of the other states is passed on to the states that they are computed from."""
    target: Target
    """What it is compiled for."""
    schedule: Schedule
    """How passes over a large trace are laid out."""
    extension: Extension | None = None
    """What the rule has carried besides traces; where no trace has rows of it, nothing is."""
    zeros: Mapping[WeightOp, Mapping[Product, str]] = dataclasses.field(default_factory=dict)
    """The terms that a pass has proved to be zero and left out, and why they are."""
    changes: tuple[Change, ...] = ()
    """What passes changed, in order."""
    no_smaller: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Why a pass found no smaller form that holds the whole trace of a parameter, by its path."""

    @cached_property
    def extends(self) -> Extension | None:
        """The extension, if a trace has rows of it."""
        return self.extension if any(node.virtual for node in self.traces) else None

    def site(self, node: TraceNode, feed: Feed | None = None) -> Site:
        """What the form of a trace knows of the operations of a feed, the first by default."""
        key = node, feed or node.feeds[0]
        if key not in self._sites:
            pairs = self.compression.layout(node.blocks).pairs
            pairs = pairs.with_virtual(node.virtual) if node.virtual else pairs
            given = dict(kind=key[1].kind, transitions=pairs, schedule=self.schedule)
            self._sites[key] = dataclasses.replace(node.site, **given)
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
        at = np.repeat([n in self.paths.credited for n in range(len(sizes))], sizes)[None]
        return not any((a.reach[op.number].block.multiply(at) > node.blocks).nnz for op in node.ops)

    def all_through(self, node: TraceNode) -> bool:
        """Whether all credit of a trace comes by way of new states: no path leads past them to the output, neither from
        old states nor from its operations."""
        past = self.paths.from_operations
        return not self.paths.from_old_states and not any(op.number in past for op in node.ops)

    def of_op(self, op: WeightOp) -> TraceNode | None:
        """The trace of an operation, if it has one."""
        return next((node for node in self.traces if op in node.ops), None)

    def terms(self, steps: int, batch: int) -> Grads:
        """What each gradient is the sum of in windows of so many steps, of so many examples."""
        if steps > 1:
            return self.grads
        at_start = {op for node in self.traces if not self._at_end(node, batch) for op in node.ops}
        return {op: self.grads[op] if op in at_start else t for op, t in self.step_grads.items()}

    def _at_end(self, node: TraceNode, batch: int) -> bool:
        """Whether a trace is read at the end of a window of one step, of so many examples."""
        is_read = self.step_grads[node.op] == (end_of(node),)
        return is_read and node.form.reads_end(node.site, batch)

    # --- what passes do ---

    def regrouped(self, traces: Mapping[TraceNode, tuple[TraceNode, ...]]) -> "TraceProgram":
        """The program with other traces in the place of some, for any of their operations; these have the terms of
        `terms_of`."""
        program = dataclasses.replace(self, traces=self._with(traces))
        ops = [op for node in traces for op in node.ops]
        terms = {op: terms_of(op, program.of_op(op), self.window.credit) for op in ops}
        grads, step_grads = {**self.grads, **terms}, {**self.step_grads, **terms}
        zeros = {op: of for op, of in self.zeros.items() if op not in terms}
        return dataclasses.replace(program, grads=grads, step_grads=step_grads, zeros=zeros)

    def rewritten(self, term: Callable[[WeightOp, Product], Product | None]) -> "TraceProgram":
        """The program with other terms; one that becomes `None` goes."""
        each = lambda op, terms: tuple(new for t in terms if (new := term(op, t)) is not None)
        grads, step_grads = (
            {op: each(op, terms) for op, terms in of.items()}
            for of in (self.grads, self.step_grads)
        )
        return dataclasses.replace(self, grads=grads, step_grads=step_grads)

    def without(self, zeros: Mapping[WeightOp, Product], why: str) -> "TraceProgram":
        """The program without terms that are proved to be zero, for all values of parameters and data."""
        noted = {op: {**self.zeros.get(op, {}), term: why} for op, term in zeros.items()}
        program = self.rewritten(lambda op, term: None if zeros.get(op) == term else term)
        return dataclasses.replace(program, zeros={**self.zeros, **noted})

    def replaced(self, traces: Mapping[TraceNode, TraceNode]) -> "TraceProgram":
        """The program with other traces for the same operations in the place of some."""
        nodes = self._with({old: (new,) for old, new in traces.items()})
        zeros = {op: {t.renamed(traces): w for t, w in of.items()} for op, of in self.zeros.items()}
        program = self.rewritten(lambda _, term: term.renamed(traces))
        return dataclasses.replace(program, traces=nodes, zeros=zeros)

    def _with(self, traces: Mapping[TraceNode, tuple[TraceNode, ...]]) -> tuple[TraceNode, ...]:
        return tuple(new for node in self.traces for new in traces.get(node, (node,)))

    def noted(self, *changes: Change) -> "TraceProgram":
        """The program with what a pass changed."""
        return dataclasses.replace(self, changes=(*self.changes, *changes))

    # --- what it says ---

    def as_dict(self) -> dict[str, Any]:
        """The program, ready for JSON: what it is for, traces, the terms of each gradient as texts, and the rest as
        `print` shows it."""
        names, name = self.names(), self._place.__getitem__
        traces = [
            {
                "form": form_text(node.form),
                "dtype": np.dtype(node.dtype).name,
                "outputs": node.op.size,
                "block": node.block,
                "states": list(self.analysis.hidden.names(node.blocks.indices)),
                "feeds": [[names[op] for op in feed.ops] for feed in node.feeds],
                "bytes": node.bytes,
                "virtual": node.virtual,
            }
            for node in self.traces
        ]
        of = lambda grads: {names[op]: [words(t, name) for t in ts] for op, ts in grads.items()}
        return dict(
            target=dataclasses.asdict(self.target),
            traces=traces,
            grads=of(self.grads),
            step_grads=of(self.step_grads),
            zeros={
                names[op]: {words(t, name): why for t, why in terms.items()}
                for op, terms in self.zeros.items()
            },
            credited=self._credited,
            compression=str(self.compression),
            window=dataclasses.asdict(self.window),
            schedule=str(self.schedule),
            extension=None if self.extends is None else form_text(self.extends),
        )

    @property
    def _credited(self) -> list[str]:
        """The paths of the states at which credit is taken."""
        return [
            path for n, path in enumerate(self.analysis.hidden.paths) if n in self.paths.credited
        ]

    @property
    def _place(self) -> dict[TraceNode, str]:
        return {node: f"t{n}" for n, node in enumerate(self.traces)}

    def __str__(self) -> str:
        return program_text(self)

    __repr__ = __str__

    def names(self) -> dict[WeightOp, str]:
        """Names of all operations: their paths, numbered where several have one."""
        ops = self.analysis.ops
        return dict(zip(ops, numbered([op.path for op in ops]), strict=True))


def numbered(paths: Sequence[str]) -> list[str]:
    """Paths, each with its number among those that are equal, where these are several."""
    total, number = Counter(paths), {path: itertools.count(1) for path in paths}
    return [f"{p} ({next(number[p])} of {total[p]})" if total[p] > 1 else p for p in paths]


def _head(program: TraceProgram, node: TraceNode) -> str:
    """The form of a trace, its dtype and its numbers of outputs, of states of each, and of rows of an extension; and
    the states where some are left out."""
    rows = f" + {node.virtual}" if node.virtual else ""
    size = f"[{node.op.size} x {node.block}{rows}]"
    reach = program.analysis.reach[node.op.number]
    states = program.analysis.hidden.names(node.blocks.indices)
    of = f" of {', '.join(states)}" if node.blocks.nnz < reach.block.nnz else ""
    return f"{form_text(node.form)} {np.dtype(node.dtype).name}{size}{of}"


def program_text(program: TraceProgram) -> str:
    """The program as lines: traces with their feeds, gradients as sums of terms, reads and window."""
    names, window, place = program.names(), program.window, program._place
    heads = [f"{name} = {_head(program, node)}" for node, name in place.items()]
    width = max(map(len, heads), default=0)
    lines = [f"for {program.target}"]
    for node, head in zip(program.traces, heads, strict=True):
        feeds = " + ".join(f"({' | '.join(names[op] for op in feed.ops)})" for feed in node.feeds)
        paths = {op.path for op in node.ops}
        by = dict.fromkeys(c.by for c in program.changes if c.path in paths)
        lines.append(f"{head:<{width}}  feeds {feeds}" + (f"  # {', '.join(by)}" if by else ""))
    lines += [
        f"grad {names[op]} = {sum_in_words(terms, place.__getitem__)}"
        for op, terms in program.grads.items()
    ]
    alone = [op for op, terms in program.step_grads.items() if terms != program.grads[op]]
    lines += ["in windows of one step"] if alone else []
    several = {op for n in program.traces if not program._at_end(n, 1) for op in n.ops}
    lines += [
        f"  grad {names[op]} = {sum_in_words(program.step_grads[op], place.__getitem__)}"
        + ("  # of several examples" if op in several else "")
        for op in alone
    ]
    for why in dict.fromkeys(why for of in program.zeros.values() for why in of.values()):
        found = [
            f"{words(term, place.__getitem__)} of {names[op]}"
            for op, of in program.zeros.items()
            for term, reason in of.items()
            if reason == why
        ]
        lines.append(f"zero, as {why}: {', '.join(found)}")
    is_all = len(program._credited) == len(program.analysis.hidden.paths)
    at = "all hidden states" if is_all else ", ".join(program._credited)
    lines.append(f"credit at {at}, D and F by {program.compression}")
    behind = f" with {window.behind} behind it" if window.behind else ""
    credit = {"step": "of each step", "window": "through the window, uncut"}[window.credit]
    count = f"{window.steps} step{'s' if window.steps > 1 else ''}"
    length = f"{window.length}, as {window.why}" if window.why else window.length
    lines += [f"window of {count}{behind} ({length}), credit {credit}"]
    lines += [] if program.extends is None else [f"extension {form_text(program.extends)}"]
    lines.append(str(program.schedule))
    return "\n".join(lines)
