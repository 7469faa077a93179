"""What the methods of a form of trace return, checked while a window is traced."""

from typing import Any

import equinox as eqx

from .._errors import AlgorithmError
from ..plan import TracePlan


def check_returned(is_right: bool, trace: TracePlan, method: str, value: Any, wanted: str) -> None:
    """**Raises** `AlgorithmError` where a method returned something else than it should."""
    if not is_right:
        raise AlgorithmError(
            f"{type(trace.form).__name__}.{method} returned {eqx.tree_pformat(value)} for the trace of "
            f"{trace.op.path}. It should return {wanted}."
        )


__all__ = ["check_returned"]
