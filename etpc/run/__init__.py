"""Last stage: the compiled program, and how it is called."""

from ._compile import compile
from ._export import Exported, load_exported
from ._online import Online, check_first, moved, no_optimizer, online, strong
from ._program import Carry, Memory, Program, without_past

__all__ = [
    "Carry",
    "Exported",
    "Memory",
    "Online",
    "Program",
    "check_first",
    "compile",
    "load_exported",
    "moved",
    "no_optimizer",
    "online",
    "strong",
    "without_past",
]
