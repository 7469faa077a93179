"""Third stage: which trace each weight operation carries, and how the Jacobians are read."""

from ..traces import Pairs
from ._blocks import Colouring, Columns, Index, Layout
from ._claims import Claim, Reason, claims
from ._plan import plan
from ._records import Group, OpPlan, Plan, TracePlan
from ._select import UNMARKED, context

__all__ = [
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
    "Reason",
    "TracePlan",
    "claims",
    "context",
    "plan",
]
