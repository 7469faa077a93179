"""Last stage: the compiled program, and how it is called."""

from ._compile import compile
from ._online import Online, online
from ._program import Carry, Certificate, Memory, Program

__all__ = [
    "Carry",
    "Certificate",
    "Memory",
    "Online",
    "Program",
    "compile",
    "online",
]
