"""What a comparison of gradients says nothing of: parameters without a derivative, and traces that no loss reads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import Array

from ..gradient.agreement import not_finite
from ._program import Program


def doubts(program: Program, bptt: Mapping[str, np.ndarray], *data: Any) -> tuple[str, ...]:
    """Sentences on parameters of which nothing is compared, whatever the algorithm is; `data` as in `not_finite`."""
    zero = [
        f"the BPTT gradient of {path} is zero on this sequence, so nothing is compared"
        for path, value in bptt.items()
        if not value.any() and program.claims[path].claim != "unused"
    ]
    which = ", ".join(path for path, value in bptt.items() if not np.isfinite(value).all())
    if not which:
        return tuple(zero)
    origin = (
        "the data and the parameters are finite, so it comes from the step or the loss; "
        "`jax.config.update('jax_debug_nans', True)` shows the operation"
    )
    if found := not_finite(*data):
        origin = f"NaN or infinity is in {', '.join(found)}"
    return (*zero, f"the BPTT gradient of {which} is not finite, so nothing is compared: {origin}")


def first_read(program: Program, steps: int) -> int:
    """The first step of a sequence whose loss gives credit to a trace."""
    window = program.window_for(steps)
    return window * (program.ir.window.behind // window + 1)


def unread_traces(program: Program, steps: int, mask: Array | None) -> str | None:
    """Why no loss gives credit to a trace, so that its values are of no account; `None` where one does."""
    first = first_read(program, steps)
    if not program.plan.traced or (
        steps > first and (mask is None or bool((mask[first:] != 0).any()))
    ):
        return None
    kept = f" and lookback={program.algorithm.lookback}" if program.ir.window.behind else ""
    why = f"there are {steps}" if steps <= first else "no loss counts after them"
    return (
        f"no trace was read. With windows of {program.window_for(steps)} steps{kept}, the first {first} "
        f"need none, and {why}; take more steps, or a smaller `window=`"
    )
