"""From an analysis and a learning rule to a plan: which traces there are, and how the Jacobians are read."""

import dataclasses
from collections.abc import Collection, Hashable, Mapping, Sequence

import networkx as nx
import numpy as np

from ..algorithms import Algorithm, Choice
from ..analyse import Analysis, Reach, WeightOp, trace_dtype
from ..errors import MemoryLimitError, UnsupportedError, raise_together
from ..traces import Directions, Full, Site, Trace, bytes_of
from ._blocks import (
    Colouring,
    Layout,
    block_rows,
    colouring,
    immediate_index,
    layout,
)
from ._choice import check_choice, settled
from ._joined import joined
from ._passes import PASSES
from ._records import Group, OpPlan, Plan, Sketch, TracePlan, one_step, window_matters
from ._report import changes
from ._select import DEFAULT_MEMORY, UNMARKED, UNSELECTED, Selection, context
from ._smallest import Proofs, ended, smallest
from ._window import AT_LEAST, chosen_window

BEHIND = "it acts on the states only through"
"""How the reason begins why a weight whose output only other weights read has no trace."""
UNLIKE = ", unlike under CreditRTRL, SnAp and RTRL"


def plan(
    analysis: Analysis,
    algorithm: Algorithm,
    weights: Selection = None,
    *,
    memory: int | None = None,
    batch_size: int = 1,
    passes: Collection[str] = tuple(PASSES),
) -> Plan:
    """Choose the traces of a program.

    **Arguments:**

    - `analysis`: from [`etpc.analyse.analyse`][], made as the algorithm asks.
    - `algorithm`: the learning rule.
    - `weights`: `None` or `"all"`, `"marked"`, or a set of parameter paths.
    - `memory`: at most so many bytes of traces, for `batch_size` examples.
    - `passes`: the names of the passes that run.

    **Raises** `SelectionError` where nothing is selected; `UnsupportedError` where a derivative
    passes through a loop of unknown length; `MemoryLimitError` before more is allocated than
    `memory`.
    """
    _check_supported(analysis)
    proofs = Proofs(analysis, algorithm.backprop)
    asked = context(proofs, weights, memory=memory, batch_size=batch_size)
    choice = algorithm.choose(asked)
    check_choice(algorithm, choice, asked.ops)
    unchosen = UNMARKED if weights == "marked" else UNSELECTED
    reasons = {
        op.number: _no_trace(analysis, op, algorithm, choice, "" if op in asked.ops else unchosen)
        for op in analysis.ops
    }
    plain = [_sketch(analysis, op, choice) for op in analysis.ops if not reasons[op.number]]
    without = ended(proofs, plain) if "drop_ended" in passes else set[int]()
    reasons |= {number: _ends(analysis.reach[number], algorithm) for number in without}
    sketches = [t for t in plain if t.op.number not in without]
    if "drop_unlasting" in passes:
        sketches = [_without_unlasting(proofs, t) for t in sketches]
    sketches = smallest(proofs, sketches, _owners(sketches, passes), passes)
    owners = _owners(sketches, passes)
    beside: dict[int, int] = {}
    if "join_products" in passes:
        sketches, beside = joined(analysis, sketches, owners)
    owners |= beside
    if "pair_states" in passes:
        sketches = [_in_pairs(t) for t in sketches]
    _check_memory(sketches, owners, memory, batch_size)
    colours = colouring(analysis, "by_columns" in passes)
    repeat = "repeat_blocks" in passes
    traces = _laid_out(sketches, owners, beside, analysis, colours, repeat)
    ops = tuple(
        _op_plan(analysis, op, traces.get(op.number), reasons[op.number], choice, without)
        for op in analysis.ops
    )
    window, why, chosen = AT_LEAST, "", None
    if algorithm.window != "auto":
        window = algorithm.window
    elif one_step(algorithm, list(traces.values())):
        window = 1
    elif window_matters(algorithm, list(traces.values())):
        window = min(window, algorithm.lookback or window)
    elif "choose_window" in passes:
        window, why = chosen = chosen_window(analysis, ops, colours.count)
    return Plan(
        *(analysis, algorithm, ops, _groups(ops, analysis), colours, window, why),
        passes=frozenset(passes),
        changes=changes(plain, traces, analysis, colours, chosen),
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


def _no_trace(
    analysis: Analysis, op: WeightOp, algorithm: Algorithm, choice: Choice, unchosen: str
) -> str:
    """Why an operation has no trace; empty if it has one."""
    reach = analysis.reach[op.number]
    if reach.role == "output":
        return "it reaches no hidden state; the gradient of each step is exact"
    if reach.role == "nothing":
        return "it reaches no output, at this step or later"
    reason = unchosen
    if not reason and choice.forms[op.number] is None:
        reason = f"{type(algorithm).__name__} gives it none"
    steps = "current step" if algorithm.backprop == "cut" else "last steps"
    gradient = f"it gets the gradient of the {steps}"
    if not reason and not reach.block.nnz and choice.directions is None:
        through = ", ".join(_entrances(analysis, op))
        cuts = "cuts" if algorithm.backprop == "cut" else "cuts between windows"
        reason = f"{BEHIND} {through}, where {type(algorithm).__name__} {cuts}"
        gradient += UNLIKE
    return reason and f"{reason}; {gradient}"


def _ends(reach: Reach, algorithm: Algorithm) -> str:
    """Why an operation has no trace whose influence ends with the step."""
    if not reach.escapes:
        return "no later step reads what it does to the states; the gradient of each step is exact"
    cut = f"as data that {type(algorithm).__name__} cuts"
    gradient = f"it gets the gradient of the current step{UNLIKE}"
    return f"no later step reads what it does to the states but {cut}; {gradient}"


def _entrances(analysis: Analysis, op: WeightOp) -> list[str]:
    """The weights through which the output of an operation enters the states, where their data is cut."""
    reads = np.array([reach.reads.ops for reach in analysis.reach], bool)
    reads &= np.array([reader.number in analysis.cut for reader in analysis.ops])[:, None]
    reached = reads[:, op.number]
    for _ in analysis.ops:
        reached = reached | reads[:, reached].any(1)
    ends = [o.path for o in analysis.ops if reached[o.number] and analysis.immediate[o.number].nnz]
    return list(dict.fromkeys(ends))


def _sketch(analysis: Analysis, op: WeightOp, choice: Choice) -> Sketch:
    """The trace of an operation."""
    reach, form = analysis.reach[op.number], choice.forms[op.number]
    assert form is not None
    escapes = bool(reach.escapes) or not reach.block.nnz
    directions = choice.directions if escapes else None
    members = reach.block
    virtual = 0 if directions is None else directions.count
    block = int(np.diff(members.indptr).max(initial=0))
    site = Site(op.kind, block + virtual, trace_dtype(analysis, op))
    form = settled(form, site, op.path)
    return Sketch(op, form, site, members, reach.closed, directions)


def _without_unlasting(proofs: Proofs, t: Sketch) -> Sketch:
    """A trace that is read at the start of a window alone, without the states that have no credit there."""
    kept = proofs.block(t.op)
    if not t.form.start_alone or not 0 < kept.nnz < t.members.nnz:
        return t
    block = int(np.diff(kept.indptr).max()) + t.virtual
    return dataclasses.replace(t, members=kept, site=dataclasses.replace(t.site, block=block))


def _in_pairs(t: Sketch) -> Sketch:
    """A whole trace of two states, whose entries are carried as complex numbers."""
    if t.form != Full() or not Full().pairs_states(t.site):
        return t
    return dataclasses.replace(t, form=Full(as_complex=True))


def _owners(sketches: Sequence[Sketch], passes: Collection[str]) -> dict[int, int]:
    """For each operation, by number, the one whose trace is also its own.

    Operations share a trace that have the same weight and blocks, as the sum of their traces is all that counts.
    """
    first: dict[Hashable, int] = {}
    owners: dict[int, int] = {}
    for t in sketches:
        follows = type(t.form).follow is not Trace.follow
        shared = "share_uses" in passes and not follows
        entries = t.form.same(t.site) if shared else None
        blocks = (t.members.indptr.tobytes(), t.members.indices.tobytes())
        key = (t.op.weight, entries, blocks, t.closed, t.site.dtype, t.site.block)
        own = t.op.number
        owners[own] = own if entries is None else first.setdefault(key, own)
    return owners


def _check_memory(
    sketches: Sequence[Sketch], owners: Mapping[int, int], memory: int | None, batch_size: int
) -> None:
    limit = DEFAULT_MEMORY if memory is None else memory
    sizes = {
        t: batch_size * bytes_of(t.form, t.site) if owners[t.op.number] == t.op.number else 0
        for t in sketches
    }
    total = sum(sizes.values())
    stated = f"memory={limit:,}" if memory is not None else f"the default limit of {limit:,}"
    if total > limit:
        rows = [
            f"\n  {t.op.path} ({t.op.kind.name}): {sizes[t]:,} bytes, a block of {t.block:,}"
            for t in sorted(sketches, key=lambda t: -sizes[t])[:5]
        ]
        raise MemoryLimitError(
            f"The traces would take {total:,} bytes for {batch_size} "
            f"example{'s' if batch_size > 1 else ''}, and {stated} allows no more. "
            f"The largest:{''.join(rows)}\n"
            "Use ES_D_RTRL, whose traces are smaller, fewer weights (`weights=`) or a smaller batch, or pass "
            "a larger `memory=`. `etpc.suggest(..., memory=)` measures the rules that fit."
        )


def _laid_out(
    sketches: Sequence[Sketch],
    owners: Mapping[int, int],
    beside: Collection[int],
    analysis: Analysis,
    colours: Colouring,
    repeat: bool,
) -> dict[int, TracePlan]:
    """The traces with their tables, by the numbers of operations; equal blocks have one layout."""
    traces: dict[int, TracePlan] = {}
    layouts: dict[Hashable, Layout] = {}
    for t in sketches:
        number = t.op.number
        rows = block_rows(t.members)
        key = (rows.shape, rows.tobytes(), t.closed)
        if key not in layouts:
            layouts[key] = layout(rows, analysis.transition, colours, t.closed, repeat)
        pairs = layouts[key].pairs
        if t.virtual:
            pairs = pairs.with_virtual(t.virtual)
        index = immediate_index(
            rows, analysis.immediate[number], colours, colours.columns.get(number)
        )
        placed = dataclasses.replace(t, site=dataclasses.replace(t.site, transitions=pairs))
        traces[number] = TracePlan(
            **vars(placed),
            layout=layouts[key],
            immediate=index,
            shares=None if owners[number] == number else owners[number],
            beside=number in beside,
        )
    return traces


def _op_plan(
    analysis: Analysis,
    op: WeightOp,
    trace: TracePlan | None,
    reason: str,
    choice: Choice,
    ended: Collection[int],
) -> OpPlan:
    reach = analysis.reach[op.number]
    untraced = reach.role == "state" and trace is None and op.number not in ended
    escapes = left_out(reach, None if trace is None else trace.directions)
    if untraced:
        escapes = ()
    elif trace is not None and not trace.form.exact:
        escapes = (trace.form.left_out, *escapes)
    return OpPlan(
        op=op,
        states=analysis.hidden.names(reach.states),
        trace=trace,
        exact=not escapes and not untraced,
        escapes=escapes,
        reason=reason,
        choice="" if trace is None else _reason(choice.reasons.get(op.number, ""), trace.found.why),
    )


def _reason(rule: str, found: str) -> str:
    """Why a trace has its form: as the rule says, and as the compiler found."""
    return "; ".join(filter(None, (rule, found)))


def left_out(reach: Reach, directions: Directions | None) -> tuple[str, ...]:
    """The influence that leaves a trace, in words."""
    if directions is None:
        return tuple(map(str, reach.escapes))
    return tuple(f"{escape}, {directions.left_out}" for escape in reach.escapes)


def _groups(ops: Sequence[OpPlan], analysis: Analysis) -> tuple[Group, ...]:
    graph: nx.Graph[str] = nx.Graph()
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
