"""Third stage: which trace each weight operation carries, and how the Jacobians are read."""

from ..traces import Pairs
from ._blocks import Colouring, Columns, Index, Layout
from ._claims import Claim, Reason, claims
from ._passes import PASSES, Change, PassReport, PassReports, checked_passes
from ._plan import BEHIND, plan
from ._records import Group, OpPlan, Plan, TracePlan, window_matters
from ._select import DEFAULT_MEMORY, UNMARKED, context
from ._smallest import Proofs

__all__ = [
    "BEHIND",
    "DEFAULT_MEMORY",
    "PASSES",
    "UNMARKED",
    "Change",
    "Claim",
    "Colouring",
    "Columns",
    "Group",
    "Index",
    "Layout",
    "OpPlan",
    "Pairs",
    "PassReport",
    "PassReports",
    "Plan",
    "Proofs",
    "Reason",
    "TracePlan",
    "checked_passes",
    "claims",
    "context",
    "plan",
    "window_matters",
]
