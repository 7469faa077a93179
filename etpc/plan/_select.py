"""Which weight operations may have a trace, as `weights=` says."""

from collections.abc import Collection

from ..algorithms import Context
from ..analyse import Analysis, WeightOp
from ..errors import Code, SelectionError, raise_together
from ._plain import Why
from ._proofs import Proofs

DEFAULT_MEMORY = 1 << 34
"""The bytes of traces that a program may have where `memory` is not given: 16 GiB."""
UNMARKED = Why(Code.NOT_MARKED, "it is not marked")
UNSELECTED = Why(Code.NOT_SELECTED, "it was not selected")

Selection = str | Collection[str] | None
"""`None` or `"all"`, `"marked"`, or parameter paths."""


def context(
    proofs: Proofs,
    weights: Selection = None,
    *,
    memory: int | None = None,
    batch_size: int = 1,
) -> Context:
    """What an algorithm chooses from; the other arguments are those of `plan`."""
    analysis = proofs.analysis
    chosen = selected(analysis, weights)
    ops = tuple(op for op in analysis.live if op.number in chosen)
    limit = DEFAULT_MEMORY if memory is None else memory
    return Context(analysis, ops, limit, batch_size, proofs.whole_size)


def selected(analysis: Analysis, weights: Selection) -> set[int]:
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
    reached = analysis.live
    if reached and not any(op.marked for op in reached):
        raise SelectionError(
            'weights="marked" gives no weight a trace: those that are marked '
            f"({_paths(marked)}) reach no hidden state, and those that do ({_paths(reached)}) are not "
            "marked. Mark these where they are used, or leave weights= out, which traces all of them."
        )
    return {op.number for op in marked}


def _paths(ops: Collection[WeightOp]) -> str:
    return ", ".join(dict.fromkeys(op.path for op in ops))
