"""The paths from states and operations to the output of their own step, and where they end.

Credit of a step is taken at its new states. A step may forward them into the output or into another state, by
data movement, which changes no value; what is forwarded is the new state too. What reaches the output past the new
states comes from old states or from operations of the step.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

import numpy as np

from .._jax import Equation, Variable, is_complex, is_float, prims, propagate, prune
from .._jax.primitives import facts
from ..analyse import Analysis, by_equation, data_of


@dataclasses.dataclass(frozen=True, eq=False)
class ForwardedStates:
    """The variables of a step that are new states, or are forwarded into them: copied there unchanged."""

    new_states: Mapping[Variable, int]
    """Each variable that is a new state, and the number of its float leaf."""
    origins: tuple[tuple[Equation, tuple[int, ...]], ...]
    """The data movement that ends in new states, last first, and which operands are forwarded."""
    variables: frozenset[Variable]
    whole: frozenset[Variable]
    """Those of which every element is given by the new states."""


class OutputPaths:
    """The paths past the new states at which credit is taken, `credited`, by the numbers of their leaves."""

    def __init__(self, analysis: Analysis, credited: Collection[int]):
        if not analysis.hidden.reach_output:
            credited = ()  # as no operation reaches them
        self.analysis, self.credited = analysis, frozenset(credited)
        self.live = analysis.live
        self.saved = [op for op in self.live if op.number in analysis.cut]
        self.forwarded = _forwarded_states(analysis, credited)

    @cached_property
    def crossing(self) -> frozenset[Equation]:
        """The equations of cut operations whose data depends on new states or operations of their own step."""
        live = (v for eqn in by_equation(self.live) for v in eqn.outputs if v.is_float)
        body = self.analysis.split.body
        touched = propagate(body, [*self.forwarded.variables, *live], stops_gradient)
        return frozenset(op.equation for op in self.saved if data_of(op) in touched)

    @cached_property
    def held(self) -> "OutputPaths | None":
        """The paths to data that is held constant as far as it depends on old states: past the new states that the
        step stores. `None` if no data that crosses depends on old states past those and is not read in full."""
        full, hidden = self.analysis.in_full, self.analysis.hidden
        stored = self.credited & {*range(hidden.stored)}
        found = OutputPaths(self.analysis, stored) if hidden.transient else self
        reads = (op for op in self.saved if op.equation in self.crossing)
        part = [op for op in reads if op.number not in full or not full[op.number].elements.all()]
        return found if any(data_of(op) in found.bypassing for op in part) else None

    @cached_property
    def bypassing(self) -> Collection[Variable]:
        """What depends on old states past the new ones and past the operations that are cut."""
        a, given, saved = self.analysis, self.forwarded.whole, {op.equation for op in self.saved}
        past = [eqn for eqn in a.split.body if eqn not in saved]
        return propagate(past, a.hidden.old, lambda eqn, v: stops_gradient(eqn, v) or v in given)

    @cached_property
    def body(self) -> tuple[Equation, ...]:
        """The equations between the new states, and the output and the data of operations."""
        data = [v for v in map(data_of, self.live) if v is not None]
        saved = [op.equation for op in self.saved]
        wanted = [*self.analysis.split.outputs, *data]
        return tuple(prune(self.analysis.split.body, wanted, saved, self.forwarded.new_states))

    @cached_property
    def from_operations(self) -> frozenset[int]:
        """The numbers of the operations that an output of their own step depends on past the new states."""
        crossed = [data_of(op) for op in self.saved if op.equation in self.crossing]
        needed = self._needed((*self.analysis.split.outputs, *crossed))
        if self.held is not None:
            needed |= self.held._needed(crossed)
        return frozenset(op.number for op in self.live if op.equation.outputs[0] in needed)

    def _needed(self, read: Iterable[Variable | None]) -> set[Variable]:
        """What some values depend on past the new states and the operations that are cut."""
        given, saved = self.forwarded.whole, {op.equation for op in self.saved}
        needed = {v for v in read if v is not None and v not in given}
        for eqn in reversed(self.body):
            is_read = any(v in needed and not stops_gradient(eqn, v) for v in eqn.outputs)
            if is_read and eqn not in saved:
                needed.update(v for v in eqn.inputs if v.is_float and v not in given)
        return needed

    @property
    def from_old_states(self) -> bool:
        """Whether an output depends on old states past the new ones, also by data that is read in full."""
        read = (data_of(op) for op in self.saved if op.number in self.analysis.in_full)
        return any(v in self.bypassing for v in (*self.analysis.split.outputs, *read))


def stops_gradient(eqn: Equation, output: Variable) -> bool:
    return eqn.primitive is prims.stop_gradient_p


def _is_data_movement(eqn: Equation) -> bool:
    """Whether an operation does not change values, but for rounding."""
    if eqn.primitive is prims.convert_element_type_p:
        old, new = (v.aval for v in (*eqn.inputs, *eqn.outputs))
        return is_float(old.dtype) and is_float(new.dtype) and is_complex(old) <= is_complex(new)
    return facts(eqn.primitive).data_movement


def _forwarded_states(a: Analysis, sources: Collection[int]) -> ForwardedStates:
    """Follow data movement back from the new states at which credit is taken, to what the step computes; old states are
    not followed."""
    old: set[Variable] = {*a.hidden.old}
    fixed = {*a.step.constants, *a.split.weights, *a.split.others}
    for eqn in a.split.body:
        varying = [v for v in eqn.inputs if v.is_float and v not in fixed]
        if _is_data_movement(eqn) and varying and all(v in old for v in varying):
            old.update(v for v in eqn.outputs if v.is_float)
    computed = {v for eqn in a.split.body for v in eqn.outputs}
    new_states: dict[Variable, int] = {}
    for number, v in enumerate(a.hidden.new):
        if number in sources and v in computed and v not in new_states:
            new_states[v] = number
    given = {v: np.ones(v.shape, bool) for v in new_states}
    origins: list[tuple[Equation, tuple[int, ...]]] = []
    for eqn in reversed(a.split.body):
        if not _is_data_movement(eqn) or not any(v in given for v in eqn.outputs):
            continue
        operands = tuple(
            i for i, v in enumerate(eqn.inputs) if v.is_float and v in computed and v not in old
        )
        if operands:
            origins.append((eqn, operands))
        for i in operands:
            v = eqn.inputs[i]
            given[v] = given.get(v, False) | _given(eqn, i, given)
    whole = frozenset(v for v, elements in given.items() if elements.all())
    return ForwardedStates(new_states, tuple(origins), frozenset(given), whole)


def _given(eqn: Equation, operand: int, given: Mapping[Variable, np.ndarray]) -> np.ndarray:
    """Which elements of an operand of data movement are given, as some of its outputs are: for certain, so none whose
    place depends on data."""
    v, record = eqn.inputs[operand], facts(eqn.primitive)
    if record.rearranges is None:
        return given[eqn.outputs[0]] if record.keeps else np.zeros(v.shape, bool)
    numbers = [np.full(other.shape, v.size) for other in eqn.inputs]
    numbers[operand] = np.arange(v.size).reshape(v.shape)
    found = np.zeros(v.size + 1, bool)  # the last one stands for the elements of other operands
    for out, places in zip(eqn.outputs, record.rearranges(*numbers, **eqn.params), strict=True):
        if out in given:
            found[np.asarray(places)[given[out]]] = True
    return found[:-1].reshape(v.shape)
