"""From an analysis and a learning rule to a trace program: the rule's own, and what passes make of it."""

import functools
from collections.abc import Sequence

import networkx as nx

from ..algorithms import Algorithm, Choice
from ..analyse import Analysis, WeightOp
from ..errors import AlgorithmError, Code, MemoryLimitError, UnsupportedError, raise_together
from ..ir import TraceProgram, check
from ..schedule import Target
from ._choice import check_choice, check_form
from ._plain import Why, ends, no_trace, plain
from ._proofs import Proofs
from ._records import Group, OpPlan, Plan
from ._select import DEFAULT_MEMORY, UNMARKED, UNSELECTED, Selection, context
from .passes import DEFAULT, Pass


def plan(
    analysis: Analysis,
    algorithm: Algorithm,
    weights: Selection = None,
    *,
    memory: int | None = None,
    batch_size: int = 1,
    passes: Sequence[Pass] = DEFAULT,
    target: Target | None = None,
) -> Plan:
    """Choose the traces of a program.

    **Arguments:**

    - `analysis`: from [`etpc.analyse.analyse`][], made as the algorithm asks.
    - `algorithm`: the learning rule.
    - `weights`: `None` or `"all"`, `"marked"`, or a set of parameter paths.
    - `memory`: at most so many bytes of traces, for `batch_size` examples.
    - `passes`: those that run, in order.
    - `target`: what the program is for, by default this process.

    **Raises** `SelectionError` where nothing is selected; `UnsupportedError` where a derivative
    passes through a loop of unknown length; `MemoryLimitError` before more is allocated than
    `memory`.
    """
    _check_supported(analysis)
    given, options = analysis, dict(memory=memory, batch_size=batch_size)
    asked_of = lambda a: context(
        Proofs.of(a, algorithm.backprop), weights, memory=memory, batch_size=batch_size
    )
    asked = asked_of(analysis)
    for each in passes:
        while each.before is not None and (found := each.before(algorithm, asked)) is not analysis:
            analysis = found
            asked = asked_of(analysis)
    choice = algorithm.choose(asked)
    check_choice(algorithm, choice, asked.ops)
    unchosen = UNMARKED if weights == "marked" else UNSELECTED
    found = [no_trace(op, algorithm, asked, choice, unchosen) for op in analysis.ops]
    untraced = {number: why for number, why in enumerate(found) if why is not None}
    program = plain(algorithm, asked, choice, untraced, target or Target.here())
    in_order = tuple(passes) == tuple(p for p in DEFAULT if p in passes)
    for each in passes:
        program, by = each.run(program), f"The pass {each.name!r}"
        if not isinstance(program, TraceProgram):
            raise AlgorithmError(f"{by} returned {program!r}, which is no trace program.")
        if not in_order:
            check(program, by)
            for node in program.traces:
                check_form(node.form, node.site, node.op.path)
    check(program)
    _check_memory(program, memory, batch_size)
    ops = tuple(_op_plan(program, op, untraced.get(op.number), choice) for op in analysis.ops)
    again = functools.partial(*(plan, given, algorithm, weights), **options, passes=passes)
    return Plan(program, ops, _groups(ops, analysis), tuple(passes), again, analysis)


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
            "penalty to it, is not linear, and one that has a `while_loop` does not have one either. Leave the rule "
            "out where a `while_loop` is all that it is for, clip the gradient in the optimiser, add the penalty to "
            "the loss, or put the rule on the way to the output, where it works."
            for source in analysis.findings.nonlinear
        ],
        UnsupportedError,
        code=Code.UNBOUNDED_LOOP if analysis.findings.unbounded else Code.NO_TRANSPOSE,
    )


def _check_memory(program: TraceProgram, memory: int | None, batch_size: int) -> None:
    limit = DEFAULT_MEMORY if memory is None else memory
    total = batch_size * sum(node.bytes for node in program.traces)
    stated = f"memory={limit:,}" if memory is not None else f"the default limit of {limit:,}"
    if total > limit:
        rows = [
            f"\n  {node.op.path} ({node.op.kind.name}): {batch_size * node.bytes:,} bytes, a block of {node.block:,}"
            for node in sorted(program.traces, key=lambda node: -node.bytes)[:5]
        ]
        raise MemoryLimitError(
            f"The traces would take {total:,} bytes for {batch_size} "
            f"example{'s' if batch_size > 1 else ''}, and {stated} allows no more. "
            f"The largest:{''.join(rows)}\n"
            "Use ES_D_RTRL, whose traces are smaller, fewer weights (`weights=`) or a smaller batch, or pass "
            "a larger `memory=`. `etpc.suggest(..., memory=)` measures the rules that fit."
        )


def _op_plan(program: TraceProgram, op: WeightOp, untraced: Why | None, choice: Choice) -> OpPlan:
    """What the program does with one operation; `untraced` says why it has no trace, or is `None`."""
    analysis, node = program.analysis, program.of_op(op)
    reach, hidden = analysis.reach[op.number], analysis.hidden
    ended = node is None and untraced is None  # its influence ends, by proof
    missing = node is None and not ended and reach.role == "state"
    followed = node is not None and node.virtual and program.extension
    late = f", {followed.left_out}" if followed else ""
    escapes = () if missing else tuple(f"{escape}{late}" for escape in reach.escapes)
    rounded = ("" if node is None else node.left_out), program.target.left_out
    lost = () if reach.role == "nothing" else tuple(filter(None, rounded))
    why = ends(reach, program.algorithm) if ended else untraced
    return OpPlan(
        op=op,
        states=hidden.names(reach.states[reach.states < hidden.carried]),
        node=node,
        exact=not escapes and not lost and not missing,
        lost=lost,
        escapes=(*lost, *escapes),
        reason="" if why is None else why.text,
        code=None if why is None else why.code,
        choice="" if node is None else _reason(program, op, choice),
    )


def _reason(program: TraceProgram, op: WeightOp, choice: Choice) -> str:
    """Why a trace has its form: as the rule says, and as passes found."""
    found = [c.text for c in program.changes if c.of_form and c.path == op.path]
    return "; ".join(filter(None, (choice.reasons.get(op.number, ""), *dict.fromkeys(found))))


def _groups(ops: Sequence[OpPlan], analysis: Analysis) -> tuple[Group, ...]:
    graph: nx.Graph[str] = nx.Graph()
    for p in ops:
        if p.node is not None:
            nx.add_path(graph, p.states)
    order = {path: i for i, path in enumerate(analysis.hidden.paths)}
    components = [sorted(c, key=order.__getitem__) for c in nx.connected_components(graph)]
    groups = []
    for states in sorted(components, key=lambda c: order[c[0]]):
        members = [p for p in ops if p.node is not None and set(p.states) & set(states)]
        names = tuple(dict.fromkeys(p.path for p in members))
        groups.append(Group(tuple(states), names, max(p.block for p in members)))
    return tuple(groups)
