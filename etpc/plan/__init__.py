"""Third stage: a trace program, without optimisations, and the passes that rewrite it."""

from ._claims import Claim, Reason, claims
from ._plain import AT_LEAST, last_steps
from ._plan import plan
from ._proofs import Proofs
from ._records import Group, OpPlan, Plan
from ._select import DEFAULT_MEMORY, context
from .passes import DEFAULT, PASSES, Pass, chosen

__all__ = [
    "AT_LEAST",
    "DEFAULT",
    "DEFAULT_MEMORY",
    "PASSES",
    "Claim",
    "Group",
    "OpPlan",
    "Pass",
    "Plan",
    "Proofs",
    "Reason",
    "chosen",
    "claims",
    "context",
    "last_steps",
    "plan",
]
