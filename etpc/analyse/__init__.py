"""Second stage: which weights reach which hidden states, and how."""

from ._analysis import Analysis, analyse
from ._cost import uncut_block
from ._weights import WeightOp

__all__ = ["Analysis", "WeightOp", "analyse", "uncut_block"]
