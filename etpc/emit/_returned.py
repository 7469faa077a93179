"""The error for what a method of a form of trace returns, raised while a window is traced."""

from typing import Any

import equinox as eqx

from ..errors import AlgorithmError
from ..plan import TracePlan


def wrong_return(trace: TracePlan, method: str, value: Any, wanted: str) -> AlgorithmError:
    return AlgorithmError(
        f"{type(trace.form).__name__}.{method} returned {eqx.tree_pformat(value)} for the trace of {trace.op.path}. "
        f"It should return {wanted}."
    )


__all__ = ["wrong_return"]
