"""How many steps are processed at once."""

import math

from ..plan import Plan


def gradient_depends_on_window(plan: Plan) -> bool:
    """Whether another window would give another gradient.

    Under `in_window="exact"` nothing is cut inside a window, and a low-rank trace is reduced after
    each.
    """
    exact = plan.algorithm.in_window == "exact"
    return exact or any(p.form is not None and p.form.window_matters for p in plan.carried)


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
