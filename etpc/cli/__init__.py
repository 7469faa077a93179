"""The command line, `etpc` or `python -m etpc`: explain, verify, draw and time a model, and keep its claims."""

from ._claims import claims_of
from ._main import main
from ._task import Task

__all__ = ["Task", "claims_of", "main"]
