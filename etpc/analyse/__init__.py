"""Second stage: which weights reach which hidden states, and how."""

from ._analysis import Analysis, Escape, Reach, analyse
from ._check import check_pattern, register_pattern
from ._cost import one_step_block, uncut_block
from ._hidden import is_complex
from ._interpreter import Interpreter
from ._interpreter import Rule as PatternRule
from ._pattern import Pattern, columns_of, joined, numbering, pick, select, spread, union
from ._reach import closure
from ._size import trace_dtype, vector_dtype
from ._values import Numbering, Numbers
from ._weights import WeightOp

__all__ = [
    "Analysis",
    "Escape",
    "Interpreter",
    "Numbering",
    "Numbers",
    "Pattern",
    "PatternRule",
    "Reach",
    "WeightOp",
    "analyse",
    "check_pattern",
    "closure",
    "columns_of",
    "is_complex",
    "joined",
    "numbering",
    "one_step_block",
    "pick",
    "register_pattern",
    "select",
    "spread",
    "trace_dtype",
    "uncut_block",
    "union",
    "vector_dtype",
]
