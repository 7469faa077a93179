"""What every learning rule has, and what it is asked: data, and a choice of traces."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from ..analyse import Analysis, Step, WeightOp, analyse, trace_dtype
from ..errors import AlgorithmError, InputTypeError, origin
from ..forms import Extension, Full, Site, Trace
from ..ops import Kind
from ._settings import Check, check, count

Backprop = Literal["cut", "full"]
TraceForm = Trace


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a learning rule chooses for a program."""

    forms: Mapping[int, Trace | None]
    """The form of each trace, by the number of its operation; `None` for no trace."""
    reasons: Mapping[int, str] = dataclasses.field(default_factory=dict[int, str])
    """Why a trace has this form, by the same numbers, where the printed program should say it."""
    extension: Extension | None = None
    """What is carried besides traces, and adds rows to them."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What an algorithm chooses from."""

    analysis: Analysis
    ops: tuple[WeightOp, ...]
    """The operations that may have a trace."""
    memory: int
    """Bytes that all traces may take for the batch."""
    batch_size: int
    whole_size: Callable[[WeightOp], int]
    """The fewest numbers, of one example, in which the whole trace of an operation is proved to fit: none where no
    later step reads it, and fewer than it has entries where outputs are proved to have equal traces."""

    def site(self, op: WeightOp) -> Site:
        """What the trace of an operation knows of the operation."""
        reach = self.analysis.reach[op.number]
        return Site(op.kind, reach.size, trace_dtype(self.analysis, op))

    def escapes(self, op: WeightOp) -> bool:
        """Whether influence leaves the block of an operation."""
        reach = self.analysis.reach[op.number]
        return bool(reach.escapes) or not reach.block.nnz


NAMED = ("decay", "rank", "every", "everywhere", "kappa", "kept")
"""Settings that are shown with their names."""


