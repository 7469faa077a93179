"""A product whose outputs share a linear memory acts on filtered data: `r' = d r + W z` is `r = W q`, `q' = d q + z`.

- Pattern: a product with a whole trace, whose data has a derivative, as that of a leaky readout has under e-prop and
  RTRL; then a product before it, whose outputs have further states behind a memory that they share.
- Proof and rewrite: of the step, before traces are chosen (`analyse/_commute.py`).
- Each weight before the product has one state instead of one for each output that it reaches. The pass applies where
  the traces and the filtered data together become smaller.
"""

import dataclasses
from collections.abc import Collection

import numpy as np

from ...algorithms import Algorithm, Context
from ...analyse import Analysis, WeightOp, analyse, split, trace_dtype
from ...forms import Full, Site, bytes_of
from ...ir import Change, TraceProgram
from .._proofs import Proofs
from ._pass import Pass

WHY = "its data is filtered by the memory that its outputs share"


def _before(algorithm: Algorithm, asked: Context) -> Analysis:
    analysis = asked.analysis
    # Another step answers for what it leaves out; an open block leaves out what depends on which states there are; and
    # a full window passes on what is held constant.
    answers = analysis.given is not None and not analysis.step.added
    held = [analysis.reach[number].dependence for number in analysis.cut]
    in_window = algorithm.backprop == "full" and any(reads.anything for reads in held)
    if answers or in_window or not all(reach.closed for reach in analysis.reach):
        return analysis
    proofs = Proofs.of(analysis, algorithm.backprop)
    found = [op for op in asked.ops if _worth(proofs, op)]
    choice = algorithm.choose(asked) if found else None
    if choice is None or choice.extension or not {*choice.forms.values()} <= {Full(), None}:
        return analysis
    for op in reversed(found):
        smaller = _smaller(algorithm, asked, op)
        if smaller is not None:
            return smaller
    return analysis


def _worth(proofs: Proofs, op: WeightOp) -> bool:
    """Whether filtered data may take the place of states."""
    reads = proofs.analysis.reach[op.number].dependence
    uncut = op.number not in proofs.analysis.cut and reads.anything
    before = proofs.analysis.step.added and np.diff(proofs.block(op).indptr).max() > 1
    return op.kind.data is not None and bool(uncut or before)


def _smaller(algorithm: Algorithm, asked: Context, op: WeightOp) -> Analysis | None:
    from ...analyse import commuted

    analysis = asked.analysis
    made = commuted(analysis, op, same=True)
    if made is None:
        return None
    before = {(o.equation, o.operand): o.number for o in analysis.ops}
    origin = [
        before[made.origin.get(o.equation, o.equation), o.operand] for o in split(made.step).ops
    ]
    cut = {new: old for new, old in enumerate(origin) if old in analysis.cut}
    found = analyse(made.step, cut=cut, steps=algorithm.reach)
    for new, old in cut.items():
        full = [a.in_full.get(n) for a, n in ((analysis, old), (found, new))]
        now, then = (None if f is None else f.elements.tobytes() for f in full)
        ops = {origin[n] for n in np.flatnonzero(found.reach[new].dependence.ops)}
        if now != then or not ops <= {*np.flatnonzero(analysis.reach[old].dependence.ops).tolist()}:
            return None
    escapes = [analysis.reach[old].escapes for old in origin]
    left_out = any(e and r.role != "state" for e, r in zip(escapes, found.reach, strict=True))
    saved = _numbers(algorithm, analysis) - _numbers(algorithm, found)
    if saved <= 0 or left_out:
        return None
    pairs = zip(found.reach, escapes, strict=True)
    reach = tuple(dataclasses.replace(r, escapes=e) for r, e in pairs)  # the gradient is the same
    selected = {origin.index(o.number) for o in asked.ops if o.number in origin}
    bytes = _whole(analysis, {o.number for o in asked.ops}) - _whole(found, selected)
    notes = (*analysis.derived.get(NAME, ()), Change(NAME, op.path, WHY, bytes))
    given = analysis.given or analysis.step
    return dataclasses.replace(found, reach=reach, given=given, derived={NAME: notes})


def _numbers(algorithm: Algorithm, analysis: Analysis) -> int:
    """How many numbers all traces and filtered data have."""
    proofs = Proofs.of(analysis, algorithm.backprop)
    filtered = sum(aval.size for _, aval in analysis.step.added)
    return filtered + sum(map(proofs.whole_size, analysis.live))


def _whole(analysis: Analysis, ops: Collection[int]) -> int:
    """The bytes of the traces of some operations, with all states of their blocks."""
    blocks = ((op, analysis.reach[op.number].size) for op in analysis.live if op.number in ops)
    sites = [Site(op.kind, size, trace_dtype(analysis, op)) for op, size in blocks if size]
    return sum(bytes_of(Full(), site) for site in sites)


def _run(program: TraceProgram) -> TraceProgram:
    return program.noted(*program.analysis.derived.get(NAME, ()))


NAME = "commute"
COMMUTE = Pass(
    NAME, "products act on data that is filtered by what follows them", _run, before=_before
)
