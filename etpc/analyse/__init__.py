"""Second stage: which weights reach which hidden states, and how."""

from ._analysis import Analysis, Escape, Reach, analyse
from ._check import check_pattern, register_pattern
from ._cost import one_step_block, uncut_block
from ._interpreter import Interpreter
from ._interpreter import Rule as PatternRule
from ._pattern import Pattern, joined, numbering, pick, select, spread, union
from ._size import trace_dtype, vector_dtype
from ._weights import WeightOp, by_equation, shifted

__all__ = [
    "Analysis",
    "Escape",
    "Interpreter",
    "Pattern",
    "PatternRule",
    "Reach",
    "WeightOp",
    "analyse",
    "by_equation",
    "check_pattern",
    "joined",
    "numbering",
    "one_step_block",
    "pick",
    "register_pattern",
    "select",
    "shifted",
    "spread",
    "trace_dtype",
    "uncut_block",
    "union",
    "vector_dtype",
]
