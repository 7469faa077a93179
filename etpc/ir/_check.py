"""What holds of each trace program, after each pass."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax.numpy as jnp

from ..analyse import WeightOp
from ..errors import AlgorithmError, Code, raise_together
from ..forms import AddsToFirst, ReadsEnd, Trace
from ._nodes import TraceNode
from ._program import TraceProgram
from ._terms import (
    AtEnd,
    AtStart,
    Carried,
    Direct,
    Product,
    Signal,
    Steps,
    Through,
    end_of,
    past_of,
    terms_of,
    words,
)


class Problem(NamedTuple):
    """What is wrong with a program."""

    text: str
    of_order: bool = False
    """Whether another order of the passes mends it."""


def check(program: TraceProgram, by: str = "plan") -> None:
    """**Raises** `AlgorithmError` for a program that is not one, with all that is wrong; `by` is what made it."""
    heading = f"{by} made a trace program that is not one:"
    problems = [
        problem if isinstance(problem, Problem) else Problem(problem)
        for problem in (*_of_traces(program), *_of_grads(program))
    ]
    code = Code.PASS_ORDER if all(p.of_order for p in problems) else Code.ALGORITHM
    texts = [p.text for p in problems]
    raise_together(texts, AlgorithmError, heading if texts else "", code=code)


def _of_traces(program: TraceProgram) -> Iterator[str | Problem]:
    size = program.analysis.hidden.size
    for node in program.traces:
        for feed in node.feeds:
            sizes = {(op.kind.groups, op.kind.outputs) for op in feed.ops}
            if len(sizes) > 1:
                yield f"{node}: the operations of a feed have outputs of several shapes, {sizes}."
        kinds = {jnp.issubdtype(d, jnp.complexfloating) for d in (node.dtype, node.op.delta.dtype)}
        if not jnp.issubdtype(node.dtype, jnp.inexact) or len(kinds) > 1:
            yield f"{node}: its dtype is {node.dtype}, and that of its operation {node.op.delta.dtype}."
        if node.blocks.shape != (node.op.size, size):
            yield f"{node}: its blocks have the shape {node.blocks.shape}, not {(node.op.size, size)}."
        fewer = node.blocks.nnz < program.analysis.reach[node.op.number].block.nnz
        if fewer and type(node.form).read is not Trace.read:
            yield Problem(
                f"{node}: states are left out of its blocks, and its form has a `read` of its own, which may miss "
                f"their credit. {_placed(node, 'leaves states out')}.",
                of_order=True,
            )
        if any(len(feed.ops) > 1 for feed in node.feeds) and not node.form.joins:
            yield Problem(
                f"{node}: its operations have their data side by side, and `joins` of its form is not True. "
                f"{_placed(node, 'joins products')}, or say `joins = True` in the form, whose `past` gives rows then.",
                of_order=True,
            )
        if node.form.reduces and program.window.length in ("open", "asked"):
            yield (
                f"{node}: its form has `reduces = True`, and the window says that no gradient depends on its length. "
                "Let the pass put `dataclasses.replace(program.window, length='meant')` into the program."
            )
    ops = [op for node in program.traces for op in node.ops]
    for op in dict.fromkeys(op for op in ops if ops.count(op) > 1):
        yield f"{op.path} enters more than one trace."


def _of_grads(program: TraceProgram) -> Iterator[str | Problem]:
    live = program.analysis.live
    for name, grads in (("grads", program.grads), ("step_grads", program.step_grads)):
        if tuple(grads) != live:
            yield f"`{name}` does not have the operations that reach a state, in their order."
            continue
        for op in live:
            for problem in _of_op(program, op, grads[op], _whole(program, op, name)):
                text, of_order = problem if isinstance(problem, Problem) else Problem(problem)
                yield Problem(f"`{name}` of {op.path}: {text}", of_order)
        data = [
            t.data for of_op in (*grads.values(), *program.zeros.values()) for t in _apart(of_op)
        ]
        read = {part.trace for part in data if isinstance(part, Carried | AtEnd)}
        yield from (
            f"`{name}` reads nothing of {node}." for node in program.traces if node not in read
        )


def _whole(program: TraceProgram, op: WeightOp, name: str) -> tuple[Product, ...]:
    """What the gradient through an operation is to be the sum of, but for terms that are proved to be zero: in windows
    of one step it may all be read after the step, for the operations of a trace together."""
    node = program.of_op(op)
    if name == "step_grads" and node is not None:
        at_end = (end_of(node),)
        if program.step_grads.get(node.op) == at_end:
            return at_end if op is node.op else ()
    zeros = program.zeros.get(op, {})
    return tuple(t for t in terms_of(op, node, program.window.credit) if t not in zeros)


def _of_op(
    program: TraceProgram, op: WeightOp, terms: tuple[Product, ...], whole: tuple[Product, ...]
) -> Iterator[str | Problem]:
    """Whether the terms are `whole`, each once, where a past may be added to the data of a step."""
    counts, zeros = Counter(_apart(terms)), program.zeros.get(op, {})
    for term, count in counts.items():
        if term not in whole and term not in zeros:
            yield f"'{words(term)}' does not belong to it{_of_others(program, op, term)}."
        elif count > 1:
            yield f"'{words(term)}' counts twice."
    for term in whole:
        if term not in counts:
            yield (
                f"'{words(term)}' is missing, so the gradient would lack a part. If it is zero for all values of the "
                "parameters, leave it out by `program.without`, which takes the proof."
            )
    for term in terms:
        match term.data:
            case AtEnd(trace) if not isinstance(trace.form, ReadsEnd):
                yield _lacks(trace, "read_end", "reads traces at the end", "read at the end")
            case Steps(_, Carried(trace)) if not isinstance(trace.form, AddsToFirst):
                yield _lacks(trace, "first_data", "adds it there", "added to the first step")
            case AtEnd(trace) | Steps(_, Carried(trace)) if not program.has_credited(trace):
                does = "reads it at the end" if isinstance(term.data, AtEnd) else "adds its past"
                yield Problem(
                    f"'{words(term)}' takes it that the trace has all states at which credit is taken, and some are "
                    f"left out of its blocks. Let the pass that leaves them out run before the one that {does}.",
                    of_order=True,
                )
            case AtEnd(trace) | Steps(_, Carried(trace)) if not program.all_through(trace):
                yield (
                    f"'{words(term)}' takes it that no path leads from an old state or an operation of the trace to "
                    "the output past the new states, and one does."
                )
            case Steps(_, Carried()) if isinstance(term.credit, Direct):
                yield f"'{words(term)}' has the past times credit that is not its own."
            case _:
                pass


def _of_others(program: TraceProgram, op: WeightOp, term: Product) -> str:
    """Whose data or credit a term has that is not its own, where its words do not say so."""
    names, found = program.names(), list[str]()
    if isinstance(term.data, Steps) and term.data.op != op:
        found.append(f"the data of {names.get(term.data.op, term.data.op.path)}")
    match term.data, term.credit:
        case _, Direct(other) | Through(other) if other != op:
            found.append(f"the credit of {names.get(other, other.path)}")
        case Carried(trace) | AtEnd(trace), AtStart(other) | Signal(other) if other != trace:
            found.append(f"the credit of {other}")
        case _:
            pass
    return f", as it has {' and '.join(found)}" if found else ""


def _apart(terms: Iterable[Product]) -> list[Product]:
    """The terms, and each past that is added to data of a step as one of its own."""
    found = list[Product]()
    for term in terms:
        if isinstance(term.data, Steps) and term.data.past is not None:
            of_past = past_of(term.data.past.trace, term.data.past.slot)
            found += [Product(Steps(term.data.op), term.credit), of_past]
        else:
            found.append(term)
    return found


def _lacks(node: TraceNode, method: str, does: str, how: str) -> Problem:
    name = type(node.form).__name__
    text = f"its past is {how}, and {name} has no `{method}`. {_placed(node, does)}, or give {name} the method."
    return Problem(text, of_order=True)


def _placed(node: TraceNode, does: str) -> str:
    """Where the pass that gave a trace its form is to run."""
    form, example = type(node.form).__name__, "as in `passes=(mine, *etpc.plan.DEFAULT)`"
    return f"Let the pass that puts {form} there run before the one that {does}, {example}"
