"""What holds of each trace program, after each pass."""

from collections.abc import Iterator

import jax.numpy as jnp

from ..analyse import WeightOp
from ..errors import AlgorithmError, raise_together
from ._program import After, Direct, Past, Term, Through, TraceNode, TraceProgram


def check(program: TraceProgram, by: str = "plan") -> None:
    """**Raises** `AlgorithmError` for a program that is not one, with all that is wrong; `by` is what made it."""
    heading = f"{by} made a trace program that is not one:"
    problems = [*_of_traces(program), *_of_grads(program)]
    raise_together(problems, AlgorithmError, heading if problems else "")


def _of_traces(program: TraceProgram) -> Iterator[str]:
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
    ops = [op for node in program.traces for op in node.ops]
    for op in dict.fromkeys(op for op in ops if ops.count(op) > 1):
        yield f"{op.path} enters more than one trace."


def _of_grads(program: TraceProgram) -> Iterator[str]:
    reach = program.analysis.reach
    live = [op for op in program.analysis.ops if reach[op.number].role == "state"]
    for name, grads in (("grads", program.grads), ("step_grads", program.step_grads)):
        if list(grads) != live:
            yield f"`{name}` does not have the operations that reach a state, in their order."
            continue
        yield from (
            f"`{name}` of {op.path}: {text}"
            for op in live
            for text in _of_op(program, op, grads[op])
        )
        read = {node for terms in grads.values() for term in terms for node in _read(term)}
        yield from (
            f"`{name}` reads nothing of {node}." for node in program.traces if node not in read
        )


def _of_op(program: TraceProgram, op: WeightOp, terms: tuple[Term, ...]) -> Iterator[str]:
    node = program.of_op(op)
    for term in terms:
        match term:
            case Direct(of) if of is op:
                continue
            case Through(of, trace, past) if of is op and trace is node:
                if past is not None and not _is_past(past, node, op):
                    yield f"the past that {term} is joined with is not its own."
            case Past() if _is_past(term, node, op):
                continue
            case After(trace) if trace is node and len(terms) == 1:
                continue
            case _:
                yield f"{term} does not belong to it."
    if node is None and any(isinstance(term, Past | After) for term in terms):
        yield "it has no trace, and a past."
    directs = [term for term in terms if isinstance(term, Direct | Through)]
    if program.window.credit == "window" and directs:
        yield "credit passes back through the window, which has the gradient within it."
    pasts = [
        term
        for term in terms
        if isinstance(term, Past) or (isinstance(term, Through) and term.past)
    ]
    if len(pasts) > 1:
        yield "its past counts twice."


def _is_past(past: Past, node: TraceNode | None, op: WeightOp) -> bool:
    ops = () if node is None else node.feeds[0].ops
    return past.trace is node and past.slot < len(ops) and ops[past.slot] is op


def _read(term: Term) -> list[TraceNode]:
    match term:
        case Past(trace) | After(trace):
            return [trace]
        case Through(_, trace, past):
            return [] if trace is None or past is None else [trace]
        case _:
            return []


__all__ = ["check"]
