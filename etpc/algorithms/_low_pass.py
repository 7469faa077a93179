"""What e-prop and OTPE have in common: a low-passed trace for all weights but those of the last layer."""

from ..analyse import before_readouts
from ..forms import Full, LowPassed
from ._algorithm import Choice, Context


def low_passed_before_readouts(context: Context, decay: float) -> Choice:
    """The low-passed trace of D-RTRL for what a readout or another layer reads; else the trace itself."""
    before = before_readouts(context.analysis)
    form = lambda op: LowPassed(decay) if op.number in before else Full()
    return Choice({op.number: form(op) for op in context.ops})
