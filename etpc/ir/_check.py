"""What holds of each trace program, after each pass."""

from collections.abc import Iterable, Iterator

import jax.numpy as jnp

from ..analyse import WeightOp
from ..errors import AlgorithmError, raise_together
from ..forms import AddsToFirst, ReadsEnd, Trace
from ._program import After, Direct, Past, Term, Through, TraceNode, TraceProgram, terms_of, words


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
        fewer = node.blocks.nnz < program.analysis.reach[node.op.number].block.nnz
        if fewer and type(node.form).read is not Trace.read:
            yield (
                f"{node}: states are left out of its blocks, and its form has a `read` of its own, which may miss "
                f"their credit. {_placed(node, 'drop_unlasting')}."
            )
        if any(len(feed.ops) > 1 for feed in node.feeds) and not node.form.joins:
            yield (
                f"{node}: its operations have their data side by side, and `joins` of its form is not True. "
                f"{_placed(node, 'join_products')}, or say `joins = True` in the form, whose `past` gives rows then."
            )
        if node.form.reduces and not program.window.matters:
            yield (
                f"{node}: its form has `reduces = True`, and the window says that no gradient depends on its length. "
                "Let the pass put `dataclasses.replace(program.window, matters=True, free=False)` into the program."
            )
    ops = [op for node in program.traces for op in node.ops]
    for op in dict.fromkeys(op for op in ops if ops.count(op) > 1):
        yield f"{op.path} enters more than one trace."


def _of_grads(program: TraceProgram) -> Iterator[str]:
    live = program.analysis.live
    for name, grads in (("grads", program.grads), ("step_grads", program.step_grads)):
        if tuple(grads) != live:
            yield f"`{name}` does not have the operations that reach a state, in their order."
            continue
        yield from (
            f"`{name}` of {op.path}: {text}"
            for op in live
            for text in _of_op(program, op, grads[op])
        )
        read = {past.trace for terms in grads.values() for past in _pasts(terms)}
        yield from (
            f"`{name}` reads nothing of {node}." for node in program.traces if node not in read
        )


def _of_op(program: TraceProgram, op: WeightOp, terms: tuple[Term, ...]) -> Iterator[str]:
    node = program.of_op(op)
    own = terms_of(op, node, "step")
    all_at_end = node is not None and terms == (After(node),)
    for term in terms:
        if isinstance(term, Through) and term.past is not None and Through(*term[:2]) in own:
            if term.past not in own:
                yield f"the past that '{words(term)}' is joined with is not its own."
        elif term not in own and not all_at_end:
            yield f"'{words(term)}' does not belong to it."
    if node is None and any(isinstance(term, Past | After) for term in terms):
        yield "it has no trace, and a past."
    directs = [term for term in terms if isinstance(term, Direct | Through)]
    if program.window.credit == "window" and directs:
        yield "credit passes back through the window, which has the gradient within it."
    if sum(not isinstance(term, After) for term in _pasts(terms)) > 1:
        yield "its past counts twice."
    for term in terms:
        match term:
            case After(trace) if not isinstance(trace.form, ReadsEnd):
                yield _lacks(trace, "read_end", "read_after", "read after the step")
            case Through(_, _, Past(trace)) if not isinstance(trace.form, AddsToFirst):
                yield _lacks(trace, "first_data", "join_past", "added to the first step")


def _lacks(node: TraceNode, method: str, by: str, how: str) -> str:
    name = type(node.form).__name__
    return f"its past is {how}, and {name} has no `{method}`. {_placed(node, by)}, or give {name} the method."


def _placed(node: TraceNode, by: str) -> str:
    """Where the pass that gave a trace its form is to run."""
    name = type(node.form).__name__
    return f"Let the pass that puts {name} there run before `{by}`, as in `passes=(mine, *etpc.plan.DEFAULT)`"


def _pasts(terms: Iterable[Term]) -> list[Past | After]:
    """The terms that read what a trace carries, alone or joined with another."""
    found = [term.past if isinstance(term, Through) else term for term in terms]
    return [term for term in found if isinstance(term, Past | After)]


__all__ = ["check"]
