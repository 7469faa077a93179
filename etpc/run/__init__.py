"""Last stage: the compiled program, and how it is called."""

from ._compile import compile
from ._program import Carry, Certificate, Memory, Program

__all__ = ["Carry", "Certificate", "Memory", "Program", "compile"]
