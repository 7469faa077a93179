"""The error for what a method of a form of trace returns, raised while a window is traced."""

from typing import Any

import equinox as eqx

from ..errors import AlgorithmError
from ..ir import TraceNode


def wrong_return(node: TraceNode, method: str, value: Any, wanted: str) -> AlgorithmError:
    return AlgorithmError(
        f"{type(node.form).__name__}.{method} returned {eqx.tree_pformat(value)} for the trace of {node.op.path}. "
        f"It should return {wanted}."
    )


__all__ = ["wrong_return"]
