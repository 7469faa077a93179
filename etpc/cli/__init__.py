"""The command line, `etpc` or `python -m etpc`: explain, verify, draw and time a model, and keep its claims."""

from ._main import main
from ._task import Task, claims_of

__all__ = ["Task", "claims_of", "main"]
