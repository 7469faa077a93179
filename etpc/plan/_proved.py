"""Forms of traces that are proved from the program to hold all of a larger one."""

import dataclasses

from ..traces import Trace


@dataclasses.dataclass(frozen=True)
class Proved:
    """A form that is proved to hold the whole trace, and is smaller than that."""

    form: Trace
    size: int
    """How many numbers it carries for one example."""
    why: str
    """Why it holds the whole trace, also while parameters move."""
