"""Errors for what a method of a form of trace returns, raised while a window is traced."""

from typing import Any

import equinox as eqx
from jax import Array

from ..errors import AlgorithmError
from ..ir import TraceNode


def wrong_return(node: TraceNode, method: str, value: Any, wanted: str) -> AlgorithmError:
    return AlgorithmError(
        f"{type(node.form).__name__}.{method} returned {eqx.tree_pformat(value)} for the trace of {node.op.path}. "
        f"It should return {wanted}."
    )


def checked_gradient(node: TraceNode, method: str, found: Any, others: str = "") -> Array:
    """What a method of a form returned as the gradient of the weight."""
    shape = node.op.weight.shape
    if getattr(found, "shape", None) == shape:
        return found
    raise wrong_return(node, method, found, f"{others}the gradient of the weight, {list(shape)}")
