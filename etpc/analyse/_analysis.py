"""Which weights reach which hidden states, from the patterns of the cut step."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
import scipy.sparse as sp

from .._jax import Flat, Variable, result_type
from ..errors import InputError
from ..trace import Step
from ._escapes import Dependence, Escape, Influence
from ._hidden import HiddenStates
from ._in_full import InFull, in_full
from ._interpreter import Opaque
from ._pattern import Pattern, columns_of
from ._patterns import linearise, propagate
from ._reach import within
from ._weights import Split, WeightOp, data_of, split


@dataclasses.dataclass(frozen=True, eq=False)
class Reach:
    """What one weight operation reaches."""

    role: str
    """`"state"` (directly or through other operations), `"output"` alone, or `"nothing"`."""
    block: Pattern
    """`N(o)`, outputs x states: the states that each output has a lasting influence on, or the states that it
    reaches in a number of steps."""
    closed: bool
    """Whether the block holds every state that its states ever reach."""
    dependence: Dependence
    """What the data depends on within the cut step."""
    escapes: tuple[Escape, ...]
    """Paths along which influence leaves the trace; empty where the trace is exact."""

    @property
    def size(self) -> int:
        """m, the largest number of states in the block of an output."""
        return int(np.diff(self.block.indptr).max(initial=0))

    @cached_property
    def states(self) -> np.ndarray:
        """The states in any block, in order."""
        return columns_of(self.block)


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """Where the patterns have too many entries, or hold for some values only."""

    opaque: tuple[Opaque, ...]
    """Operations without a pattern rule, taken as dense."""
    unbounded: tuple[str, ...]
    """Source lines of `while` loops that a derivative passes through: these have no reverse mode."""
    nonlinear: tuple[str, ...]
    """Source lines of backward rules that are not linear, if a state depends on one."""
    assumed: tuple[int, ...]
    """The numbers of the array leaves of the model whose values the patterns rely on."""


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """A step with its weight operations, sparsity patterns, and what each operation reaches."""

    step: Step
    split: Split
    cut: frozenset[int]
    """The numbers of the operations whose data is held constant."""
    transition: Pattern
    """`D`: new states x old states."""
    immediate: tuple[Pattern, ...]
    """`F`: for each operation, new states x outputs."""
    reach: tuple[Reach, ...]
    outputs: tuple[Dependence, ...]
    """What each output leaf depends on."""
    in_full: Mapping[int, InFull]
    """What operations whose data is held constant read in full, by their numbers."""
    hidden: HiddenStates
    findings: Findings
    tangents: Flat
    """The tangents of the new states, in parts, as a program; see `linearise`."""
    given: Step | None = None
    """The step whose gradients `reach` speaks of, where `step` is made from it: by these words a rule answers for all
    that the change leaves out, with an `Escape` for each operation that it is left out of."""
    derived: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)
    """What later stages worked out of it, kept here so that it is worked out once."""

    @property
    def ops(self) -> tuple[WeightOp, ...]:
        return self.split.ops

    @cached_property
    def live(self) -> tuple[WeightOp, ...]:
        """The operations that reach a state."""
        return tuple(op for op in self.ops if self.reach[op.number].role == "state")

    def __str__(self) -> str:
        size = self.hidden.size
        lines = [f"analysis of {size} hidden states, D has {self.transition.nnz} entries"]
        for op, reach in zip(self.ops, self.reach, strict=True):
            lines.append(f"  {op}: reaches {reach.role}, block {reach.size}")
            lines += [f"    escapes: {path}" for path in reach.escapes]
        lines += [f"  taken as dense: {o.primitive} at {o.source}" for o in self.findings.opaque]
        return "\n".join(lines)


def trace_dtype(analysis: Analysis, op: WeightOp) -> Any:
    """The dtype of the trace of an operation: that of the states, or complex if the operation is."""
    return result_type(analysis.hidden.dtype, op.delta.dtype)


def analyse(
    step: Step, *, cut: bool | Collection[int] = True, steps: int | None = None
) -> Analysis:
    """Find the weight operations of a step, the patterns of its Jacobians, and the blocks.

    **Arguments:**

    - `step`: from [`etpc.trace.trace`][].
    - `cut`: whether the data of operations that mix positions is held constant, as in D-RTRL; or the numbers of those
        whose data is. An element-wise operation has no such data, and its `kind.data` is `None`.
    - `steps`: keep in a block what is reached in so many steps; `None` for all that is ever reached.

    **Raises** `MemoryLimitError` where the patterns would be too large to form; `InputError` for what is in `cut` and
    is no number of an operation that mixes positions.
    """
    parts = split(step)
    hidden, ops = HiddenStates.of(step, parts), parts.ops
    mixing = frozenset(op.number for op in ops if op.kind.data is not None)
    held = frozenset(cut) if isinstance(cut, Collection) else mixing if cut else frozenset[int]()
    if unknown := [n for n in held if n not in mixing]:
        known = "; ".join(f"{op.number} ({op})" for op in ops if op.number in mixing)
        raise InputError(
            f"cut= takes the numbers of operations that mix positions, and {unknown[0]!r} is none of these: "
            f"{known or 'this step has none'}. This is because their data can be held constant; an element-wise "
            "operation has none. `etpc.analyse.split(step).ops` has all operations of a step."
        )
    return _found(step, parts, hidden, held, steps)


def with_transient(analysis: Analysis, values: Mapping[Variable, str]) -> Analysis:
    """The analysis with some values of the step, and names for them, as new states that are not carried."""
    a = analysis
    hidden = HiddenStates.of(a.step, a.split, values)
    found = _found(a.step, a.split, hidden, a.cut, None)
    pairs = zip(a.reach, found.reach, strict=True)
    said = lambda old: dict(closed=old.closed, escapes=old.escapes)
    reach = tuple(dataclasses.replace(new, **said(old)) for old, new in pairs)
    return dataclasses.replace(found, reach=reach, given=a.given)


def _found(
    step: Step, parts: Split, hidden: HiddenStates, held: frozenset[int], steps: int | None
) -> Analysis:
    ops = parts.ops
    data = [data_of(op) for op in ops]
    wanted = [v for v in dict.fromkeys([*data, *parts.outputs]) if v is not None and v.is_float]
    tangents = linearise(step, parts, hidden, held, wanted)
    sizes = [math.prod(a.shape) for a in (*hidden.parts, *(op.delta for op in ops))]
    with jax.ensure_compile_time_eval():  # also where a program is compiled inside `jax.jit`
        patterns, interpreter, relied = propagate(tangents, step, sizes)

    bounds = np.cumsum([hidden.size, *(op.size for op in ops)])
    new_states = sp.csr_array(sp.vstack(patterns[: len(hidden.parts)], format="csr"))
    pattern_of = dict(zip(wanted, patterns[len(hidden.parts) :], strict=True))
    transition = sp.csr_array(new_states[:, : hidden.size])
    immediate = tuple(sp.csr_array(new_states[:, a:b]) for a, b in itertools.pairwise(bounds))
    reads = lambda v: _dependence(None if v is None else pattern_of.get(v), bounds)
    outputs = tuple(map(reads, parts.outputs))
    influence = Influence(ops, held, hidden, immediate, list(map(reads, data)))
    findings = Findings(
        (*interpreter.opaque, *parts.dense),
        tuple(interpreter.unbounded),
        tuple(interpreter.nonlinear) if new_states[:, [bounds[-1]]].nnz else (),
        tuple(i for i, v in enumerate(step.parameters) if v in parts.assumed or i in relied),
    )
    reach = _reached(influence, outputs, transition, steps)
    cut = [op for op in ops if op.number in held and reach[op.number].role == "state"]
    full = in_full(cut, pattern_of, [r.block for r in reach], bounds)
    return Analysis(
        step, parts, held, transition, immediate, reach, outputs, full, hidden, findings, tangents
    )


def _reached(
    influence: Influence, outputs: Sequence[Dependence], transition: Pattern, steps: int | None
) -> tuple[Reach, ...]:
    """What each operation reaches: ever, or in this number of steps."""
    hidden = influence.hidden
    read_by_outputs = np.zeros(len(influence.ops), bool)
    for reads in outputs:
        read_by_outputs |= reads.ops
    to_output = influence.upstream(read_by_outputs)
    reach = []
    for k, op in enumerate(influence.ops):
        block, beyond = within(sp.csr_array(influence.immediate[k].T), transition, steps)
        is_state = hidden.reach_output and influence.to_state[k]
        role = "state" if is_state else "output" if to_output[k] else "nothing"
        escapes = influence.escapes(op, block)
        if beyond.nnz:
            inside, outside = (" and ".join(_names(hidden, p)) for p in (block, beyond))
            escapes = (Escape(inside, (), outside, steps), *escapes)
        reach.append(Reach(role, block, not beyond.nnz, influence.data[k], escapes))
    return tuple(reach)


def _dependence(pattern: Pattern | None, bounds: np.ndarray) -> Dependence:
    """The states and the operations that a value with this pattern depends on; none without a pattern."""
    states = np.zeros(int(bounds[0]), bool)
    ops = np.zeros(len(bounds) - 1, bool)
    if pattern is not None:
        columns = columns_of(pattern)
        columns = columns[columns < bounds[-1]]
        states[columns[columns < bounds[0]]] = True
        members = np.searchsorted(bounds, columns[columns >= bounds[0]], side="right") - 1
        ops[members] = True
    return Dependence(states, ops)


def _names(hidden: HiddenStates, pattern: Pattern) -> list[str]:
    return [f"hidden {name}" for name in hidden.names(columns_of(pattern))]
