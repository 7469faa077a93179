"""First stage: from a model to the canonical program of one step."""

from ._known import Known
from ._leaves import Leaves, paths_of, repeat
from ._trace import Step, trace

__all__ = ["Known", "Leaves", "Step", "paths_of", "repeat", "trace"]
