"""First stage: from a model to the canonical program of one step."""

from ._known import Known
from ._leaves import Leaves, path_text, repeat
from ._trace import Step, trace

__all__ = ["Known", "Leaves", "Step", "path_text", "repeat", "trace"]
