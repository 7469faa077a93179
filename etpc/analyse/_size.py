"""The dtypes of what is carried."""

from typing import Any

import jax.numpy as jnp

from .._jax import result_type
from ._analysis import Analysis
from ._weights import WeightOp


def vector_dtype(analysis: Analysis) -> Any:
    """The dtype of the vector of states and of its Jacobians: at least float32."""
    return result_type(jnp.float32, *(part.dtype for part in analysis.hidden.parts))


def trace_dtype(analysis: Analysis, op: WeightOp) -> Any:
    """The dtype of the trace of an operation: that of the states, or complex if the operation is."""
    return result_type(vector_dtype(analysis), op.delta.dtype)
