"""Third stage: which trace each weight operation carries, and how the Jacobians are read."""

from ._blocks import Colouring, Layout
from ._choose import Choice, Costs, choose
from ._claims import Claim, Reason, claims
from ._pairs import Pairs
from ._plan import DEFAULT_MEMORY, UNMARKED, Group, OpPlan, Plan, plan, selected

__all__ = [
    "DEFAULT_MEMORY",
    "UNMARKED",
    "Choice",
    "Claim",
    "Colouring",
    "Costs",
    "Group",
    "Layout",
    "OpPlan",
    "Pairs",
    "Plan",
    "Reason",
    "choose",
    "claims",
    "plan",
    "selected",
]
