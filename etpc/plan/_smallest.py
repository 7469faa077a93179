"""Which forms are proved to hold a whole trace in less memory, and where they take its place."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from ..algorithms import Backprop
from ..analyse import Analysis, Pattern, WeightOp, trace_dtype
from ..traces import Full, Site, bytes_of, size_of
from ._blocks import kept_of, lasting_states
from ._filtered import NO_LESS, Look, filtered
from ._holomorphic import holomorphic
from ._records import Found, Proved, Sketch


class Proofs:
    """What is proved of the whole traces of a program, for all values of its parameters; looked for when asked."""

    def __init__(self, analysis: Analysis, backprop: Backprop):
        self.analysis = analysis
        self.lasting = lasting_states(analysis) if backprop == "cut" else None
        """Which states are in a trace that is read at the start of a window alone; `None` for all."""

    def block(self, op: WeightOp) -> Pattern:
        """The states in the whole trace of an operation."""
        return kept_of(self.analysis.reach[op.number], self.lasting)

    def ends(self, op: WeightOp) -> bool:
        """Whether no later step reads what an operation does to the states, but as data that is held constant."""
        return self.analysis.reach[op.number].block.nnz > 0 and not self.block(op).nnz

    @cached_property
    def looks(self) -> Mapping[int, Look]:
        """What was found of operations whose outputs might share filtered inputs, by number."""
        reach = self.analysis.reach
        ops = [op for op in self.analysis.ops if reach[op.number].role == "state"]
        return filtered(self.analysis, {op: self.block(op) for op in ops if not self.ends(op)})

    def whole_size(self, op: WeightOp) -> int:
        """The fewest numbers, of one example, that are proved to hold the whole trace of an operation."""
        if self.ends(op):
            return 0
        block = int(np.diff(self.block(op).indptr).max(initial=0))
        whole = size_of(Full(), Site(op.kind, block, trace_dtype(self.analysis, op)))
        look = self.looks.get(op.number)
        if look is not None and look.proved is not None and _saves_enough(look.proved.size, whole):
            return look.proved.size
        return whole


def ended(proofs: Proofs, sketches: Iterable[Sketch]) -> set[int]:
    """The operations, by number, whose whole trace no later step reads, so that none is carried."""
    return {t.op.number for t in sketches if t.form == Full() and proofs.ends(t.op)}


def smallest(
    proofs: Proofs,
    sketches: Sequence[Sketch],
    owners: Mapping[int, int],
    passes: Collection[str],
) -> list[Sketch]:
    """The traces, where a smaller form that is proved to hold all of a whole trace takes the place of that.

    Traces that several operations share give way together or not at all.
    """
    whole = [t for t in sketches if t.form == Full() and t.directions is None]
    looks: dict[int, Look] = {}
    if "filtered" in passes and whole:
        of_blocks = proofs if "drop_unlasting" in passes else Proofs(proofs.analysis, "full")
        numbers = {t.op.number for t in whole}
        looks = {n: look for n, look in of_blocks.looks.items() if n in numbers}
    chosen: dict[int, Proved] = {}
    for t in whole:
        forms = [_filtered(t, looks.get(t.op.number))]
        if "holomorphic" in passes:
            forms.append(holomorphic(proofs.analysis, t.op, t.members, t.site))
        fitting = [p for p in forms if p is not None]
        if fitting:
            chosen[t.op.number] = min(fitting, key=lambda p: p.size)
    for members in _sharing(sketches, owners):
        new = [chosen[t.op.number].size for t in members if t.op.number in chosen]
        if len(new) < len(members) or not _saves_enough(
            sum(new), size_of(members[0].form, members[0].site)
        ):
            for t in members:
                chosen.pop(t.op.number, None)
                looks.pop(t.op.number, None)
    return [_with(t, chosen.get(t.op.number), looks.get(t.op.number)) for t in sketches]


def _filtered(t: Sketch, look: Look | None) -> Proved | None:
    """The filtered inputs that take the place of a whole trace, if they do."""
    proved = None if look is None else look.proved
    saves = proved is not None and _saves_enough(proved.size, size_of(t.form, t.site))
    return proved if saves else None


def _saves_enough(size: int, whole: int) -> bool:
    """Whether filtered inputs of some size take the place of a whole trace.

    They take at most half of it: those of two outputs each were 1.13 times as slow as the whole trace, with 32
    examples and an update at each step.
    """
    return 2 * size <= whole


def _sharing(sketches: Sequence[Sketch], owners: Mapping[int, int]) -> list[list[Sketch]]:
    """The traces that are one, where there are several."""
    by_owner: dict[int, list[Sketch]] = {}
    for t in sketches:
        by_owner.setdefault(owners[t.op.number], []).append(t)
    return [members for members in by_owner.values() if len(members) > 1]


def _with(t: Sketch, by: Proved | None, look: Look | None) -> Sketch:
    if by is None:
        why_not = "" if look is None else look.why_not or NO_LESS
        return dataclasses.replace(t, found=Found(why_not=why_not))
    found = Found(by.why, bytes=bytes_of(t.form, t.site))
    return dataclasses.replace(t, form=by.form, found=found)
