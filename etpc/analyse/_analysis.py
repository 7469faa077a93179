"""Which weights reach which hidden states: the patterns of the cut step, and what follows."""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from .._jax import Equation, Variable, canonicalise, evaluate, forward_mode
from ..trace import Known, Step

# the modules of rules register them
from . import _rules_control, _rules_indexing, _rules_moving, _rules_sums  # noqa: F401
from ._interpreter import Interpreter, Opaque
from ._pattern import Pattern, columns_of, empty
from ._reach import closure, within
from ._weights import Split, WeightOp, split


def is_complex(aval: jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.complexfloating)


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenStates:
    """The float leaves of the state as one vector of S real elements."""

    leaves: tuple[int, ...]
    """Which array leaves of the state."""
    paths: tuple[str, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]
    offsets: tuple[int, ...]
    """Where each leaf begins, and S at the end."""

    @classmethod
    def of(cls, step: Step) -> "HiddenStates":
        leaves = step.state_leaves.floats
        avals = tuple(step.state[i].aval for i in leaves)
        sizes = [step.state[i].size * (1 + is_complex(step.state[i].aval)) for i in leaves]
        offsets = (0, *(int(n) for n in np.cumsum(sizes)))
        return cls(leaves, tuple(step.state_leaves.paths[i] for i in leaves), avals, offsets)

    @property
    def size(self) -> int:
        """S."""
        return self.offsets[-1]

    @property
    def parts(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Real arrays that make up the vector: a complex leaf is its real, then its imaginary one."""
        found = []
        for aval in self.avals:
            real = jax.ShapeDtypeStruct(aval.shape, jnp.finfo(aval.dtype).dtype)
            found += [real] * (1 + is_complex(aval))
        return tuple(found)

    def split(self, leaves: Sequence[Any]) -> list[Any]:
        """The real parts of float leaves."""
        found = []
        for aval, leaf in zip(self.avals, leaves, strict=True):
            found += [leaf.real, leaf.imag] if is_complex(aval) else [leaf]
        return found

    def join(self, parts: Sequence[Any]) -> list[Any]:
        """Float leaves from their real parts."""
        given = iter(parts)
        return [
            jax.lax.complex(next(given), next(given)) if is_complex(aval) else next(given)
            for aval in self.avals
        ]

    def leaf_of(self, elements: np.ndarray) -> np.ndarray:
        """The number, among the float leaves, of the leaf that holds each element."""
        return np.searchsorted(self.offsets, elements, side="right") - 1

    def names(self, elements: np.ndarray) -> tuple[str, ...]:
        """The paths of the leaves that hold some elements, in order."""
        return tuple(self.paths[i] for i in np.unique(self.leaf_of(elements)))


@dataclasses.dataclass(frozen=True)
class Escape:
    """A path along which influence leaves a trace."""

    source: str
    """`hidden v`, or `the output of .weight`."""
    through: tuple[str, ...]
    """The paths of the weights whose data is held constant, in order; empty where nothing is cut."""
    target: str
    steps: int | None = None
    """After how many steps, where a trace follows influence for so many."""

    def __str__(self) -> str:
        late = "" if self.steps is None else f", after {self.steps} steps"
        return " -> ".join((self.source, *self.through, self.target)) + late


@dataclasses.dataclass(frozen=True, eq=False)
class Reach:
    """What one weight operation reaches."""

    role: str
    """`"state"` (directly or through other operations), `"output"` alone, or `"nothing"`."""
    block: Pattern
    """`N(o)`: outputs x states; the states that each output has a lasting influence on, or those
    that it reaches in a number of steps."""
    closed: bool
    """Whether what the block reaches is in the block."""
    reads_states: np.ndarray
    """Boolean over the S states: whether `x` depends on them within the cut step."""
    reads_ops: np.ndarray
    """Boolean over the operations: whether `x` depends on their outputs within the cut step."""
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
class Analysis:
    """A step with its weight operations, sparsity patterns, and what each operation reaches."""

    step: Step
    split: Split
    hidden: HiddenStates
    cut: frozenset[int]
    """The numbers of the operations whose data is held constant."""
    transition: Pattern
    """`D`: new states x old states."""
    immediate: tuple[Pattern, ...]
    """`F`: for each operation, new states x outputs."""
    reach: tuple[Reach, ...]
    outputs_read_states: np.ndarray
    outputs_read_ops: np.ndarray
    """For each output leaf, booleans over the states and over the operations."""
    opaque: tuple[Opaque, ...]
    """Operations without a pattern rule, taken as dense."""
    unbounded: tuple[str, ...]
    """Source lines of `while` loops that a derivative passes through."""
    nonlinear: tuple[str, ...]
    """Source lines of backward rules that are not linear and between states or weights and states."""
    assumed: tuple[int, ...]
    """Which array leaves of the model have values that the patterns rely on."""

    @property
    def ops(self) -> tuple[WeightOp, ...]:
        return self.split.ops

    def __str__(self) -> str:
        size = self.hidden.size
        lines = [f"analysis of {size} hidden states, D has {self.transition.nnz} entries"]
        for op, reach in zip(self.ops, self.reach, strict=True):
            lines.append(f"  {op}: reaches {reach.role}, block {reach.size}")
            lines += [f"    escapes: {path}" for path in reach.escapes]
        lines += [f"  taken as dense: {o.primitive} at {o.source}" for o in self.opaque]
        return "\n".join(lines)


def analyse(step: Step, *, cut: bool | frozenset[int] = True, steps: int | None = None) -> Analysis:
    """Find the weight operations of a step, the patterns of its Jacobians, and the blocks.

    **Arguments:**

    - `step`: from [`etpc.trace.trace`][].
    - `cut`: whether the data of operations that mix positions is held constant, as in D-RTRL; or
        the numbers of those for which it is.
    - `steps`: keep in a block what is reached in so many steps; `None` for all that is ever reached.

    **Raises** `MemoryLimitError` where the patterns would be too large to form.
    """
    parts = split(step)
    hidden = HiddenStates.of(step)
    ops = parts.ops
    if isinstance(cut, bool):
        cut = frozenset(op.number for op in ops if cut and op.kind.mixes)
    bounds = np.cumsum([hidden.size, *(op.size for op in ops)])
    seeds = int(bounds[-1]) + 1
    floats = [v for v in step.outputs if v.is_float]
    x_of = {op.number: op.equation.inputs[op.kind.data] for op in ops if op.kind.data is not None}
    read = [k for k in x_of if x_of[k].is_float]
    interpreter, found, relied = _patterns(step, parts, hidden, cut, seeds, read)
    state_count = len(hidden.parts)
    stacked = found[:state_count]
    new = sp.csr_array(sp.vstack(stacked, format="csr")) if stacked else empty(0, seeds)
    x_rows = dict(zip(read, found[state_count : state_count + len(read)], strict=True))
    y_rows = iter(found[state_count + len(read) :])
    output_rows = [next(y_rows) if v in floats else None for v in step.outputs]

    transition = sp.csr_array(new[:, : hidden.size])
    immediate = tuple(sp.csr_array(new[:, bounds[k] : bounds[k + 1]]) for k in range(len(ops)))
    reads = [_reads(x_rows.get(op.number), bounds) for op in ops]
    y_reads = [_reads(rows, bounds) for rows in output_rows]
    is_cut = [op.number in cut for op in ops]
    direct = [bool(pattern.nnz) for pattern in immediate]
    into = np.array([r[1] for r in reads], bool).reshape(len(ops), len(ops))
    into &= np.array(is_cut, bool)[:, None]
    to_state = _upstream(np.array(direct, bool), into)
    seen = np.zeros(len(ops), bool)
    for _, through in y_reads:
        seen |= through
    to_output = _upstream(seen, into)
    reach = []
    for k, op in enumerate(ops):
        block, beyond = sp.csr_array(immediate[k].T), empty(0, hidden.size)
        if steps is None:
            block = closure(block, transition)
        else:
            block, beyond = within(block, transition, steps)
        role = "state" if to_state[k] else "output" if to_output[k] else "nothing"
        escapes = _escapes(op, block, ops, reads, into, to_state, immediate, hidden, is_cut)
        if beyond.nnz:
            inside, outside = (" and ".join(_names(hidden, p)) for p in (block, beyond))
            escapes = (Escape(inside, (), outside, steps), *escapes)
        reach.append(Reach(role, block, not beyond.nnz, *reads[k], escapes))
    return Analysis(
        step,
        parts,
        hidden,
        cut,
        transition,
        immediate,
        tuple(reach),
        np.array([r[0] for r in y_reads], bool).reshape(len(y_reads), hidden.size),
        np.array([r[1] for r in y_reads], bool).reshape(len(y_reads), len(ops)),
        tuple(interpreter.opaque),
        tuple(interpreter.unbounded),
        tuple(interpreter.nonlinear) if new[:, [seeds - 1]].nnz else (),
        tuple(i for i, v in enumerate(step.parameters) if v in parts.assumed or i in relied),
    )


def by_equation(ops: Sequence[WeightOp]) -> dict[Equation, list[WeightOp]]:
    """The weight operations of each equation that has some."""
    table: dict[Equation, list[WeightOp]] = {}
    for op in ops:
        table.setdefault(op.equation, []).append(op)
    return table


def _patterns(
    step: Step,
    parts: Split,
    hidden: HiddenStates,
    cut: frozenset[int],
    seeds: int,
    read: Sequence[int],
) -> tuple[Interpreter, list[Pattern], set[int]]:
    """Patterns of new states, of the data of operations in `read`, and of float outputs.

    Also which array leaves of the model have values that the patterns rely on.
    """
    table = by_equation(parts.ops)
    zeros = [op.delta for op in parts.ops]
    float_outputs = [v for v in parts.outputs if v.is_float]
    new = [parts.next_state[i] for i in hidden.leaves]
    x_values: dict[int, Variable] = {
        k: parts.ops[k].equation.inputs[parts.ops[k].kind.data or 0] for k in read
    }

    def tangents(parameters, inputs, state, state_dots, delta_dots):
        def moving(real, deltas):
            values = list(state)
            for i, value in zip(hidden.leaves, hidden.join(real), strict=True):
                values[i] = value
            env = dict(step.constants)
            env.update(zip(step.parameters, parameters, strict=True))
            env.update(zip(step.inputs, inputs, strict=True))
            env.update(zip(step.state, values, strict=True))

            def rule(eqn, operands):
                here = table.get(eqn, ())
                for op in here:
                    operands = op.kind.shift_inputs(operands, deltas[op.number])
                    if op.number in cut:
                        operands = list(operands)
                        operands[op.kind.data] = jax.lax.stop_gradient(operands[op.kind.data])
                outputs = forward_mode(eqn)(*operands)
                for op in here:
                    outputs = op.kind.shift_outputs(outputs, deltas[op.number])
                return outputs

            evaluate((*parts.prefix, *parts.body), env, rule)
            wanted = [*(x_values[k] for k in read), *float_outputs]
            return [*hidden.split([env[v] for v in new]), *(env[v] for v in wanted)]

        real = hidden.split([state[i] for i in hidden.leaves])
        primals = real, [jnp.zeros(a.shape, a.dtype) for a in zeros]
        return jax.jvp(moving, primals, (list(state_dots), list(delta_dots)))[1]

    groups = [
        [v.aval for v in step.parameters],
        [v.aval for v in step.inputs],
        [v.aval for v in step.state],
        list(hidden.parts),
        zeros,
    ]
    counts = np.cumsum([0, *(len(g) for g in groups)])

    def flat(*args):
        return tangents(*(args[a:b] for a, b in itertools.pairwise(counts)))

    program = canonicalise(flat, [a for group in groups for a in group])
    inputs: list[Pattern | None] = [None] * int(counts[3])
    eye = sp.csr_array(sp.eye_array(seeds, dtype=bool, format="csr"))
    start = 0
    for aval in (*groups[3], *groups[4]):
        size = int(np.prod(aval.shape, dtype=np.int64))
        inputs.append(sp.csr_array(eye[start : start + size]))
        start += size
    interpreter = Interpreter(seeds)
    fixed = {
        argument: step.fixed[v]
        for argument, v in zip(program.inputs, step.parameters, strict=False)
        if v in step.fixed
    }
    known = Known(program.equations, {**program.constants, **fixed})
    found = interpreter.run(program, inputs, known)
    sources = known.sources()
    relied = {i for i, argument in enumerate(program.inputs) if argument in sources}
    filled = [
        empty(v.size, seeds) if pattern is None else pattern
        for v, pattern in zip(program.outputs, found, strict=True)
    ]
    return interpreter, filled, relied


def _reads(pattern: Pattern | None, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which states, and which operations, any row of a pattern depends on."""
    elements = np.zeros(int(bounds[0]), bool)
    ops = np.zeros(len(bounds) - 1, bool)
    if pattern is not None:
        columns = columns_of(pattern)
        columns = columns[columns < bounds[-1]]
        elements[columns[columns < bounds[0]]] = True
        members = np.searchsorted(bounds, columns[columns >= bounds[0]], side="right") - 1
        ops[members] = True
    return elements, ops


def _names(hidden: HiddenStates, pattern: Pattern) -> list[str]:
    return [f"hidden {name}" for name in hidden.names(columns_of(pattern))]


def _upstream(start: np.ndarray, into: np.ndarray) -> np.ndarray:
    """`start`, and all operations whose output enters (`into[j, k]`: k enters j) one of them."""
    reached = start.copy()
    for _ in range(len(start)):
        more = reached | into[reached].any(0)
        if (more == reached).all():
            break
        reached = more
    return reached


def _escapes(
    op: WeightOp,
    block: Pattern,
    ops: Sequence[WeightOp],
    reads: Sequence[tuple[np.ndarray, np.ndarray]],
    into: np.ndarray,
    to_state: np.ndarray,
    immediate: Sequence[Pattern],
    hidden: HiddenStates,
    is_cut: Sequence[bool],
) -> tuple[Escape, ...]:
    """Paths from an operation's block or output, through a cut, to a state."""
    members = columns_of(block)
    paths = []
    for j, other in enumerate(ops):
        if not (is_cut[j] and to_state[j]):
            continue
        shared = members[reads[j][0][members]]
        sources = [f"hidden {name}" for name in hidden.names(shared)] if shared.size else []
        if into[j, op.number] and not sources:
            sources = [f"the output of {op.path}"]
        via, target = _target(j, ops, into, to_state, immediate, hidden)
        paths += [Escape(source, (other.path, *via), target) for source in sources]
    return tuple(dict.fromkeys(paths))


def _target(
    j: int,
    ops: Sequence[WeightOp],
    into: np.ndarray,
    to_state: np.ndarray,
    immediate: Sequence[Pattern],
    hidden: HiddenStates,
) -> tuple[list[str], str]:
    """The operations on the way from operation j to the first state that it reaches, and that."""
    via: list[str] = []
    seen: set[int] = set()
    while not immediate[j].nnz:
        seen.add(j)
        onward = [k for k in np.flatnonzero(into[:, j]) if to_state[k] and k not in seen]
        j = int(onward[0])
        via.append(ops[j].path)
    rows = np.flatnonzero(np.diff(immediate[j].indptr))
    return via, f"hidden {hidden.names(rows)[0]}"


__all__ = ["Analysis", "Escape", "HiddenStates", "Reach", "analyse", "by_equation"]
