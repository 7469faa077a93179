"""Third stage: which trace each weight operation carries, and how the Jacobians are read."""

from ..traces import Pairs
from ._blocks import Colouring, Columns, Index, Layout
from ._claims import Claim, Reason, claims
from ._plan import BEHIND, plan
from ._proved import Proved, most
from ._records import Group, OpPlan, Plan, TracePlan, window_matters
from ._select import DEFAULT_MEMORY, UNMARKED
from ._smallest import proved

__all__ = [
    "BEHIND",
    "DEFAULT_MEMORY",
    "UNMARKED",
    "Claim",
    "Colouring",
    "Columns",
    "Group",
    "Index",
    "Layout",
    "OpPlan",
    "Pairs",
    "Plan",
    "Proved",
    "Reason",
    "TracePlan",
    "claims",
    "most",
    "plan",
    "proved",
    "window_matters",
]
