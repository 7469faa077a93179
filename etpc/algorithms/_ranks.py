"""Which rank each low-rank trace gets: proved, or measured on a sample."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from .._errors import AlgorithmError
from ..traces import Filtered, Full, LowRank, Site, Trace
from ..traces._trace import size_of
from ._algorithm import Choice, Context

PROBED = 64
"""The rank from which a lower one is chosen where that is left open."""


def asked_rank(rank: "int | Literal['auto'] | None") -> int:
    """The rank of the traces that others are chosen from."""
    return rank if isinstance(rank, int) else PROBED


def settle_ranks(
    context: Context, choice: Choice, rank: "int | Literal['auto']", error: float, truncated: bool
) -> Choice:
    """The form of each trace of a rule with a rank, or with `"auto"`.

    **Raises** `AlgorithmError` where a rank must be measured and there is no sample.
    """
    low = {number: form for number, form in choice.forms.items() if isinstance(form, LowRank)}
    proved = context.filtered(truncated) if low else {}
    forms, reasons = dict(choice.forms), dict(choice.reasons)
    measure: dict[int, LowRank] = {}
    ops = {op.number: op for op in context.ops}
    for number, form in low.items():
        site = context.site(ops[number])
        settled, exact = form.settle(site), proved.get(number)
        if exact is not None and exact.size <= size_of(settled, site):
            forms[number] = exact.form
            reasons[number] = _why(exact.form, site)
        elif rank == "auto" and settled == form and site.block:
            measure[number] = form
    if measure:
        for number, lost in _lost(context, measure).items():
            forms[number], reasons[number] = _smallest(low[number], lost, error)
    return Choice(forms, reasons)


def _lost(context: Context, forms: Mapping[int, LowRank]) -> dict[int, np.ndarray]:
    """What a reduction of traces to rank 1, 2, ... leaves out on the sample, relative to their norm."""
    if context.traces is None:
        paths = ", ".join(dict.fromkeys(op.path for op in context.ops if op.number in forms))
        raise AlgorithmError(
            f'rank="auto" cannot prove a rank for the trace of {paths}. This is because its '
            "transitions depend on data. Pass sample= to etpc.compile, the inputs of some steps of "
            "one example, to have the rank measured, or name one."
        )
    left_out = {number: np.zeros(form.rank + 1) for number, form in forms.items()}
    for carried in context.traces(forms):
        for number in carried.keys() & forms.keys():
            squares = forms[number].squares(*carried[number])
            left_out[number][: squares.size] += np.cumsum(squares[::-1])[::-1]  # by rank 0, 1, ...
    whole = {number: by_rank[0] or 1.0 for number, by_rank in left_out.items()}
    return {number: np.sqrt(by_rank[1:-1] / whole[number]) for number, by_rank in left_out.items()}


def _why(form: Filtered, site: Site) -> str:
    count = form.count(site)
    hold = "filtered input holds" if count == 1 else "filtered inputs hold"
    why = "outputs have the same transitions, whatever the parameters are"
    if form.columns:
        why = "outputs have the same transitions, and how they are entered depends on no data"
    return f"{count} {hold} all of it: {why}"


def _smallest(form: LowRank, lost: np.ndarray, error: float) -> tuple[Trace, str]:
    enough = np.flatnonzero(lost <= error)
    if not enough.size:
        return Full(), f"no rank up to {PROBED} keeps an error of {error:g}, so it is kept whole"
    rank = int(enough[0]) + 1
    reason = f"on the sample, rank {rank} leaves out {lost[rank - 1]:.2g} of it, of {error:g}"
    return dataclasses.replace(form, rank=rank), reason


__all__ = ["asked_rank", "settle_ranks"]
