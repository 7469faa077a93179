"""A compilation from end to end, as one page that loads nothing, and as data for viewers of others."""

import os

from ..run import Program
from ._view import View


def view(
    program: Program,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
    batch_size: int | None = None,
    hlo: bool = True,
    on: str | None = None,
) -> View:
    """The view of a program; see [`Program.view`][etpc.Program.view]."""
    found = View(program, title, batch_size, hlo, on)
    if path is not None:
        found.write(path)
    return found


__all__ = ["View", "view"]
