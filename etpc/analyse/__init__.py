"""Second stage: which weights reach which hidden states, and how."""

from typing import TYPE_CHECKING

from .. import later
from ..trace import Step
from ._analysis import (
    Analysis,
    Dependence,
    Escape,
    Findings,
    Opaque,
    Reach,
    analyse,
    trace_dtype,
    with_transient,
)
from ._entries import Runs
from ._hidden import HiddenStates
from ._interpreter import Interpreter
from ._interpreter import Rule as PatternRule
from ._pattern import (
    Pattern,
    colours_of,
    columns_of,
    entries_of,
    joined,
    numbering,
    pick,
    select,
    spread,
    union,
    values_at,
)
from ._reach import closure
from ._values import Numbers
from ._weights import Split, WeightOp, by_equation, data_of, shifted, split

if TYPE_CHECKING:
    from ._check import check_pattern, register_pattern
    from ._commute import commuted, through
else:
    __getattr__ = later.names(
        __name__, {"_check": "check_pattern register_pattern", "_commute": "commuted through"}
    )

__all__ = [
    "Analysis",
    "Dependence",
    "Escape",
    "Findings",
    "HiddenStates",
    "Interpreter",
    "Numbers",
    "Opaque",
    "Pattern",
    "PatternRule",
    "Reach",
    "Runs",
    "Split",
    "Step",
    "WeightOp",
    "analyse",
    "by_equation",
    "check_pattern",
    "closure",
    "colours_of",
    "columns_of",
    "commuted",
    "data_of",
    "entries_of",
    "joined",
    "numbering",
    "pick",
    "register_pattern",
    "select",
    "shifted",
    "split",
    "spread",
    "through",
    "trace_dtype",
    "union",
    "values_at",
    "with_transient",
]
