"""How many steps are processed at once."""

import math

from ..plan import Plan
from ..plan._window import window_matters


def gradient_depends_on_window(plan: Plan) -> bool:
    """Whether another window would give another gradient."""
    return window_matters(plan.algorithm, plan.carried)


def window_for(plan: Plan, steps: int) -> int:
    """The window of a sequence: that of the plan, which the last one may be shorter than.

    Where it was chosen, and the gradient does not depend on it, one near it that divides `steps`.
    """
    wanted = plan.window
    if plan.algorithm.window == "auto" and not gradient_depends_on_window(plan):
        even = [w for w in range(wanted // 2, 2 * wanted + 1) if steps % w == 0]
        wanted = min(even, key=lambda w: abs(math.log(w / wanted)), default=wanted)
    return min(wanted, steps)


__all__ = ["gradient_depends_on_window", "window_for"]
