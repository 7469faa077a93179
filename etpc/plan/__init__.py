"""Third stage: a trace program, without optimisations, and the passes that rewrite it."""

from ..analyse import data_of
from ._claims import Claim, Reason, claims
from ._filtered import NO_LESS
from ._paths import MovedStates, OutputPaths
from ._plain import AT_LEAST, last_steps
from ._plan import plan
from ._proofs import Proofs
from ._records import Group, OpPlan, Plan
from ._report import PassReport, PassReports
from ._select import DEFAULT_MEMORY, context
from .passes import DEFAULT, PASSES, Pass, chosen

__all__ = [
    "AT_LEAST",
    "DEFAULT",
    "DEFAULT_MEMORY",
    "NO_LESS",
    "PASSES",
    "Claim",
    "Group",
    "MovedStates",
    "OpPlan",
    "OutputPaths",
    "Pass",
    "PassReport",
    "PassReports",
    "Plan",
    "Proofs",
    "Reason",
    "chosen",
    "claims",
    "context",
    "data_of",
    "last_steps",
    "plan",
]
