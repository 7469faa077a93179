"""What the plan of a trace program says of its operations, as records."""

import dataclasses
from collections.abc import Callable

from jax import Array

from ..algorithms import Algorithm
from ..analyse import Analysis, Step, WeightOp
from ..errors import Code
from ..forms import Carry, Joined, Trace
from ..ir import TraceNode, TraceProgram
from .passes import Pass


@dataclasses.dataclass(frozen=True, eq=False)
class OpPlan:
    """What the program does with one weight operation."""

    op: WeightOp
    states: tuple[str, ...]
    """The paths of the hidden states that it reaches."""
    node: TraceNode | None
    """Its trace, if it has one; others may have the same."""
    exact: bool
    """Whether the gradient through this operation is that of BPTT."""
    lost: tuple[str, ...]
    """What the form of the trace, its dtype and the target's products leave out, in words."""
    escapes: tuple[str, ...]
    """What is left out, in words: by what is `lost`, and along paths on which influence leaves it. Empty where
    there is no trace, though one would not be zero."""
    reason: str
    """Why there is no trace; empty if there is one."""
    code: Code | None
    """The same for programs; `None` if there is one."""
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
        return None if self.node is None else self.node.form

    @property
    def block(self) -> int:
        """m, the most states that the trace of one output holds."""
        return 0 if self.node is None else self.node.block

    @property
    def owns(self) -> bool:
        """Whether it is the first of the operations that its trace is for."""
        return self.node is not None and self.node.op is self.op

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the arrays that hold its trace for one example."""
        return () if self.node is None else self.node.shapes

    @property
    def trace_shape(self) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
        """Shape of the trace of one example, [(G,) I, (m,) O] where it is full; one shape for each
        factor where it is factored. Axes of length one are left out for G and m."""
        return self.shapes[0] if len(self.shapes) == 1 else self.shapes

    @property
    def trace_bytes(self) -> int:
        """Bytes carried for one example; 0 if its trace is that of another operation too, which has them."""
        return self.node.bytes if self.owns and self.node is not None else 0

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
    """A trace program, and what it does with each weight operation."""

    ir: TraceProgram
    """What is carried, and what each gradient is the sum of; the emitter reads nothing else."""
    ops: tuple[OpPlan, ...]
    """One for each weight operation, in order, traced or not."""
    groups: tuple[Group, ...]
    passes: tuple[Pass, ...]
    """The passes that ran."""
    again: Callable[..., "Plan"] = dataclasses.field(repr=False)
    """The same with another `target=`."""

    analysis: Analysis = dataclasses.field(repr=False)
    """The step with its weight operations, as the rule sees it: without transient states, which `ir` may have."""

    @property
    def step(self) -> Step:
        """The step of the model itself, where the rule sees another."""
        return self.analysis.given or self.analysis.step

    @property
    def algorithm(self) -> Algorithm:
        return self.ir.algorithm

    @property
    def window(self) -> int:
        return self.ir.window.steps

    @property
    def traced(self) -> tuple[OpPlan, ...]:
        """The operations that have a trace."""
        return tuple(p for p in self.ops if p.node is not None)

    def shown(self, p: OpPlan, carry: Carry) -> dict[str, Array]:
        """The arrays that pictures show of the trace of one operation, by name, of one example."""
        assert p.node is not None
        feed = p.node.feeds[0]
        whole, kind = p.node.form.shown(p.node.site, carry), feed.kind
        if not isinstance(kind, Joined):
            return whole
        part = lambda a: kind.split(a)[feed.ops.index(p.op)] if a.shape[-1] == kind.inputs else a
        return {name: part(a) for name, a in whole.items()}

    def __str__(self) -> str:
        without = [p for p in self.ops if p.node is None]
        reasons = [f"no trace for {p.path}, {p.kind}: {p.reason}" for p in without]
        return "\n".join([f"{self.algorithm}", str(self.ir), *reasons])
