"""Last stage: the compiled program, and how it is called."""

from ._compile import compile
from ._program import Carry, Memory, Program

__all__ = ["Carry", "Memory", "Program", "compile"]
