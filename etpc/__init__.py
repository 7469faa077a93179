"""A compiler from recurrent and spiking models to eligibility-trace programs."""

from . import algorithms as algorithms
from . import analyse as analyse
from . import draw as draw
from . import emit as emit
from . import nn as nn
from . import ops as ops
from . import plan as plan
from . import surrogate as surrogate
from . import trace as trace
from ._errors import (
    AlgorithmError,
    CheckpointError,
    EtpcError,
    InputError,
    InputTypeError,
    MemoryLimitError,
    ModelError,
    SelectionError,
    UnsupportedError,
)
from ._jax import mark
from .algorithms import D_RTRL, ES_D_RTRL, RTRL, Auto, SnAp
from .checkpoint import load, save
from .compare import TBPTT, compare
from .run import (
    Carry,
    Certificate,
    Memory,
    Online,
    Program,
    RewardCarry,
    compile,
    online,
)
from .verify import bptt, verify

__version__ = "0.1.0"

__all__ = [
    "D_RTRL",
    "ES_D_RTRL",
    "RTRL",
    "TBPTT",
    "AlgorithmError",
    "Auto",
    "Carry",
    "Certificate",
    "CheckpointError",
    "EtpcError",
    "InputError",
    "InputTypeError",
    "Memory",
    "MemoryLimitError",
    "ModelError",
    "Online",
    "Program",
    "RewardCarry",
    "SelectionError",
    "SnAp",
    "UnsupportedError",
    "bptt",
    "compare",
    "compile",
    "draw",
    "load",
    "mark",
    "nn",
    "online",
    "save",
    "surrogate",
    "verify",
]
