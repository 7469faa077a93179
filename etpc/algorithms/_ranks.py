"""Which traces with a rank are sums of filtered inputs, as the program proves."""

from ..traces import Filtered, LowRank, Site
from ..traces._trace import size_of
from ._algorithm import Backprop, Choice, Context


def with_filtered(context: Context, choice: Choice, backprop: Backprop) -> Choice:
    """The choice, where each trace with a rank that filtered inputs hold in no more memory is those."""
    low = {number: form for number, form in choice.forms.items() if isinstance(form, LowRank)}
    proved = context.filtered(backprop) if low else {}
    forms, reasons = dict(choice.forms), dict(choice.reasons)
    sites = {op.number: context.site(op) for op in context.ops}
    for number in low.keys() & proved.keys():
        exact, site = proved[number], sites[number]
        if exact.size <= size_of(low[number].settle(site), site):
            forms[number] = exact.form
            reasons[number] = _why(exact.form, site)
    return Choice(forms, reasons)


def _why(form: Filtered, site: Site) -> str:
    count = form.count(site)
    hold = "filtered input holds" if count == 1 else "filtered inputs hold"
    why = "outputs have the same transitions, whatever the parameters are"
    if form.columns:
        why = "outputs have the same transitions, and how they are entered depends on no data"
    return f"{count} {hold} all of it: {why}"


__all__ = ["with_filtered"]
