"""What the plan of a trace program says, as records."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax import Array

from ..algorithms import Algorithm
from ..analyse import Analysis, Pattern, WeightOp
from ..traces import Carry, Directions, Joined, Site, Trace, bytes_of
from ._blocks import Colouring, Index, Layout
from ._passes import Change


@dataclasses.dataclass(frozen=True)
class Proved:
    """A form that is proved to hold the whole trace, and is smaller than that."""

    form: Trace
    size: int
    """How many numbers it carries for one example."""
    why: str
    """Why it holds the whole trace, also while parameters move."""


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What was found where a smaller form was looked for that holds the whole trace."""

    why: str = ""
    """Why the trace has the form that was found; empty where none was."""
    why_not: str = ""
    """Why there is no such form, or none that is smaller."""
    bytes: int = 0
    """The bytes of the whole trace in whose place the form is that was found, for one example."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """The trace of one weight operation, but for its tables."""

    op: WeightOp
    form: Trace
    site: Site
    """What the form knows of the operation; its block ends with the virtual states, if there are some."""
    members: Pattern
    """Outputs x states: the states that the trace of each output holds."""
    closed: bool
    """Whether a block contains all that it reaches, so that nothing leaves the trace that way."""
    directions: Directions | None
    """The directions along which influence that escapes from the trace is followed, if it is."""
    found: Found = dataclasses.field(default=Found(), kw_only=True)
    """What was found where a smaller form was looked for."""

    @property
    def virtual(self) -> int:
        """How many virtual states the trace has besides the block."""
        return 0 if self.directions is None else self.directions.count

    @property
    def block(self) -> int:
        """m, the most states that one output has."""
        return self.site.block - self.virtual

    @property
    def dtype(self) -> Any:
        """At least float32, and complex where the operation is."""
        return self.site.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class TracePlan(Sketch):
    """The trace of one weight operation."""

    layout: Layout
    """Where `D` lies in the compressed Jacobian."""
    immediate: Index
    """Where `F` lies in the compressed Jacobian."""
    shares: int | None
    """The number of an operation whose trace is also that of this one; `None` if it has its own."""
    beside: bool
    """Whether the data of this operation lies beside that of the other in the trace, as the outputs of both are added
    up. Else both have the same weight, and the trace is the sum of theirs."""

    @property
    def summed(self) -> bool:
        """Whether it is added to the trace of another use of its weight, and so takes no memory."""
        return self.shares is not None and not self.beside

    @property
    def own(self) -> Site:
        """The site without the data of other operations."""
        return dataclasses.replace(self.site, kind=self.op.kind)

    @property
    def _twice(self) -> Site:
        """The site with this data beside itself."""
        return dataclasses.replace(self.site, kind=Joined((self.op.kind, self.op.kind)))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the arrays of one example, as if no other operation had a part in them. Of an operation whose
        data lies beside that of another it is the part with its data."""
        own = self.form.shapes(self.own)
        if not self.beside:
            return own
        twice = self.form.shapes(self._twice)
        return tuple(shape for shape, other in zip(own, twice, strict=True) if shape != other)

    @property
    def bytes(self) -> int:
        """Bytes that are carried for one example."""
        if self.summed:
            return 0
        own = bytes_of(self.form, self.own)
        return bytes_of(self.form, self._twice) - own if self.beside else own


