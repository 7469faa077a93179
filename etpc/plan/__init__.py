"""Third stage: which trace each weight operation carries, and how the Jacobians are read."""

from ._blocks import Colouring, Columns, Index, Layout
from ._claims import Claim, Reason, claims
from ._pairs import Pairs
from ._plan import UNMARKED, Group, OpPlan, Plan, TracePlan, context, plan

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
