"""Which rank each low-rank trace gets: proved, or measured on a sample."""

import dataclasses
from typing import Literal

import numpy as np

from ..traces import Full, LowRank, Trace
from ._algorithm import Bound, Choice, Context

PROBED = 64
"""The rank from which a lower one is chosen where that is left open."""


def asked_rank(rank: "int | Literal['auto'] | None") -> int:
    """The rank of the traces that others are chosen from."""
    return rank if isinstance(rank, int) else PROBED


def settle_ranks(
    context: Context, choice: Choice, rank: "int | Literal['auto']", error: float
) -> Choice:
    """The form of each trace of a rule with a rank, or with `"auto"`.

    **Raises** `AlgorithmError` where a rank must be measured and there is no sample.
    """
    if context.bounds is None:
        return choice
    low = {number: form for number, form in choice.forms.items() if isinstance(form, LowRank)}
    bounds = context.bounds(low)
    forms, reasons = dict(choice.forms), dict(choice.reasons)
    measure: dict[int, Trace] = {}
    ops = {op.number: op for op in context.ops}
    for number, form in low.items():
        bound = bounds.get(number)
        if bound is None:  # it has no trace
            continue
        if bound.fixed <= form.rank:
            proved = min(bound.fixed if rank == "auto" else form.rank, bound.rank)
            forms[number] = dataclasses.replace(form, rank=proved, exact=True)
            reasons[number] = f"rank {proved} holds all of it: {_why(bound)}"
        elif rank == "auto" and form.settle(context.site(ops[number])) == form:
            measure[number] = form
    if measure and context.lost is not None:
        for number, lost in context.lost(measure).items():
            forms[number], reasons[number] = _smallest(low[number], lost, error)
    return Choice(forms, reasons)


def _why(bound: Bound) -> str:
    if bound.rank == bound.fixed:
        return "outputs have the same transitions, whatever the parameters are"
    return "its transitions depend on no data"


def _smallest(form: LowRank, lost: np.ndarray, error: float) -> tuple[Trace, str]:
    enough = np.flatnonzero(lost <= error)
    if not enough.size:
        return Full(), f"no rank up to {PROBED} keeps an error of {error:g}, so it is kept whole"
    rank = int(enough[0]) + 1
    reason = f"on the sample, rank {rank} leaves out {lost[rank - 1]:.2g} of it, of {error:g}"
    return dataclasses.replace(form, rank=rank), reason


__all__ = ["asked_rank", "settle_ranks"]
