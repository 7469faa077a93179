"""How large a trace is."""

import math
from typing import Any

import jax.numpy as jnp

from ..algorithms import Decay, TraceForm
from ..ops import Kind


def trace_shape(kind: Kind, form: TraceForm, block: int) -> Any:
    """Shape of the trace of one example; one shape for each factor where it is factored."""
    group = (kind.groups,) if kind.groups > 1 else ()
    if isinstance(form, Decay):
        return (*group, kind.inputs), (block, *group, kind.outputs)
    if kind.data is None:
        return (block, kind.outputs)
    if kind.links is not None:
        return (*group, block, kind.links.outputs.size)
    return (*group, kind.inputs, block, kind.outputs)


def trace_bytes(kind: Kind, form: TraceForm, block: int, dtype: Any) -> int:
    """Bytes of the trace of one example."""
    shape = trace_shape(kind, form, block)
    if not isinstance(form, Decay):
        return math.prod(shape) * jnp.dtype(dtype).itemsize
    size = sum(map(math.prod, shape)) * jnp.dtype(dtype).itemsize
    return size + jnp.finfo(dtype).dtype.itemsize  # and how many steps the factors have seen


__all__ = ["trace_bytes", "trace_shape"]
