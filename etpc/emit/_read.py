"""The output of a step as a function of all that a trace is multiplied with, each path counted once.

The gradient of the loss of a step is a sum over paths from each use of a weight, at this step or before,
to the output, in a step in which operations that reach a state read their data with old states held
constant. Sort the paths by the last new state on that part of them that precedes the data of an
operation. What leads to that state is `eps'`, the trace of the cut step; what follows is the learning
signal L at it, in which every path on to another new state is cut, and those through operations are not.
Paths without a new state are differentiated by the perturbation `delta` of the operation's output in the
same step, or by the old state that they come from, which meets the trace of the step before. So

    dl/dw = sum_t L_t eps'_t + (dl_t/d delta) x_t + (dl_t/d old) eps_{t-1}

and `Reading` evaluates the step so that one reverse pass gives all three.
"""

import dataclasses
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._jax import (
    Equation,
    Variable,
    evaluate,
    is_complex,
    is_float,
    prims,
    propagate,
    prune,
)
from .._jax.primitives import facts
from ..analyse import Analysis, WeightOp
from ._forward import Values, superpose
from ._records import Arrays, Taken, Weights
from ._step import StepFunctions


class Sources(NamedTuple):
    """What the output of a step is differentiated by; and its derivatives, as cotangents."""

    weights: Arrays
    old: Arrays
    """The parts of the old states."""
    new: Arrays
    """The parts of the new states."""
    deltas: Arrays
    """The perturbations of live operations."""


class Reading:
    """The output of one step of one example, as a function of states and of operations."""

    def __init__(self, step: StepFunctions, untraced: Collection[int]):
        """`untraced`: the hidden states that no trace holds, by their number.

        Credit is not taken at such a state if it depends on other new states and on operations alone, but passed on to
        those. An example is the output of an LSTM, which weights alone read in the next step.
        """
        self.step = step
        a = step.analysis
        self._data = [v for v in map(_data, step.live) if v is not None]
        sources = set(range(len(a.hidden.leaves))).difference(untraced)
        past = self._past(_moved_states(a, sources))
        sources |= {n for n in untraced if a.split.next_state[a.hidden.leaves[n]] in past}
        self.sources = frozenset(sources)
        """The hidden states at which credit is taken, by their number."""
        self._moves = _moved_states(a, self.sources)
        self._by_old = self._past(self._moves)
        wanted, given = [*a.split.outputs, *self._data], self._moves.new_states
        self._body = prune(a.split.body, wanted, step.saved_equations, given)

    def __call__(
        self, weights: Weights, taken: Taken, sources: Sources
    ) -> tuple[list[Array], list[Array]]:
        """The output, and the data `x` of each live operation that has some.

        A new state is what `sources.new` says, also where the step moves it on into another array, so
        that the derivative by it is the learning signal. What reaches the output past the new states is
        differentiated by `sources.old` and `sources.deltas`. An operation whose data is cut, but depends on
        new states or on other outputs of its own step, passes on the influence of those: it crosses. That
        influence goes through the rest of the step unhindered, so a second evaluation carries it.
        """
        a, step, stop = self.step.analysis, self.step, lax.stop_gradient
        weights = weights._replace(effective=sources.weights)
        base = step.environment(weights, taken.xs, step.with_parts(taken.state, sources.old))
        moved = self._moves.values(sources.new, base, step, taken, sources.deltas)
        first = self._run(base, taken, sources.deltas, moved)
        outputs = [first[v] for v in a.split.outputs]
        if self.crossing:
            shared, held_state = first, step.with_parts(taken.state, [stop(p) for p in sources.old])
            if any(_data(op) in self._by_old for op in step.saved if op.equation in self.crossing):
                held = step.environment(weights, taken.xs, held_state)
                shared = self._run(held, taken, sources.deltas, moved)
            held_weights = weights._replace(effective=[stop(w) for w in sources.weights])
            still = step.environment(held_weights, taken.xs, held_state)
            second = self._crossed(still, taken, shared)
            outputs = [
                superpose(y, second[v]) if v.is_float else y
                for v, y in zip(a.split.outputs, outputs, strict=True)
            ]
        return outputs, [stop(first[v]) for v in self._data]

    def _run(
        self, env: Values, taken: Taken, deltas: Arrays, moved: "dict[Variable, Moved]"
    ) -> Values:
        """Evaluate the cut step up to outputs and data, with the new states given."""
        cut = self.step.acting(deltas, taken.saved)

        def rule(eqn: Equation, operands: list[Any]) -> list[Any] | None:
            outputs = cut(eqn, operands)
            if any(v in moved for v in eqn.outputs):
                outputs = eqn.bind(*operands) if outputs is None else outputs
                outputs = [
                    moved[v].over(value) if v in moved else value
                    for v, value in zip(eqn.outputs, outputs, strict=True)
                ]
            return outputs

        given = {v: moved[v].value.astype(v.aval.dtype) for v in self._moves.new_states}
        return evaluate(self._body, {**env, **given}, rule)

    def _crossed(self, still: Values, taken: Taken, shared: Values) -> Values:
        """Evaluate the step where all is held constant but the data of operations that cross, which is
        that of `shared`."""
        step, stop, crossing = self.step, lax.stop_gradient, self.crossing
        given = [eqn for eqn in step.saved_equations if eqn not in crossing]
        body = prune(step.analysis.split.body, step.analysis.split.outputs, given)

        def rule(eqn: Equation, operands: list[Any]) -> list[Any] | None:
            place = step.saved_equations.get(eqn)
            if place is None:
                return None
            saved = stop(taken.saved[place])
            if eqn not in crossing:
                return [saved]
            data = step.saved[place].kind.data
            operands = [
                superpose(value, shared[v]) if i == data else value
                for i, (v, value) in enumerate(zip(eqn.inputs, operands, strict=True))
            ]
            return [superpose(saved, eqn.bind(*operands)[0])]

        return evaluate(body, still, rule)

    @cached_property
    def crossing(self) -> frozenset[Equation]:
        """The equations of cut operations whose data depends on new states or operations of their own step."""
        live = (v for eqn in self.step.live_by_equation for v in eqn.outputs if v.is_float)
        body = self.step.analysis.split.body
        touched = propagate(body, [*self._moves.variables, *live], _stops)
        return frozenset(op.equation for op in self.step.saved if _data(op) in touched)

    def _past(self, moves: "MovedStates") -> Collection[Variable]:
        """What depends on old states past the new ones and past the operations that are cut."""
        a, given = self.step.analysis, moves.whole
        past = [eqn for eqn in a.split.body if eqn not in self.step.saved_equations]
        old = (a.step.state[i] for i in a.hidden.leaves)
        return propagate(past, old, lambda eqn, v: _stops(eqn, v) or v in given)

    def operations_read(self) -> frozenset[int]:
        """The numbers of the live operations that an output of their own step depends on past the new states."""
        step, given = self.step, self._moves.whole
        crossed = [_data(op) for op in step.saved if op.equation in self.crossing]
        needed = {v for v in (*step.analysis.split.outputs, *crossed) if v not in given}
        for eqn in reversed(self._body):
            is_read = any(v in needed and not _stops(eqn, v) for v in eqn.outputs)
            if is_read and eqn not in step.saved_equations:
                needed.update(v for v in eqn.inputs if v.is_float and v not in given)
        return frozenset(op.number for op in step.live if op.equation.outputs[0] in needed)

    def reads_old_states(self) -> bool:
        """Whether an output depends on old states past the new ones."""
        return any(v in self._by_old for v in self.step.analysis.split.outputs)


