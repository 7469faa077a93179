"""What holds of each trace program, after each pass."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import jax.numpy as jnp

from ..analyse import WeightOp
from ..errors import AlgorithmError, Code, raise_together
from ..forms import AddsToFirst, ReadsEnd, Trace
from ._program import After, Direct, Past, Term, Through, TraceNode, TraceProgram, terms_of, words

_ORDER = re.compile(r"Let the pass that .* run before `")
"""Of a problem that another order of the passes mends."""


def check(program: TraceProgram, by: str = "plan") -> None:
    """**Raises** `AlgorithmError` for a program that is not one, with all that is wrong; `by` is what made it."""
    heading = f"{by} made a trace program that is not one:"
    problems = [*_of_traces(program), *_of_grads(program)]
    code = Code.PASS_ORDER if all(_ORDER.search(p) for p in problems) else Code.ALGORITHM
    raise_together(problems, AlgorithmError, heading if problems else "", code=code)


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
            for text in _of_op(program, op, grads[op], _terms_of(program, op, name))
        )
        read = {past.trace for terms in grads.values() for past in _pasts(terms)}
        yield from (
            f"`{name}` reads nothing of {node}." for node in program.traces if node not in read
        )


def _terms_of(program: TraceProgram, op: WeightOp, name: str) -> tuple[Term, ...]:
    """What the gradient through an operation is to be the sum of: in windows of one step it may all be read after the
    step, for the operations of a trace together."""
    node = program.of_op(op)
    if name == "step_grads" and node is not None:
        at_end = (After(node),)
        if program.step_grads.get(node.op) == at_end:
            return at_end if op is node.op else ()
    return terms_of(op, node, program.window.credit)


def _of_op(
    program: TraceProgram, op: WeightOp, terms: tuple[Term, ...], own: tuple[Term, ...]
) -> Iterator[str]:
    """Whether the terms are `own`, each once and in this order, where a past may be joined with what it follows."""
    joined = [term for term in terms if isinstance(term, Through) and term.past is not None]
    apart = [part for term in terms for part in _apart(term)]
    if program.of_op(op) is None and any(isinstance(term, Past | After) for term in apart):
        yield "it has no trace, and a past."
    if program.window.credit == "window" and any(isinstance(t, Direct | Through) for t in apart):
        yield "credit passes back through the window, which has the gradient within it."
    for term in dict.fromkeys(apart):
        if term not in own and any(term == through.past for through in joined):
            yield f"the past that '{words(joined[0])}' is joined with is not its own."
        elif term not in own:
            yield f"'{words(term)}' does not belong to it."
    for term in own:
        if term not in apart:
            yield f"'{words(term)}' is missing, so the gradient would lack a part."
        elif apart.count(term) > 1:
            yield f"its {type(term).__name__.lower()} counts twice."
    if apart != [*own] and Counter(apart) == Counter(own):
        yield f"its terms are in another order than {', '.join(map(words, own))}."
    for term in terms:
        match term:
            case After(trace) if not isinstance(trace.form, ReadsEnd):
                yield _lacks(trace, "read_end", "read_after", "read after the step")
            case Through(_, _, Past(trace)) if not isinstance(trace.form, AddsToFirst):
                yield _lacks(trace, "first_data", "join_past", "added to the first step")
            case After(trace) | Through(_, _, Past(trace)) if not program.has_credited(trace):
                by = "read_after" if isinstance(term, After) else "join_past"
                yield (
                    f"'{words(term)}' takes it that the trace has all states at which credit is taken, and some are "
                    f"left out of its blocks. Let the pass that leaves them out run before `{by}`."
                )


def _apart(term: Term) -> tuple[Term, ...]:
    """A term, and the past that is joined with it as one of its own."""
    if isinstance(term, Through) and term.past is not None:
        return term._replace(past=None), term.past
    return (term,)


def _lacks(node: TraceNode, method: str, by: str, how: str) -> str:
    name = type(node.form).__name__
    return f"its past is {how}, and {name} has no `{method}`. {_placed(node, by)}, or give {name} the method."


def _placed(node: TraceNode, by: str) -> str:
    """Where the pass that gave a trace its form is to run."""
    name = type(node.form).__name__
    return f"Let the pass that puts {name} there run before `{by}`, as in `passes=(mine, *etpc.plan.DEFAULT)`"


def _pasts(terms: Iterable[Term]) -> list[Past | After]:
    """The terms that read what a trace carries, alone or joined with another."""
    return [part for term in terms for part in _apart(term) if isinstance(part, Past | After)]


__all__ = ["check"]
