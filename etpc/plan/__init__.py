"""Third stage: which trace each weight operation carries, and how the Jacobians are read."""

from ._blocks import Colouring, Layout
from ._plan import Group, OpPlan, Plan, plan

__all__ = ["Colouring", "Group", "Layout", "OpPlan", "Plan", "plan"]
