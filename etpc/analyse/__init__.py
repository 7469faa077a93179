"""Second stage: which weights reach which hidden states, and how."""

from ._analysis import Analysis, Escape, Reach, analyse
from ._cost import one_step_block, uncut_block
from ._size import trace_dtype, vector_dtype
from ._weights import WeightOp

__all__ = [
    "Analysis",
    "Escape",
    "Reach",
    "WeightOp",
    "analyse",
    "one_step_block",
    "trace_dtype",
    "uncut_block",
    "vector_dtype",
]
