"""Last stage: the compiled program, and how it is called."""

from typing import TYPE_CHECKING

from .. import later
from ._compile import compile
from ._online import Online, UpdateArguments, check_optimizer, online, strong, updated
from ._program import Carry, Program, without_past

if TYPE_CHECKING:
    from ._check import check_first
    from ._doubts import doubts, unread_traces
else:
    __getattr__ = later.names(
        __name__, {"_check": "check_first", "_doubts": "doubts unread_traces"}
    )

__all__ = [
    "Carry",
    "Online",
    "Program",
    "UpdateArguments",
    "check_first",
    "check_optimizer",
    "compile",
    "doubts",
    "online",
    "strong",
    "unread_traces",
    "updated",
    "without_past",
]
