"""From a plan to the functions of its windows."""

from typing import Any

from ..plan import Plan
from ._lookback import LookBack
from ._reverse import Reverse
from ._step import StepFunctions
from ._truncated import Truncated
from ._window import Window


def emit(plan: Plan) -> Window[Any]:
    """Emit the functions of a plan."""
    step = StepFunctions(plan.analysis)
    if plan.algorithm.backprop == "cut":
        return Truncated(plan, step)
    return LookBack(plan, step) if plan.behind else Reverse(plan, step)
