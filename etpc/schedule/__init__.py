"""What a program is compiled for, and how its loops over traces are laid out there."""

from ._schedule import Schedule
from ._target import Target, target_of
from .accelerator import Unrolled
from .cpu import Pieces, zero_after

__all__ = ["Pieces", "Schedule", "Target", "Unrolled", "target_of", "zero_after"]
