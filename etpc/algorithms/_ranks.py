"""Which low-rank traces hold all of it, as the program proves."""

import dataclasses

from ..traces import LowRank
from ._algorithm import Bound, Choice, Context


def with_proved_ranks(context: Context, choice: Choice) -> Choice:
    """The choice, where each trace of a rank that is proved to be enough has no more, and is exact."""
    if context.bounds is None:
        return choice
    low = {number: form for number, form in choice.forms.items() if isinstance(form, LowRank)}
    bounds = context.bounds(low)
    forms, reasons = dict(choice.forms), dict(choice.reasons)
    for number, form in low.items():
        bound = bounds.get(number)
        if bound is None or bound.fixed > form.rank:  # it has no trace, or may have a higher rank
            continue
        proved = min(form.rank, bound.rank)
        forms[number] = dataclasses.replace(form, rank=proved, exact=True)
        reasons[number] = f"rank {proved} holds all of it: {_why(bound)}"
    return Choice(forms, reasons)


def _why(bound: Bound) -> str:
    if bound.rank == bound.fixed:
        return "outputs have the same transitions, whatever the parameters are"
    return "its transitions depend on no data"


__all__ = ["with_proved_ranks"]