@dataclasses.dataclass(frozen=True, eq=False)
class OpPlan:
    """What the program does with one weight operation."""

    op: WeightOp
    states: tuple[str, ...]
    """The paths of the hidden states that it reaches."""
    trace: TracePlan | None
    """Its trace, if it has one."""
    exact: bool
    """Whether the gradient through this operation is that of BPTT."""
    escapes: tuple[str, ...]
    """What is left out, in words: by the form of the trace, and along paths on which influence leaves it. Empty where
    there is no trace, though one would not be zero."""
    reason: str
    """Why there is no trace; empty if there is one."""
    choice: str
    """Why the trace has this form, where the algorithm chose it."""

    @property
    def path(self) -> str:
        return self.op.path

    @property
    def kind(self) -> str:
        return self.op.kind.name

    @property
    def form(self) -> Trace | None:
        """The form of its trace, or `None` if it has none."""
        return None if self.trace is None else self.trace.form

    @property
    def block(self) -> int:
        """m, the most states that the trace of one output holds."""
        return 0 if self.trace is None else self.trace.block

    @property
    def shares(self) -> int | None:
        """The number of an operation whose trace is also that of this one."""
        return None if self.trace is None else self.trace.shares

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the arrays that hold the trace of one example."""
        return () if self.trace is None else self.trace.shapes

    @property
    def trace_shape(self) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
        """Shape of the trace of one example, [(G,) I, (m,) O] where it is full; one shape for each
        factor where it is factored. Axes of length one are left out for G and m."""
        return self.shapes[0] if len(self.shapes) == 1 else self.shapes

    @property
    def trace_bytes(self) -> int:
        """Bytes carried for one example; 0 if it shares a trace."""
        return 0 if self.trace is None else self.trace.bytes

    def __repr__(self) -> str:
        return f"OpPlan({self.path}, {self.kind}, block={self.block}, exact={self.exact})"


@dataclasses.dataclass(frozen=True)
class Group:
    """Hidden states that share blocks, and the weight operations that reach them."""

    states: tuple[str, ...]
    ops: tuple[str, ...]
    block: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is carried and how it is moved; the emitter reads nothing else."""

    analysis: Analysis
    algorithm: Algorithm
    ops: tuple[OpPlan, ...]
    """One for each weight operation, in order, traced or not."""
    groups: tuple[Group, ...]
    colours: Colouring
    window: int
    window_reason: str
    """Why the window that was chosen is not the least; else empty."""
    passes: frozenset[str]
    """The names of the passes that may run."""
    changes: Mapping[str, tuple[Change, ...]]
    """What the passes over the traces changed, by name."""

    @property
    def dtype(self) -> Any:
        """Of the vector of states and its Jacobians: at least float32, so that long traces add up."""
        return self.analysis.hidden.dtype

    @property
    def directions(self) -> Directions | None:
        """The directions along which influence is followed that escapes from the traces; `None` where none
        escapes, or the algorithm follows none."""
        return next((t.directions for t in self.traces if t.directions is not None), None)

    @property
    def behind(self) -> int:
        """How many steps before a window its credit goes back through."""
        lookback = self.algorithm.lookback
        return 0 if lookback is None else max(lookback - self.window, 0)

    @property
    def traced(self) -> tuple[OpPlan, ...]:
        """The operations that have a trace."""
        return tuple(p for p in self.ops if p.trace is not None)

    @property
    def traces(self) -> tuple[TracePlan, ...]:
        """The traces of these operations."""
        return tuple(p.trace for p in self.ops if p.trace is not None)

    @property
    def carried(self) -> tuple[TracePlan, ...]:
        """The traces that no other trace holds."""
        return tuple(t for t in self.traces if t.shares is None)

    def beside(self, trace: TracePlan) -> tuple[WeightOp, ...]:
        """The other operations whose data lies in a trace, beside that of its own one."""
        if not isinstance(trace.site.kind, Joined):
            return ()
        return tuple(t.op for t in self.traces if t.beside and t.shares == trace.op.number)

    def shown(self, trace: TracePlan, carry: Carry) -> dict[str, Array]:
        """The arrays that pictures show of the trace of one operation, by name, of one example."""
        owner = next(t for t in self.carried if t.op.number in (trace.op.number, trace.shares))
        whole, kind = owner.form.shown(owner.site, carry), owner.site.kind
        if not isinstance(kind, Joined):
            return whole
        number = [owner.op, *self.beside(owner)].index(trace.op)
        part = lambda a: kind.split(a)[number] if a.shape[-1] == kind.inputs else a
        return {name: part(a) for name, a in whole.items()}

    @property
    def window_divides(self) -> bool:
        """Whether a window is chosen near this one that divides the number of steps, where one does.

        Where the steps are not cut, it is this one for all sequences: a gradient depends much more on the length of
        such windows than on how often a trace is reduced.
        """
        automatic = self.algorithm.window == "auto" and self.algorithm.backprop == "cut"
        return automatic and not self.one_step

    @property
    def one_step(self) -> bool:
        """Whether windows have one step, whatever is asked for."""
        return one_step(self.algorithm, self.traces)

    def window_for(self, steps: int) -> int:
        """The window for a sequence of so many steps, the last of which may be shorter."""
        window = self.window
        if self.window_divides:
            divisors = [w for w in range(window // 2, 2 * window + 1) if steps % w == 0]
            window = min(divisors, key=lambda w: abs(math.log(w / window)), default=window)
        return min(window, steps)

    def __str__(self) -> str:
        rows = [f"plan for {self.algorithm}: {self.colours} a step"]
        for p in self.ops:
            text = f"trace {p.trace_shape}" if p.trace is not None else f"no trace: {p.reason}"
            rows.append(f"  {p.path} {p.kind}: {text}")
        return "\n".join(rows)


def one_step(algorithm: Algorithm, traces: Sequence[TracePlan]) -> bool:
    """Whether credit cannot pass back through the steps of a window.

    Credit that leaves a block that is not closed may come back to it, while influence that leaves it is lost. So
    each output would need credit of its own.
    """
    return algorithm.backprop == "cut" and not all(t.closed for t in traces)


def window_matters(algorithm: Algorithm, traces: Sequence[TracePlan]) -> bool:
    """Whether another window would give another gradient.

    With `backprop="full"` nothing is cut inside a window; and some forms, such as a low rank, reduce the
    trace after each window.
    """
    return algorithm.backprop == "full" or any(t.form.window_matters for t in traces)
