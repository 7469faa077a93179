"""The command line, `etpc` or `python -m etpc`: explain, verify, draw and time a model."""

from ._main import main
from ._task import Task

__all__ = ["Task", "main"]
