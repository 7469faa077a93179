"""The plan of a trace program: what is carried for each weight operation, and how."""

import dataclasses
import functools
import math
from collections.abc import Collection
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np

from .._errors import (
    AlgorithmError,
    MemoryLimitError,
    SelectionError,
    UnsupportedError,
    raise_together,
)
from ..algorithms import Algorithm, Choice, Context
from ..analyse import Analysis, Reach, WeightOp, trace_dtype, vector_dtype
from ..analyse._pattern import Pattern
from ..traces import Directions, Site, Trace, bytes_of
from ._blocks import Colouring, Layout, block_rows, colouring, immediate_index, lasting, layout
from ._filtered import filtered
from ._pairs import with_virtual
from ._window import AT_LEAST, chosen_window, window_matters


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """Where what moves a trace is read."""

    layout: Layout
    """Of its blocks: where `D` lies in the compressed Jacobian."""
    immediate: Any
    """Likewise `F`."""


@dataclasses.dataclass(frozen=True, eq=False)
class TracePlan:
    """The trace of one weight operation."""

    op: WeightOp
    form: Trace
    members: Pattern
    """Outputs x states: the states that the trace of each output holds."""
    closed: bool
    """Whether what a block reaches is in the block, so that nothing leaves the trace that way."""
    dtype: Any
    """At least float32, and complex where the operation is."""
    directions: Directions | None = None
    """Along which what escapes from the trace is followed; `None` where nothing is."""
    shares: int | None = None
    """The number of an operation with the same weight and blocks, whose trace holds this one's too;
    `None` where it has its own."""
    tables: Tables | None = None
    """`None` before they are laid out."""

    @property
    def block(self) -> int:
        """m, the most states that one output has."""
        return int(np.diff(self.members.indptr).max(initial=0))

    @property
    def virtual(self) -> int:
        """How many virtual states the trace has besides the block."""
        return 0 if self.directions is None else self.directions.count

    @property
    def bytes(self) -> int:
        """Carried for one example; none where another trace holds it."""
        return 0 if self.shares is not None else bytes_of(self.form, self.site)

    @property
    def layout(self) -> Layout:
        """Of its blocks, once it is laid out."""
        assert self.tables is not None
        return self.tables.layout

    @property
    def immediate(self) -> Any:
        """Where `F` lies in the compressed Jacobian, once it is laid out."""
        assert self.tables is not None
        return self.tables.immediate

    @cached_property
    def site(self) -> Site:
        """What the form knows of the operation."""
        pairs = None if self.tables is None else self.tables.layout.pairs
        if pairs is not None and self.virtual:
            pairs = with_virtual(pairs, self.virtual)
        return Site(self.op.kind, self.block + self.virtual, self.dtype, pairs)


@dataclasses.dataclass(frozen=True, eq=False)
class OpPlan:
    """What the program does with one weight operation."""

    op: WeightOp
    states: tuple[str, ...]
    """The paths of the hidden states that it reaches."""
    trace: TracePlan | None
    """`None` if it has none."""
    exact: bool
    """Whether the gradient through this operation is that of BPTT."""
    escapes: tuple[str, ...]
    """What is left out, in words: what the form does, and paths along which influence leaves."""
    reason: str
    """Why there is no trace; empty if there is one."""
    choice: str
    """Why the trace has the form that it has, where the algorithm chose it."""

    @property
    def path(self) -> str:
        return self.op.path

    @property
    def kind(self) -> str:
        return self.op.kind.name

    @property
    def form(self) -> Trace | None:
        """The form of its trace, or `None` if it has none."""
        return None if self.trace is None else self.trace.form

    @property
    def block(self) -> int:
        """m, the most states that the trace of one output holds."""
        return 0 if self.trace is None else self.trace.block

    @property
    def shares(self) -> int | None:
        """The number of an operation whose trace holds this one's too."""
        return None if self.trace is None else self.trace.shares

    @property
    def trace_shape(self) -> Any:
        """Shape of the trace of one example, [(G,) I, (m,) O] where it is full; one shape for each
        factor where it is factored. Axes of length one are left out for G and m."""
        shapes = () if self.trace is None else self.trace.form.shapes(self.trace.site)
        return shapes[0] if len(shapes) == 1 else shapes

    @property
    def trace_bytes(self) -> int:
        """Bytes carried for one example; none where it shares a trace."""
        return 0 if self.trace is None else self.trace.bytes

    def __repr__(self) -> str:
        return f"OpPlan({self.path}, {self.kind}, block={self.block}, exact={self.exact})"


