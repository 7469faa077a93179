"""The smallest exact trace of each operation, in place of a larger one that its rule gives it."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np

from ..algorithms import Backprop
from ..analyse import Analysis, Reach, WeightOp, trace_dtype
from ..traces import Ended, Full, Site, size_of
from ._blocks import kept_of, lasting_states
from ._filtered import Look, filtered
from ._holomorphic import holomorphic
from ._proved import Proved, most
from ._records import Found, Sketch

ENDED = Proved(Ended(), 0, "nothing is carried: no later step reads it but as cut data")


def proved(
    analysis: Analysis, ops: Collection[WeightOp], backprop: Backprop
) -> Mapping[int, Proved]:
    """The form of each operation that holds its whole trace in less memory, by number."""
    lasting = lasting_states(analysis) if backprop == "cut" else None
    ended = [op.number for op in ops if _ends(analysis.reach[op.number], lasting)]

    def limit(op: WeightOp) -> int:
        site = Site(op.kind, analysis.reach[op.number].size, trace_dtype(analysis, op))
        return most(size_of(Full(), site), exact=True)

    limits = {op: partial(limit, op) for op in ops if op.number not in ended}
    looks = filtered(analysis, limits, lasting)
    forms = {number: look.proved for number, look in looks.items() if look.proved}
    return forms | dict.fromkeys(ended, ENDED)


def smallest(
    analysis: Analysis,
    sketches: Sequence[Sketch],
    owners: Mapping[int, int],
    lasting: np.ndarray | None,
    passes: Collection[str],
) -> list[Sketch]:
    """The traces, where one that is proved to hold all of it takes the place of a larger one.

    A form that leaves something out also gives way to one that is as large. Traces that several operations share
    give way together or not at all.
    """
    candidates = [t for t in sketches if t.form.replaceable and t.directions is None]
    ended: list[int] = []
    if "drop_ended" in passes:
        ended = [t.op.number for t in candidates if _ends(analysis.reach[t.op.number], lasting)]
    if "drop_unlasting" not in passes:
        lasting = None
    looks: dict[int, Look] = {}
    if "filtered" in passes:
        left = [t for t in candidates if t.op.number not in ended]
        looks = filtered(analysis, {t.op: partial(_limit, t) for t in left}, lasting)
    chosen = dict.fromkeys(ended, ENDED)
    for t in candidates:
        look = looks.get(t.op.number)
        fitting = [look.proved] if look is not None and look.proved else []
        if "holomorphic" in passes and t.form == Full() and t.op.number not in chosen:
            block = kept_of(analysis.reach[t.op.number], lasting)
            of_complex = holomorphic(analysis, t.op, block, t.site)
            fitting += [] if of_complex is None else [of_complex]
        if fitting:
            chosen[t.op.number] = min(fitting, key=lambda p: p.size)
    sharing = _sharing(sketches, owners)
    for members in sharing:
        new = [chosen[t.op.number].size for t in members if t.op.number in chosen]
        if len(new) < len(members) or sum(new) > _limit(members[0]):
            for t in members:
                chosen.pop(t.op.number, None)
                looks.pop(t.op.number, None)
    return [_with(analysis, t, chosen.get(t.op.number), looks, lasting) for t in sketches]


def _limit(t: Sketch) -> int:
    """The most numbers that a form may have which takes the place of this one."""
    return most(size_of(t.form, t.site), t.form.exact)


def _sharing(sketches: Sequence[Sketch], owners: Mapping[int, int]) -> list[list[Sketch]]:
    """The traces that are one, where there are several."""
    by_owner: dict[int, list[Sketch]] = {}
    for t in sketches:
        by_owner.setdefault(owners[t.op.number], []).append(t)
    return [members for members in by_owner.values() if len(members) > 1]


def _ends(reach: Reach, lasting: np.ndarray | None) -> bool:
    """Whether no later step reads what an operation does to the states, but as data that is held constant."""
    return reach.block.nnz > 0 and not kept_of(reach, lasting).nnz


def _with(
    analysis: Analysis,
    t: Sketch,
    by: Proved | None,
    looks: Mapping[int, Look],
    lasting: np.ndarray | None,
) -> Sketch:
    if by is None:
        look = looks.get(t.op.number)
        return t if look is None else dataclasses.replace(t, found=Found(why_not=look.why_not))
    members = kept_of(analysis.reach[t.op.number], lasting)
    block = int(np.diff(members.indptr).max(initial=0))
    site = dataclasses.replace(t.site, block=block)
    found = Found(by.why, instead_of=(t.form, t.site))
    return dataclasses.replace(t, form=by.form, site=site, members=members, found=found)