@dataclasses.dataclass(frozen=True, repr=False)
class Algorithm:
    """What every learning rule has.

    - `window`: how many steps of `value_and_grad` are processed at once; `"auto"` chooses.
    - `backprop`: how credit flows inside a window. `"cut"` cuts as the trace does, and its gradient does
        not depend on the window. `"full"` is plain reverse mode inside the window.
    - `lookback`: K, the number of steps, the window among them, through which the credit of its
        losses goes back exactly; no less than the window. Windows are exact then, and the traces
        carry what is older. The inputs and states of K - W steps are kept, and run again each window,
        with the current weights at the states as they were.
    """

    window: int | Literal["auto"] = dataclasses.field(default="auto", kw_only=True)
    backprop: Backprop = dataclasses.field(default="cut", kw_only=True)
    lookback: int | None = dataclasses.field(default=None, kw_only=True, repr=False)
    checks: ClassVar[Mapping[str, Check]] = {
        "window": count("It is the number of steps that are processed at once.", "auto"),
        "lookback": count(
            "It is the number of steps through which credit goes back exactly.", None
        ),
    }
    """The check of each setting; the checks of all base classes apply."""
    name: ClassVar[str] = "algorithm"
    cut: ClassVar[bool] = True
    """Whether the data of operations that mix positions is held constant in the trace."""
    alias: ClassVar[str] = ""
    """The other name that the rule was asked for by; no part of what it is."""

    @property
    def in_blocks(self) -> bool:
        """Whether the rule is backpropagation through one block of steps after the other, which needs no program."""
        return False

    @property
    def reach(self) -> int | None:
        """For how many steps a trace follows influence; `None` for any number."""
        return None

    def __post_init__(self) -> None:
        check(self)
        count("It is the number of steps for which a trace follows influence.", None)(
            "reach", self.reach
        )
        if not isinstance(self.cut, bool):
            raise AlgorithmError(f"cut must be True or False, not {self.cut!r}.")
        if self.lookback is not None:
            object.__setattr__(self, "backprop", "full")
            if self.window != "auto" and self.lookback < self.window:
                raise AlgorithmError(
                    f"lookback={self.lookback} is less than window={self.window}. Credit goes back through the "
                    "whole window anyway: pass a larger lookback= or a smaller window=."
                )
        if self.backprop not in ("cut", "full"):
            raise AlgorithmError(f'backprop must be "cut" or "full", not {self.backprop!r}.')
        if self.reach is not None and self.backprop == "cut" and self.window not in ("auto", 1):
            raise AlgorithmError(
                f"{self} follows influence within {self.reach} steps alone, and so is processed step by step. This is "
                "because credit that passed back through the steps of a window would leave the traces and come back. "
                'Leave out window=, or pass backprop="full": nothing is cut inside a window, which is nearer to BPTT '
                "and mostly faster."
            )

    def analysis(self, step: Step) -> Analysis:
        """What the rule sees of a step: by default what `cut` and `reach` say. A rule may hold the data of some
        operations alone, by `analyse(step, cut=numbers)`; what it claims follows from that.

        A rule may also analyse another step, made from this one, as one with other derivatives. What that leaves out is
        for the rule to say: by an `Escape` in the `reach` of each operation that it is left out of, in an analysis with
        `given=step`. Without that the rule is refused, as it would claim to be exact."""
        return analyse(step, cut=self.cut, steps=self.reach)

    def also(self, analysis: Analysis) -> str:
        """Another name of the rule, or of what it is for this model; the printed program says it."""
        return self.alias

    def trace_form(self, kind: Kind) -> TraceForm | None:
        """The form of the trace of a kind of weight operation; `None` for no trace."""
        return Full()

    def choose(self, context: Context) -> Choice:
        """The form of the trace of each operation of a program."""
        return Choice({op.number: self.trace_form(op.kind) for op in context.ops})

    @property
    def main(self) -> dict[str, Any]:
        """The settings that are shown even in short."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if f.kw_only is not True and f.repr}

    def shown(self) -> list[str]:
        """The settings in `main` as arguments of a call."""
        return [f"{n}={v!r}" if n in NAMED else repr(v) for n, v in self.main.items()]

    @property
    def short(self) -> str:
        """Its name, with the settings in `main`."""
        settings = ", ".join(self.shown())
        return f"{type(self).__name__}({settings})" if settings else type(self).__name__

    def __str__(self) -> str:
        extra = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.kw_only is True and f.name not in self.main
            if f.repr or (f.compare and getattr(self, f.name) != f.default)
        }
        settings = ", ".join(f"{n}={v!r}" for n, v in (self.main | extra).items())
        return f"{type(self).__name__}({settings})"

    def __repr__(self) -> str:
        return str(self)


_NAMES: dict[str, type[Algorithm]] = {}


def register_algorithm(algorithm: type[Algorithm]) -> type[Algorithm]:
    """Let `etpc.compile` find an algorithm by its `name`.

    A class that is defined again, as where a cell of a notebook is run once more or a module is
    reloaded, takes the place of the one before.

    **Raises** `ValueError` where another algorithm has the name, or it has none of its own; `InputTypeError` for what
    is no class of algorithms.
    """
    if not (isinstance(algorithm, type) and issubclass(algorithm, Algorithm)):
        raise InputTypeError(f"A subclass of Algorithm is registered, not {algorithm!r}.")
    if algorithm.name == Algorithm.name:
        raise AlgorithmError(
            f'{algorithm.__name__} has no `name`. Write `name = "..."` in the class.'
        )
    taken = _NAMES.get(algorithm.name)
    if taken is not None and origin(taken) != origin(algorithm):
        raise ValueError(
            f"an algorithm named {algorithm.name!r} is registered already, {': '.join(origin(taken))}. Give "
            f"{': '.join(origin(algorithm))} another `name`."
        )
    _NAMES[algorithm.name] = algorithm
    return algorithm


def registered(loaded: bool = False) -> dict[str, type[Algorithm]]:
    """The algorithms that have a name, by name; or those alone that are `loaded`."""
    if not loaded:
        importlib.import_module("..rules", __package__)
    return dict(_NAMES)
