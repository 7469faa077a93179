"""How large a trace is."""

import math
from typing import Any

import jax.numpy as jnp

from .._jax import result_type
from ..algorithms import Decay, Full, LowRank, TraceForm
from ..analyse import Analysis, WeightOp
from ..ops import Kind


def vector_dtype(analysis: Analysis) -> Any:
    """Of the vector of states and its Jacobians: at least float32."""
    return result_type(jnp.float32, *(part.dtype for part in analysis.hidden.parts))


def trace_dtype(analysis: Analysis, op: WeightOp) -> Any:
    """Of the trace of an operation: that of the states, and complex where the operation is."""
    return result_type(vector_dtype(analysis), op.delta.dtype)


def trace_shape(kind: Kind, form: TraceForm, block: int) -> Any:
    """Shape of the trace of one example; one shape for each factor where it is factored.

    Axes of groups and of block states are left out where they have length one: they would leave the
    layout of an array open, and XLA may copy it from one to another.
    """
    group = (kind.groups,) if kind.groups > 1 else ()
    states = (block,) if block > 1 else ()
    if isinstance(form, Decay):
        return (*group, kind.inputs), (*states, *group, kind.outputs)
    if isinstance(form, LowRank):
        factors = (form.rank, *group, kind.inputs), (form.rank, *states, *group, kind.outputs)
        bounds = (*states, *group, kind.outputs), (*group, kind.outputs)
        return (*factors, *bounds) if form.certificate else factors
    if kind.data is None:
        return (*states, kind.outputs)
    if kind.links is not None:
        return (*group, *states, kind.links.outputs.size)
    return (*group, kind.inputs, *states, kind.outputs)


def trace_bytes(kind: Kind, form: TraceForm, block: int, dtype: Any) -> int:
    """Bytes of the trace of one example."""
    shape = trace_shape(kind, form, block)
    item, real = (jnp.dtype(d).itemsize for d in (dtype, jnp.finfo(dtype).dtype))
    if isinstance(form, Full):
        return math.prod(shape) * item
    factors, bounds = shape[:2], shape[2:]
    size = item * sum(map(math.prod, factors)) + real * sum(map(math.prod, bounds))
    if isinstance(form, Decay):  # and how many steps the factors have seen
        size += real
    return size


def settled(form: TraceForm, kind: Kind, block: int) -> TraceForm:
    """The form itself, or the whole trace where that can have no higher rank, or is no larger."""
    if not isinstance(form, LowRank):
        return form
    whole = math.prod(trace_shape(kind, Full(), block))
    factors = sum(map(math.prod, trace_shape(kind, form, block)))
    full_rank = form.rank >= min(kind.inputs, block * kind.outputs)
    return Full() if full_rank or whole <= factors else form


__all__ = ["settled", "trace_bytes", "trace_dtype", "trace_shape", "vector_dtype"]
