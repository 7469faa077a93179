"""Last stage: the compiled program, and how it is called."""

from ._check import check_first
from ._compile import compile
from ._online import Online, check_optimizer, moved, online, strong
from ._program import Carry, Memory, Program, without_past

__all__ = [
    "Carry",
    "Memory",
    "Online",
    "Program",
    "check_first",
    "check_optimizer",
    "compile",
    "moved",
    "online",
    "strong",
    "without_past",
]
