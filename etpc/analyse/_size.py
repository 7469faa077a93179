"""The dtype of a trace."""

from typing import Any

from .._jax import result_type
from ._analysis import Analysis
from ._weights import WeightOp


def trace_dtype(analysis: Analysis, op: WeightOp) -> Any:
    """The dtype of the trace of an operation: that of the states, or complex if the operation is."""
    return result_type(analysis.hidden.dtype, op.delta.dtype)