def _data(op: WeightOp) -> Variable | None:
    """What the weight of an operation is multiplied with; `None` if the operation is element-wise."""
    return None if op.kind.data is None else op.equation.inputs[op.kind.data]


def _stops(eqn: Equation, output: Variable) -> bool:
    return eqn.primitive is prims.stop_gradient_p


def _is_move(eqn: Equation) -> bool:
    """Whether an operation moves values and does not change them, but for rounding."""
    if eqn.primitive is prims.convert_element_type_p:
        old, new = (v.aval for v in (*eqn.inputs, *eqn.outputs))
        return is_float(old.dtype) and is_float(new.dtype) and is_complex(old) <= is_complex(new)
    return facts(eqn.primitive).moves


@dataclasses.dataclass(frozen=True, eq=False)
class Moved:
    """The value that new states give to a variable."""

    value: Array
    where: Array | None
    """The elements that it is given for; `None` for all."""

    def over(self, value: Array) -> Array:
        """The value of the variable itself, with what is given in its place."""
        moved = self.value.astype(value.dtype)
        if self.where is None:
            return moved
        # an average of copies may be off by rounding: the derivative is that of the copies alone
        return superpose(lax.stop_gradient(value), jnp.where(self.where, moved, value))


@dataclasses.dataclass(frozen=True, eq=False)
class MovedStates:
    """The variables of a step that are new states, or are moved on into them unchanged."""

    new_states: Mapping[Variable, int]
    """Each variable that is a new state, and the number of its float leaf."""
    origins: tuple[tuple[Equation, tuple[int, ...]], ...]
    """The moves that end in new states, last first, and which of their operands are moved."""
    variables: frozenset[Variable]
    whole: frozenset[Variable]
    """Those of which every element is given by the new states."""

    def values(
        self, new: Arrays, env: Values, step: StepFunctions, taken: Taken, deltas: Arrays
    ) -> dict[Variable, Moved]:
        """What new states with the parts `new` say of every such variable.

        For `v' = concatenate(a, b)`, where `a` and `b` are computed in the step, `a` and `b` are slices of the
        new state, and what reads `a` reads that slice.
        """
        leaves = step.leaves(new)
        moved = {v: Moved(leaves[i], None) for v, i in self.new_states.items()}
        if not self.origins:
            return moved
        places = [
            v
            for eqn, operands in self.origins
            for i, v in enumerate(eqn.inputs)
            if i not in operands
        ]
        body = prune(step.analysis.split.body, places, step.saved_equations)
        env = evaluate(body, dict(env), step.acting(deltas, taken.saved))
        sums: dict[Variable, tuple[Array, Array]] = {}
        for eqn, operands in self.origins:  # last first: all moves of an output came before
            moved |= {v: _average(*sums.pop(v)) for v in eqn.outputs if v in sums}
            for i in operands:
                v = eqn.inputs[i]
                if v not in moved:
                    found = _inverse(eqn, i, moved, env)
                    sums[v] = jax.tree.map(jnp.add, sums[v], found) if v in sums else found
        return moved | {v: _average(*of_moves) for v, of_moves in sums.items()}


