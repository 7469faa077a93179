"""A compiler from recurrent and spiking models to eligibility-trace programs."""

import importlib
from typing import TYPE_CHECKING, Any

from . import later
from ._jax import FOREIGN, mark
from .errors import (
    AlgorithmError,
    CheckpointError,
    Code,
    EtpcError,
    InputError,
    InputTypeError,
    MemoryLimitError,
    ModelError,
    SelectionError,
    SilentNetworkWarning,
    UncheckedWarning,
    UnsupportedError,
    VerificationError,
)

# The rest is imported when it is first asked for, so that `import etpc` takes hardly longer than
# `import jax, equinox`: the compiler needs SciPy and NetworkX.
if TYPE_CHECKING:
    from . import algorithms as algorithms
    from . import analyse as analyse
    from . import draw as draw
    from . import emit as emit
    from . import files as files
    from . import interop as interop
    from . import ir as ir
    from . import nn as nn
    from . import ops as ops
    from . import optim as optim
    from . import plan as plan
    from . import plot as plot
    from . import rules as rules
    from . import surrogate as surrogate
    from . import testing as testing
    from . import trace as trace
    from . import units as units
    from . import viewing as viewing
    from .algorithms import D_RTRL, ES_D_RTRL, RTRL, TBPTT, SnAp
    from .checking.check import Check, CheckedRow, Fault, check
    from .checking.compare import Comparison, Report, Result, compare, verify
    from .checking.suggest import Candidate, Suggestion, suggest
    from .checkpoint import load, load_weights, save
    from .definition import reference
    from .estimating.estimate import Estimate, EstimatedRow, estimate
    from .estimating.memory import Memory
    from .export.functions import ExportedFunctions, export_functions
    from .export.learner import Exported
    from .export.load import load_exported
    from .gradient.agreement import Row
    from .gradient.bptt import bptt
    from .nn import feedback
    from .plan import Claim, Reason
    from .rules import KFRTRL, OK, OSTL, OTPE, OTTT, RFLO, UORO, CreditRTRL, EProp
    from .run import Carry, Online, Program, compile, online
    from .scaling.carries import from_portable, join_streams, portable, take_streams
    from .scaling.mesh import OverMesh
    from .schedule import Target
    from .training.fit import Run, fit
else:
    _NAMES = {
        "algorithms": "D_RTRL ES_D_RTRL RTRL SnAp TBPTT",
        "checking.check": "Check CheckedRow Fault check",
        "checking.compare": "Comparison Report Result compare verify",
        "checking.suggest": "Candidate Suggestion suggest",
        "checkpoint": "load load_weights save",
        "definition": "reference",
        "nn": "feedback",
        "estimating.estimate": "Estimate EstimatedRow estimate",
        "estimating.memory": "Memory",
        "export.functions": "ExportedFunctions export_functions",
        "export.learner": "Exported",
        "export.load": "load_exported",
        "gradient.agreement": "Row",
        "gradient.bptt": "bptt",
        "plan": "Claim Reason",
        "rules": "CreditRTRL EProp KFRTRL OK OSTL OTPE OTTT RFLO UORO",
        "run": "Carry Online Program compile online",
        "scaling.carries": "from_portable join_streams portable take_streams",
        "scaling.mesh": "OverMesh",
        "schedule": "Target",
        "training.fit": "Run fit",
    }
    _FOLDERS = {
        *("algorithms", "analyse", "draw", "emit", "files", "interop", "ir", "nn", "ops", "optim"),
        *("plan", "plot", "rules", "surrogate", "testing", "trace", "units", "viewing"),
    }
    _named = later.names(__name__, _NAMES)

    def __getattr__(name: str) -> Any:
        if name not in _FOLDERS:
            return _named(name)
        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:  # for `hasattr` and `help` it is not there
            raise AttributeError(str(error)) from error

    def __dir__() -> list[str]:
        return sorted({*globals(), *_FOLDERS, *" ".join(_NAMES.values()).split()})


# What the primitives of these packages stand for is registered once one of them is imported.
FOREIGN.update(dict.fromkeys(("brainevent", "braintrace"), "etpc.interop._primitives"))

__version__ = "0.1.0"

__all__ = [
    "D_RTRL",
    "ES_D_RTRL",
    "KFRTRL",
    "OK",
    "OSTL",
    "OTPE",
    "OTTT",
    "RFLO",
    "RTRL",
    "TBPTT",
    "UORO",
    "AlgorithmError",
    "Candidate",
    "Carry",
    "Check",
    "CheckedRow",
    "CheckpointError",
    "Claim",
    "Code",
    "Comparison",
    "CreditRTRL",
    "EProp",
    "Estimate",
    "EstimatedRow",
    "EtpcError",
    "Exported",
    "ExportedFunctions",
    "Fault",
    "InputError",
    "InputTypeError",
    "Memory",
    "MemoryLimitError",
    "ModelError",
    "Online",
    "OverMesh",
    "Program",
    "Reason",
    "Report",
    "Result",
    "Row",
    "Run",
    "SelectionError",
    "SilentNetworkWarning",
    "SnAp",
    "Suggestion",
    "Target",
    "UncheckedWarning",
    "UnsupportedError",
    "VerificationError",
    "bptt",
    "check",
    "compare",
    "compile",
    "draw",
    "estimate",
    "export_functions",
    "feedback",
    "fit",
    "from_portable",
    "interop",
    "join_streams",
    "load",
    "load_exported",
    "load_weights",
    "mark",
    "nn",
    "online",
    "portable",
    "reference",
    "save",
    "suggest",
    "surrogate",
    "take_streams",
    "verify",
]
