"""Where effective weights meet data."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from .._jax import Equation, Variable, etp_p, partition, prims
from ..ops import Kind, kind_of
from ..trace import Known, Step
from ._interpreter import Opaque
from ._loops import differentiable


@dataclasses.dataclass(frozen=True, eq=False)
class WeightOp:
    """The first operation in which an effective weight meets data.

    `weight` is the effective weight: a variable that depends on no data, but on the model's arrays
    `parameters` alone.
    """

    number: int
    """Its place among the operations of the step; what `analyse(step, cut=)` takes."""
    equation: Equation
    operand: int
    """Which input of the equation the weight is."""
    weight: Variable
    parameters: tuple[int, ...]
    """The numbers of the array leaves of the model that the effective weight depends on."""
    path: str
    """The path of the parameter, such as `.cell.weight_hh`; several are joined by commas."""
    marked: bool
    """Whether the weight passed through `etpc.mark`."""
    kind: Kind
    """What the operation does with data; `kind.data` is `None` where it is element-wise."""

    @property
    def size(self) -> int:
        """Number of outputs, G * O."""
        return self.kind.groups * self.kind.outputs

    @property
    def delta(self) -> jax.ShapeDtypeStruct:
        """The perturbation of the operation: of its output where it has data, else of the weight."""
        perturbed = self.equation.outputs[0] if self.kind.data is not None else self.weight
        shape = (self.kind.groups, self.kind.outputs)
        return jax.ShapeDtypeStruct(shape, perturbed.aval.dtype)

    def __str__(self) -> str:
        mark = " marked" if self.marked else ""
        return f"{self.path} {self.kind.name}{mark} at {self.equation.source}"


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A step, split into what depends on parameters and constants alone, and the rest.

    `prefix` is evaluated once for a call, `body` at every step. What the body reads of the prefix are
    `weights`, the effective weights, and `others`, values that are not differentiated.
    """

    prefix: tuple[Equation, ...]
    body: tuple[Equation, ...]
    weights: tuple[Variable, ...]
    others: tuple[Variable, ...]
    ops: tuple[WeightOp, ...]
    outputs: tuple[Variable, ...]
    next_state: tuple[Variable, ...]
    assumed: frozenset[Variable]
    """Integer arrays of the model whose values the kinds rely on."""
    dense: dict[Opaque, None]
    """Operations in loops of unknown length that have no pattern rule, once the step was differentiated."""

    def __str__(self) -> str:
        weights = [f"{op.path} = {op.weight!r}" for op in self.ops]
        lines = ["once for a call", *(f"  {equation!r}" for equation in self.prefix)]
        lines += ["effective weights: " + ", ".join(weights)]
        lines += ["at each step", *(f"  {equation!r}" for equation in self.body)]
        return "\n".join(lines)


def split(step: Step) -> Split:
    """Find the weight operations of a step."""
    dense: dict[Opaque, None] = {}
    equations = differentiable(step, dense)
    prefix, body, fixed = partition(equations, [*step.constants, *step.parameters])
    reads, marked = _effective(step, prefix)
    body, outputs, next_state = _copies(step, body, reads)
    read = [*(v for eqn in body for v in eqn.inputs), *outputs, *next_state]
    needed = [v for v in dict.fromkeys(read) if v in fixed]
    weights = tuple(v for v in needed if v in reads)
    others = tuple(v for v in needed if v not in reads and v not in step.constants)

    known = Known(step.equations, step.constants, step.fixed)
    ops: list[WeightOp] = []
    for eqn in body:
        for operand, v in enumerate(eqn.inputs):
            if v not in reads:
                continue
            parameters = tuple(sorted(reads[v]))
            path = ", ".join(step.model_leaves.paths[i] for i in parameters)
            kind = kind_of(eqn, operand, known)
            ops.append(WeightOp(len(ops), eqn, operand, v, parameters, path, v in marked, kind))
    return Split(
        tuple(prefix),
        tuple(body),
        weights,
        others,
        tuple(ops),
        outputs,
        next_state,
        frozenset(known.sources() & step.fixed.keys()),
        dense,
    )


def _effective(
    step: Step, prefix: Sequence[Equation]
) -> tuple[dict[Variable, frozenset[int]], set[Variable]]:
    """The parameters that each effective weight depends on, and which of these weights are marked."""
    reads: dict[Variable, frozenset[int]] = {
        step.parameters[i]: frozenset([i]) for i in step.model_leaves.floats
    }
    marked: set[Variable] = set()
    for eqn in prefix:
        if eqn.primitive is prims.stop_gradient_p:
            continue
        parameters = frozenset().union(*(reads.get(v, frozenset()) for v in eqn.inputs))
        is_marked = eqn.primitive is etp_p or any(v in marked for v in eqn.inputs)
        for v in eqn.outputs:
            if parameters and v.is_float:
                reads[v] = parameters
                if is_marked:
                    marked.add(v)
    return reads, marked


def data_of(op: WeightOp) -> Variable | None:
    """What the weight of an operation is multiplied with; `None` if the operation is element-wise."""
    return None if op.kind.data is None else op.equation.inputs[op.kind.data]


def by_equation(ops: Sequence[WeightOp]) -> dict[Equation, list[WeightOp]]:
    """The weight operations of each equation that has some."""
    table: dict[Equation, list[WeightOp]] = {}
    for op in ops:
        table.setdefault(op.equation, []).append(op)
    return table


def shifted(
    ops: Sequence[WeightOp],
    deltas: Sequence[Any],
    operands: list[Any],
    apply: Callable[..., list[Any]],
) -> list[Any]:
    """The outputs of an equation, with the perturbation of each of its weight operations added where it acts."""
    for op, delta in zip(ops, deltas, strict=True):
        operands = op.kind.shift_inputs(operands, delta)
    outputs = apply(*operands)
    for op, delta in zip(ops, deltas, strict=True):
        outputs = op.kind.shift_outputs(outputs, delta)
    return outputs


def _copies(
    step: Step, body: Sequence[Equation], reads: dict[Variable, frozenset[int]]
) -> tuple[list[Equation], tuple[Variable, ...], tuple[Variable, ...]]:
    """Copy each weight that is an output or a new state itself, so that it is used by an operation."""
    body = list(body)
    numbers = iter(range(-1, -(1 << 62), -1))

    def through(v: Variable) -> Variable:
        if v not in reads:
            return v
        copied = Variable(next(numbers), v.aval)
        body.append(Equation(prims.copy_p, {}, (v,), (copied,), "the model's return value"))
        return copied

    outputs = tuple(through(v) for v in step.outputs)
    return body, outputs, tuple(through(v) for v in step.next_state)