@dataclasses.dataclass(frozen=True)
class Group:
    """Hidden states that share blocks, and the weight operations that reach them."""

    states: tuple[str, ...]
    ops: tuple[str, ...]
    block: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is carried and how it is moved; the emitter reads nothing else."""

    analysis: Analysis
    algorithm: Algorithm
    ops: tuple[OpPlan, ...]
    """One for each weight operation, in order, traced or not."""
    groups: tuple[Group, ...]
    colours: Colouring
    window: int
    window_reason: str
    """Why a window that was chosen is not the least; else empty."""

    @property
    def dtype(self) -> Any:
        """Of the vector of states and its Jacobians: at least float32, so that long traces add up."""
        return vector_dtype(self.analysis)

    @property
    def directions(self) -> Directions | None:
        """Along which influence is followed that escapes from the traces; `None` where none escapes, or
        the algorithm follows none."""
        return next((t.directions for t in self.traces if t.directions is not None), None)

    @property
    def behind(self) -> int:
        """How many steps before a window its credit goes back through, exactly."""
        lookback = self.algorithm.lookback
        return 0 if lookback is None else max(lookback - self.window, 0)

    @property
    def traced(self) -> tuple[OpPlan, ...]:
        return tuple(p for p in self.ops if p.trace is not None)

    @property
    def traces(self) -> tuple[TracePlan, ...]:
        """Those of the operations that have one."""
        return tuple(p.trace for p in self.ops if p.trace is not None)

    @property
    def carried(self) -> tuple[TracePlan, ...]:
        """Those that no other trace holds."""
        return tuple(t for t in self.traces if t.shares is None)

    @property
    def window_matters(self) -> bool:
        """Whether another window would give another gradient."""
        return window_matters(self.algorithm, self.traces)

    def window_for(self, steps: int) -> int:
        """The window of a sequence: that of the plan, which the last one may be shorter than.

        Where it was chosen, and the gradient does not depend on it, one near it that divides `steps`.
        """
        window = self.window
        if self.algorithm.window == "auto" and not self.window_matters:
            divisors = [w for w in range(window // 2, 2 * window + 1) if steps % w == 0]
            window = min(divisors, key=lambda w: abs(math.log(w / window)), default=window)
        return min(window, steps)

    def __str__(self) -> str:
        rows = [f"plan for {self.algorithm}: {self.colours} a step"]
        for p in self.ops:
            text = f"trace {p.trace_shape}" if p.trace is not None else f"no trace: {p.reason}"
            rows.append(f"  {p.path} {p.kind}: {text}")
        return "\n".join(rows)


def plan(
    analysis: Analysis,
    algorithm: Algorithm,
    weights: Any = None,
    *,
    choice: Choice | None = None,
    memory: int | None = None,
    batch_size: int = 1,
) -> Plan:
    """Choose the traces of a program.

    **Arguments:**

    - `analysis`: from [`etpc.analyse.analyse`][], made as the algorithm asks.
    - `algorithm`: the learning rule.
    - `weights`: `None` or `"all"`, `"marked"`, or a set of parameter paths.
    - `choice`: the forms of the traces, where the algorithm has chosen them already.
    - `memory`: at most so many bytes of traces, for `batch_size` examples.

    **Raises** `SelectionError` where nothing is selected; `UnsupportedError` where a derivative
    passes through a loop of unknown length; `MemoryLimitError` before more is allocated than
    `memory`.
    """
    _check_supported(analysis)
    chosen = selected(analysis, weights)
    if choice is None:
        choice = algorithm.choose(context(analysis, weights, memory=memory, batch_size=batch_size))
    _check_choice(algorithm, choice, traceable(analysis, chosen))
    unchosen = UNMARKED if weights == "marked" else _UNSELECTED
    ops = [_describe(analysis, op, algorithm, chosen, choice, unchosen) for op in analysis.ops]
    ops = _share(ops)
    _check_memory(ops, memory, batch_size)
    colours = colouring(analysis)
    ops = _laid_out(ops, analysis, colours)
    window, why = AT_LEAST, ""
    if algorithm.window != "auto":
        window = int(algorithm.window)
    elif not window_matters(algorithm, [p.trace for p in ops if p.trace is not None]):
        window, why = chosen_window(analysis, ops, colours.count)
    elif algorithm.lookback is not None:
        window = min(window, algorithm.lookback)
    groups = _groups(ops, analysis)
    return Plan(analysis, algorithm, tuple(ops), groups, colours, window, why)


def _check_choice(algorithm: Algorithm, choice: Choice, ops: Collection[WeightOp]) -> None:
    """**Raises** `AlgorithmError` for a choice that is not one."""
    name = type(algorithm).__name__
    if missing := [op.path for op in ops if op.number not in choice.forms]:
        raise AlgorithmError(
            f"{name}.choose gives no form for {', '.join(dict.fromkeys(missing))}. Give each operation of "
            "`context.ops` one, or `None` for no trace."
        )
    if choice.directions is not None and algorithm.backprop != "full":
        raise AlgorithmError(
            f"{name} follows directions in windows that are cut. This is because `choose` gives "
            "directions, whose cotangents pass through the window with nothing cut. Set "
            'backprop="full" in the rule.'
        )


def _check_supported(analysis: Analysis) -> None:
    """**Raises** `UnsupportedError` where a derivative cannot be carried forward."""
    raise_together(
        [
            f"A derivative passes through the `while_loop` at {source}. This is because it changes "
            "what depends on a hidden state or a weight, and as the number of its iterations is "
            "not known it has no reverse-mode derivative. Use `lax.fori_loop` with fixed bounds or "
            "`lax.scan`, or `lax.stop_gradient` on what enters the loop."
            for source in analysis.findings.unbounded
        ]
        + [
            f"The backward rule of the `custom_vjp` at {source} has no transpose, and it lies on "
            "the way from a weight or a state to the next state. This is because a trace carries "
            "influence forward, by the transpose of that rule; one that clips the cotangent, or adds a "
            "penalty to it, is not linear, and one that has a `while_loop`, as adaptive solvers do, does not have one "
            "either. A loop of Equinox or diffrax works where the number of its iterations is "
            "known to be at most 256, and less if each is long: pass a smaller `max_steps=`, or "
            "take steps of constant size. Else take a fixed number of steps by `lax.scan`, clip "
            "the gradient in the optimiser, add the penalty to the loss, or put the rule on the way "
            "to the output, where it works."
            for source in analysis.findings.nonlinear
        ],
        UnsupportedError,
    )


def context(
    analysis: Analysis,
    weights: Any = None,
    *,
    memory: int | None = None,
    batch_size: int = 1,
) -> Context:
    """What an algorithm chooses from, with arguments as of `plan`, and what is proved of traces."""
    ops = traceable(analysis, selected(analysis, weights))
    limit = DEFAULT_MEMORY if memory is None else memory
    proved = functools.cache(functools.partial(filtered, analysis, ops))
    return Context(analysis, ops, limit, batch_size, proved)


def traceable(analysis: Analysis, chosen: Collection[int]) -> tuple[WeightOp, ...]:
    """The chosen operations that reach a hidden state, which may have a trace."""
    reach = analysis.reach
    return tuple(
        op for op in analysis.ops if op.number in chosen and reach[op.number].role == "state"
    )


def _share(ops: list[OpPlan]) -> list[OpPlan]:
    """Let whole traces of one weight with the same blocks be one: their sum is all that counts."""
    owners: dict[Any, int] = {}
    shared = []
    for p in ops:
        t = p.trace
        entries = None if t is None else t.form.same(t.site)
        if t is not None and entries is not None:
            blocks = (t.members.indptr.tobytes(), t.members.indices.tobytes())
            key = (t.op.weight, entries, blocks, t.closed, t.dtype, t.virtual)
            owner = owners.setdefault(key, p.op.number)
            if owner != p.op.number:
                p = dataclasses.replace(p, trace=dataclasses.replace(t, shares=owner))
        shared.append(p)
    return shared


def _laid_out(ops: list[OpPlan], analysis: Analysis, colours: Colouring) -> list[OpPlan]:
    """With the tables of those that have a trace; one layout for all that have the same blocks."""
    planned = []
    layouts: dict[tuple[tuple[int, ...], bytes, bool], Layout] = {}
    for p in ops:
        t = p.trace
        if t is None:
            planned.append(p)
            continue
        number = p.op.number
        rows = block_rows(t.members)
        key = (rows.shape, rows.tobytes(), t.closed)
        if key not in layouts:
            layouts[key] = layout(rows, analysis.transition, colours, t.closed)
        index = immediate_index(
            rows, analysis.immediate[number], colours, colours.columns.get(number)
        )
        laid_out = dataclasses.replace(t, tables=Tables(layouts[key], index))
        planned.append(dataclasses.replace(p, trace=laid_out))
    return planned


_UNSELECTED = "it was not selected"
UNMARKED = "it is not marked"


def _describe(
    analysis: Analysis,
    op: WeightOp,
    algorithm: Algorithm,
    chosen: set[int],
    choice: Choice,
    unchosen: str,
) -> OpPlan:
    """What the program does with an operation, without the tables."""
    reach = analysis.reach[op.number]
    form: Trace | None = None
    why = ""
    trace = None
    directions = choice.directions
    if reach.block.nnz and not reach.escapes:
        directions = None
    reason = _no_trace(reach, op.number in chosen, unchosen, directions is not None)
    if not reason:
        form, why = choice.forms[op.number], choice.reasons.get(op.number, "")
        reason = f"{type(algorithm).__name__} gives it none" if form is None else ""
    if reason and reach.role == "state":
        steps = "current step" if algorithm.backprop == "cut" else "last steps"
        reason += f"; it gets the gradient of the {steps}"
    if form is None:
        directions = None
    else:
        members = reach.block
        if form.start_alone and reach.closed and algorithm.backprop == "cut":
            members = lasting(analysis, members)
        dtype = trace_dtype(analysis, op)
        trace = TracePlan(op, form, members, reach.closed, dtype, directions)
        form = form.settle(trace.site)
        trace = dataclasses.replace(trace, form=form)
    escapes = left_out(reach, directions)
    if form is not None and not form.exact:
        escapes = (form.left_out, *escapes)
    traceless = reach.role == "state" and form is None
    return OpPlan(
        op=op,
        states=analysis.hidden.names(reach.states),
        trace=trace,
        exact=not escapes and not traceless,
        escapes=escapes,
        reason=reason,
        choice=why,
    )


def _no_trace(reach: Reach, chosen: bool, unchosen: str, followed: bool) -> str:
    """Why an operation has no trace, whatever the rule; empty where it may have one."""
    if reach.role == "output":
        return "it reaches no hidden state; the gradient of each step is exact"
    if reach.role == "nothing":
        return "it reaches no output, at this step or later"
    if not chosen:
        return unchosen
    if not reach.block.nnz and not followed:
        return "its output enters hidden states through other weights alone"
    return ""


def left_out(reach: Reach, directions: Directions | None) -> tuple[str, ...]:
    """Influence that leaves a trace, in words."""
    if directions is None:
        return tuple(map(str, reach.escapes))
    if directions.exact:
        return ()
    if not reach.block.nnz:
        return (f"its influence on hidden states is {directions.left_out}",)
    return tuple(f"{escape}, {directions.left_out}" for escape in reach.escapes)


DEFAULT_MEMORY = 1 << 34
"""Bytes of traces that a program may have where `memory` is not given: 16 GiB."""


def _check_memory(ops: list[OpPlan], memory: int | None, batch_size: int) -> None:
    limit = DEFAULT_MEMORY if memory is None else memory
    traced = [p for p in ops if p.trace is not None]
    total = batch_size * sum(p.trace_bytes for p in traced)
    stated = f"memory={limit:,}" if memory is not None else f"the default limit of {limit:,}"
    if total > limit:
        largest = sorted(traced, key=lambda p: -p.trace_bytes)[:5]
        rows = [
            f"\n  {p.path} ({p.kind}): {batch_size * p.trace_bytes:,} bytes, a block of {p.block:,}"
            for p in largest
        ]
        raise MemoryLimitError(
            f"The traces would take {total:,} bytes for {batch_size} "
            f"example{'s' if batch_size > 1 else ''}, and {stated} allows no more. "
            f"The largest:{''.join(rows)}\n"
            'Use `algo="auto"` to have each weight the most exact trace that fits, ES_D_RTRL, '
            "fewer weights (`weights=`) or a smaller batch, or pass a larger `memory=`."
        )


def selected(analysis: Analysis, weights: Any) -> set[int]:
    """The numbers of the operations that `weights` selects."""
    ops = analysis.ops
    if weights is None or weights == "all":
        return {op.number for op in ops}
    if weights == "marked":
        return _marked(analysis)
    paths = analysis.step.model_leaves.paths
    numbers = {paths.index(path): path for path in sorted(weights)}
    chosen = {op.number for op in ops if any(i in numbers for i in op.parameters)}
    missing = [p for i, p in numbers.items() if not any(i in op.parameters for op in ops)]
    raise_together(
        [
            f"weights= selects {path}, which no operation of the step uses. Remove it from the "
            "selector, or use it in the model."
            for path in missing
        ],
        SelectionError,
    )
    return chosen


def _marked(analysis: Analysis) -> set[int]:
    marked = [op for op in analysis.ops if op.marked]
    if analysis.ops and not marked:
        raise SelectionError(
            'weights="marked" selects nothing: no weight passes through `etpc.mark`. Mark the '
            'weights where they are used, or pass weights="all" or a selector.'
        )
    reached = [op for op in analysis.ops if analysis.reach[op.number].role == "state"]
    if reached and not any(op.marked for op in reached):
        raise SelectionError(
            'weights="marked" gives no weight a trace: those that are marked '
            f"({', '.join(dict.fromkeys(op.path for op in marked))}) reach no hidden state, and "
            f"those that do ({', '.join(dict.fromkeys(op.path for op in reached))}) are not marked. "
            "Mark these where they are used, or leave weights= out, which traces all of them."
        )
    return {op.number for op in marked}


def _groups(ops: list[OpPlan], analysis: Analysis) -> tuple[Group, ...]:
    graph: nx.Graph = nx.Graph()
    for p in ops:
        if p.trace is not None:
            nx.add_path(graph, p.states)
            graph.add_nodes_from(p.states)
    order = {path: i for i, path in enumerate(analysis.hidden.paths)}
    components = [sorted(c, key=order.__getitem__) for c in nx.connected_components(graph)]
    groups = []
    for states in sorted(components, key=lambda c: order[c[0]]):
        members = [p for p in ops if p.trace is not None and set(p.states) & set(states)]
        names = tuple(dict.fromkeys(p.path for p in members))
        groups.append(Group(tuple(states), names, max(p.block for p in members)))
    return tuple(groups)


__all__ = ["UNMARKED", "Group", "OpPlan", "Plan", "TracePlan", "context", "plan"]