def _inverse(
    eqn: Equation, operand: int, moved: Mapping[Variable, Moved], env: Values
) -> tuple[Array, Array]:
    """The transpose of a move: for each element of the operand the sum of what is given for its copies, and how many
    are given."""

    def move(value: Array) -> list[Any]:
        of_move = enumerate(eqn.inputs)
        return eqn.bind(*(value if i == operand else _still(env.get(v), v) for i, v in of_move))

    v = eqn.inputs[operand]
    _, pull = jax.vjp(move, jnp.zeros(v.shape, v.aval.dtype))
    values: list[Array] = []
    masks: list[Array] = []
    for out in eqn.outputs:
        zeros = jnp.zeros(out.shape, out.aval.dtype)
        if out not in moved:
            values.append(zeros)
            masks.append(zeros)
            continue
        source = moved[out]
        mask = jnp.ones(out.shape, bool) if source.where is None else source.where
        values.append(jnp.where(mask, source.value.astype(zeros.dtype), 0))
        masks.append(mask.astype(zeros.dtype))
    (count,), (total,) = pull(masks), pull(values)
    return total, count.real


def _average(total: Array, count: Array) -> Moved:
    return Moved(total / jnp.maximum(count, 1), count > 0)


def _still(value: Any, v: Variable) -> Any:
    return jnp.zeros(v.shape, v.aval.dtype) if value is None else lax.stop_gradient(value)


def _moved_states(a: Analysis, sources: Collection[int]) -> MovedStates:
    """Follow moves back from the new states at which credit is taken, to what the step computes; old states are not
    followed."""
    old: set[Variable] = {a.step.state[i] for i in a.hidden.leaves}
    fixed = {*a.step.constants, *a.split.weights, *a.split.others}
    for eqn in a.split.body:
        moving = [v for v in eqn.inputs if v.is_float and v not in fixed]
        if _is_move(eqn) and moving and all(v in old for v in moving):
            old.update(v for v in eqn.outputs if v.is_float)
    computed = {v for eqn in a.split.body for v in eqn.outputs}
    new_states: dict[Variable, int] = {}
    for number, i in enumerate(a.hidden.leaves):
        v = a.split.next_state[i]
        if number in sources and v in computed and v not in new_states:
            new_states[v] = number
    given = {v: np.ones(v.shape, bool) for v in new_states}
    origins: list[tuple[Equation, tuple[int, ...]]] = []
    for eqn in reversed(a.split.body):
        if not _is_move(eqn) or not any(v in given for v in eqn.outputs):
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
    return MovedStates(new_states, tuple(origins), frozenset(given), whole)


def _given(eqn: Equation, operand: int, given: Mapping[Variable, np.ndarray]) -> np.ndarray:
    """Which elements of the operand of a move are given, as some of its outputs are: for certain, so none of those that
    data moves."""
    v, record = eqn.inputs[operand], facts(eqn.primitive)
    if record.rearranges is None:
        return given[eqn.outputs[0]] if record.keeps else np.zeros(v.shape, bool)
    numbers = [np.full(other.shape, v.size) for other in eqn.inputs]
    numbers[operand] = np.arange(v.size).reshape(v.shape)
    found = np.zeros(v.size + 1, bool)  # the last one stands for the elements of other operands
    for out, moved in zip(eqn.outputs, record.rearranges(*numbers, **eqn.params), strict=True):
        if out in given:
            found[np.asarray(moved)[given[out]]] = True
    return found[:-1].reshape(v.shape)
