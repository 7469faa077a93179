"""Third stage: which trace each weight operation carries, and how the Jacobians are read."""

from ._blocks import Colouring, Layout
from ._claims import Claim, Reason, claims
from ._pairs import Pairs
from ._plan import DEFAULT_MEMORY, UNMARKED, Group, OpPlan, Plan, plan, selected, traceable

__all__ = [
    "DEFAULT_MEMORY",
    "UNMARKED",
    "Claim",
    "Colouring",
    "Group",
    "Layout",
    "OpPlan",
    "Pairs",
    "Plan",
    "Reason",
    "claims",
    "plan",
    "selected",
    "traceable",
]
